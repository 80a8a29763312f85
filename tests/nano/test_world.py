import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkles.nano.world import (
    BACKGROUNDS,
    COLORS,
    IMAGE_SIZE,
    NARROW_WORLD,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    Split,
    Thing,
    random_scene,
    render,
)

seeds = st.integers(0, 2**32)
EMPTY = Scene("plain", (None,) * 6)


@given(seeds, st.sampled_from(["train", "eval"]))
def test_a_random_scene_is_of_its_split_and_shows_one_to_six_objects(seed: int, split: Split) -> None:
    scene = random_scene(random.Random(seed), split)
    assert scene.split == split
    assert 1 <= scene.count <= 6
    assert scene == random_scene(random.Random(seed), split)


def test_a_tenth_of_all_scenes_is_kept_for_evaluation() -> None:
    things = (Thing(*words) for words in product(SIZES, COLORS, SHAPES))
    scenes = [
        EMPTY.put(a, thing).put(b, thing) for thing in things for a, b in product(PLACES, PLACES) if a < b
    ]
    share = sum(scene.split == "eval" for scene in scenes) / len(scenes)
    assert 0.07 < share < 0.13


@given(seeds)
def test_the_narrow_world_is_a_part_of_the_whole(seed: int) -> None:
    scene = random_scene(random.Random(seed), "train", NARROW_WORLD)
    assert scene.background in NARROW_WORLD.backgrounds
    assert all(thing.shape in NARROW_WORLD.shapes for thing in scene.at.values())
    assert all(thing.color in NARROW_WORLD.colors for thing in scene.at.values())


@given(seeds)
def test_the_same_scene_is_always_the_same_picture(seed: int) -> None:
    scene = random_scene(random.Random(seed), "train")
    picture = render(scene)
    assert (picture.mode, picture.size) == ("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    assert picture.tobytes() == render(Scene(scene.background, scene.things)).tobytes()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", SIZES)
def test_an_object_is_drawn_within_its_place_in_its_color(place: str, size: str) -> None:
    row, column = divmod(PLACES.index(place), 3)
    for color, shape in product(COLORS, SHAPES):
        scene = EMPTY.put(place, Thing(size, color, shape))
        pixels = np.asarray(render(scene), dtype=int)
        differs = np.abs(pixels - 250).max(axis=2) > 8
        rows, columns = differs.nonzero()
        assert row * 36 <= rows.min() <= rows.max() < (row + 1) * 36
        assert column * 24 <= columns.min() <= columns.max() < (column + 1) * 24
        assert (np.abs(pixels - COLORS[color]).max(axis=2) < 8).sum() >= 10


def test_sizes_shapes_and_backgrounds_look_different() -> None:
    def area(thing: Thing) -> int:
        pixels = np.asarray(render(EMPTY.put("top-left", thing)), dtype=int)
        return int((np.abs(pixels - 250).max(axis=2) > 8).sum())

    for color, shape in product(COLORS, SHAPES):
        assert area(Thing("big", color, shape)) > 2 * area(Thing("small", color, shape))
    assert len({render(Scene(background, (None,) * 6)).tobytes() for background in BACKGROUNDS}) == len(
        BACKGROUNDS
    )


def test_an_unknown_shape_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"unknown shape 'blob', expected one of circle, square"):
        render(EMPTY.put("top-left", Thing("big", "red", "blob")))


def test_put_and_at_speak_of_places() -> None:
    star, ring = Thing("big", "red", "star"), Thing("small", "red", "ring")
    scene = EMPTY.put("bottom-right", star).put("top-left", ring)
    assert list(scene.at.items()) == [("top-left", ring), ("bottom-right", star)]
    assert scene.places_with("red") == ["top-left", "bottom-right"]
    assert scene.places_with("star") == ["bottom-right"]
    assert scene.put("top-left", None).count == 1
    assert EMPTY.count == 0
