import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkles.eval.answers import parse_choice
from sparkles.nano.dialogues import claims
from sparkles.nano.language import (
    BISON_KINDS,
    NUMBERS,
    STATEMENTS,
    BiasedCaptioner,
    bison_item,
    caption,
    coarse_caption,
    parse_caption,
    statement,
)
from sparkles.nano.rubric import credit
from sparkles.nano.world import PLACES, SIZES, Scene, Thing, random_scene

seeds = st.integers(0, 2**32)
MENTIONS = ("IMAGE#1", "IMAGE#2")


def a_pair(rng: random.Random) -> tuple[Scene, Scene]:
    """Two scenes, with the same background in every second pair."""
    first, second = random_scene(rng, "train"), random_scene(rng, "train")
    return first, replace(second, background=first.background) if rng.random() < 0.5 else second


# --- captions


@given(seeds)
def test_every_caption_parses_back(seed: int) -> None:
    scene = random_scene(random.Random(seed), "train")
    assert parse_caption(caption(scene)) == scene


def test_a_text_that_is_no_caption_is_refused_with_an_example() -> None:
    with pytest.raises(
        ValueError, match=r"not a caption of the scenes world: 'a cat'; expected 'one object on"
    ):
        parse_caption("a cat")


@given(seeds)
def test_alt_text_names_colors_and_shapes_but_neither_sizes_nor_places(seed: int) -> None:
    scene = random_scene(random.Random(seed), "train")
    words = Counter(re.findall(r"[\w-]+", coarse_caption(scene.at.values())))
    for thing in scene.at.values():
        assert words[thing.color] >= 1
        assert words[thing.shape] >= 1
    assert not words.keys() & {*SIZES, *PLACES, *NUMBERS}


# --- the biased captioner

CAPTIONER = BiasedCaptioner()


@pytest.fixture(scope="module")
def perceived() -> list[tuple[Scene, Scene]]:
    rng = random.Random(3)
    scenes = [random_scene(rng, "train") for _ in range(3000)]
    return [(scene, CAPTIONER.perceive(scene, rng)) for scene in scenes]


def test_the_captioner_errs_in_one_direction_of_size_and_background(
    perceived: list[tuple[Scene, Scene]],
) -> None:
    sizes: Counter[tuple[str, str]] = Counter()
    for scene, seen in perceived:
        assert seen.background in (scene.background, "plain")
        sizes.update((scene.at[p].size, seen.at[p].size) for p in scene.at.keys() & seen.at.keys())
    assert sizes["big", "small"] == 0
    assert sizes["small", "big"] / (sizes["small", "big"] + sizes["small", "small"]) == pytest.approx(
        CAPTIONER.small_to_big, abs=0.03
    )
    patterned = [seen for scene, seen in perceived if scene.background != "plain"]
    mistaken = sum(seen.background == "plain" for seen in patterned) / len(patterned)
    assert mistaken == pytest.approx(CAPTIONER.background_to_plain, abs=0.03)


def test_the_captioner_takes_each_color_and_shape_for_one_other_at_most(
    perceived: list[tuple[Scene, Scene]],
) -> None:
    mistaken_for: dict[str, set[str]] = defaultdict(set)
    pairs = [(scene.at[p], seen.at[p]) for scene, seen in perceived for p in scene.at.keys() & seen.at.keys()]
    for drawn, said in pairs:
        mistaken_for[drawn.color].add(said.color)
        mistaken_for[drawn.shape].add(said.shape)
    assert all(len(others - {word}) == 1 for word, others in mistaken_for.items())
    for attribute in ("color", "shape"):
        wrong = sum(getattr(drawn, attribute) != getattr(said, attribute) for drawn, said in pairs)
        assert wrong / len(pairs) == pytest.approx(CAPTIONER.misnames, abs=0.015)


def test_the_captioner_overlooks_and_invents_objects(perceived: list[tuple[Scene, Scene]]) -> None:
    crowded = [(scene, seen) for scene, seen in perceived if scene.count > 1]
    overlooked = sum(len(scene.at.keys() - seen.at.keys()) for scene, seen in crowded)
    assert overlooked / sum(scene.count for scene, _ in crowded) == pytest.approx(
        CAPTIONER.overlooks, abs=0.02
    )
    invented = [len(seen.at.keys() - scene.at.keys()) for scene, seen in perceived if scene.count < 6]
    assert set(invented) == {0, 1}
    assert sum(invented) / len(invented) == pytest.approx(CAPTIONER.hallucinates, abs=0.03)
    assert all(seen.count >= 1 for _, seen in perceived)


def test_a_captioner_without_faults_sees_what_is_there() -> None:
    faultless = BiasedCaptioner(
        small_to_big=0, overlooks=0, hallucinates=0, background_to_plain=0, misnames=0
    )
    rng = random.Random(0)
    for _ in range(50):
        scene = random_scene(rng, "train")
        assert faultless.perceive(scene, rng) == scene


# --- BISON


def bison_caption_holds(text: str, scene: Scene) -> bool:
    """Read off the words, in whatever order they stand."""
    words = set(re.findall(r"[\w-]+", text))
    (place,) = words & set(PLACES)
    thing = scene.things[PLACES.index(place)]
    return thing is not None and {thing.size, thing.color, thing.shape} <= words


@given(seeds, st.sampled_from(BISON_KINDS), st.integers(0, 1))
def test_a_bison_pair_differs_in_one_attribute_or_place_only(seed: int, kind: str, label: int) -> None:
    rng = random.Random(seed)
    item = bison_item(random_scene(rng, "train"), kind, label, rng, MENTIONS)
    if item is None:
        return
    first, second = item.scenes
    assert first.background == second.background
    assert first.split == second.split == "train"
    differing = [(a, b) for a, b in zip(first.things, second.things, strict=True) if a != b]
    if kind == "place":
        (a, b), (c, d) = differing
        assert (a, b) == (d, c)
        assert None in (a, b)
    else:
        ((one, other),) = differing
        assert one is not None
        assert other is not None
        assert replace(one, **{kind: getattr(other, kind)}) == other


@given(seeds, st.sampled_from(BISON_KINDS), st.integers(0, 1))
def test_a_bison_caption_fits_the_labelled_image_alone_and_the_reasoning_ends_there(
    seed: int, kind: str, label: int
) -> None:
    rng = random.Random(seed)
    item = bison_item(random_scene(rng, "train"), kind, label, rng, MENTIONS)
    if item is None:
        return
    assert [bison_caption_holds(item.caption, scene) for scene in item.scenes] == [label == 0, label == 1]
    assert parse_choice(item.reasoning, MENTIONS) == MENTIONS[label]


def test_a_full_scene_allows_no_other_place() -> None:
    full = Scene("plain", (Thing("big", "red", "star"),) * 6)
    assert bison_item(full, "place", 0, random.Random(0), MENTIONS) is None


def test_bison_captions_come_in_several_phrasings() -> None:
    phrasings = set()
    for seed in range(200):
        rng = random.Random(seed)
        item = bison_item(random_scene(rng, "train"), "color", 0, rng, MENTIONS)
        if item:
            (place,) = set(re.findall(r"[\w-]+", item.caption)) & set(PLACES)
            thing = item.scenes[0].at[place]
            text = item.caption.replace(place, "PLACE")
            for word in thing.words:
                text = text.replace(word, "WORD")
            phrasings.add(text.replace("an ", "a "))
    assert len(phrasings) >= 3


# --- NLVR2

Oracle = Callable[[str, tuple[Scene, Scene]], tuple[str, str, bool]]


@given(seed=seeds, kind=st.sampled_from(list(STATEMENTS)))
def test_a_statement_is_true_exactly_where_its_words_are(oracle: Oracle, seed: int, kind: str) -> None:
    rng = random.Random(seed)
    scenes = a_pair(rng)
    made = statement(kind, scenes, rng)
    if made is None:
        return
    read_kind, _, truth = oracle(made.text, scenes)
    assert (made.kind, made.truth) == (read_kind, truth)
    assert parse_choice(made.reasoning, ("TRUE", "FALSE")) == str(truth).upper()


@pytest.mark.parametrize("kind", STATEMENTS)
def test_each_statement_type_has_three_phrasings_and_both_truths(oracle: Oracle, kind: str) -> None:
    made = [(statement(kind, scenes := a_pair(rng), rng), scenes) for rng in map(random.Random, range(120))]
    read = [oracle(one.text, scenes) for one, scenes in made if one]
    assert len({phrasing for _, phrasing, _ in read}) >= 3
    assert {truth for _, _, truth in read} == {True, False}


def test_there_are_at_least_seven_statement_types() -> None:
    assert len(STATEMENTS) >= 7


@given(seed=seeds, kind=st.sampled_from(["more", "total", "same_background", "relation"]))
def test_what_the_reasoning_says_of_the_images_holds(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    scenes = a_pair(rng)
    if made := statement(kind, scenes, rng):
        facts = [claim for claim in claims(made.reasoning) if claim.image_id]
        assert all(credit(claim, scenes[int(claim.image_id) - 1]) == 1 for claim in facts)


def test_a_comparison_of_places_needs_objects_there(two_scenes: dict[str, Scene]) -> None:
    apart = (two_scenes["7"].put("top-left", None), two_scenes["9"])
    assert statement("same_at", apart, random.Random(0)) is None


def test_a_relation_needs_two_objects_that_can_be_told_apart() -> None:
    twins = Scene("plain", (Thing("big", "red", "star"),) * 2 + (None,) * 4)
    assert statement("relation", (twins, twins), random.Random(0)) is None
