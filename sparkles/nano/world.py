"""The scenes world: small drawn pictures whose ground truth is known.

A scene is a background and one to six objects, each in one of six places (three columns, two rows). Scenes whose
digest is divisible by ten are kept for evaluation, all others for training, so the two never meet.
"""

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from PIL import Image as PILImage
from PIL import ImageDraw

IMAGE_SIZE = 72  # pixels, both sides
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("big", "small")
COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "green": (30, 150, 60),
    "blue": (35, 85, 215),
    "yellow": (245, 205, 30),
    "purple": (135, 45, 170),
    "orange": (245, 130, 25),
    "pink": (250, 140, 190),
}
BACKGROUNDS = ("plain", "dark", "striped", "dotted", "checked")
PLACES = ("top-left", "top-middle", "top-right", "bottom-left", "bottom-middle", "bottom-right")
COLUMNS, ROWS = 3, 2

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Thing:
    """One drawn object."""

    size: str
    color: str
    shape: str

    @property
    def words(self) -> tuple[str, str, str]:
        return self.size, self.color, self.shape

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Scene:
    """A background and the object, if any, at each of `PLACES`."""

    background: str
    things: tuple[Thing | None, ...]

    @cached_property
    def at(self) -> dict[str, Thing]:
        """Place -> object, occupied places only, in reading order."""
        return {place: thing for place, thing in zip(PLACES, self.things, strict=True) if thing}

    @property
    def count(self) -> int:
        return len(self.at)

    @property
    def split(self) -> Split:
        digest = hashlib.md5(repr(self).encode(), usedforsecurity=False).digest()
        return "eval" if int.from_bytes(digest[:4], "big") % 10 == 0 else "train"

    def places_with(self, word: str) -> list[str]:
        """Places whose object has this size, color or shape."""
        return [place for place, thing in self.at.items() if word in thing.words]

    def put(self, place: str, thing: Thing | None) -> "Scene":
        things = list(self.things)
        things[PLACES.index(place)] = thing
        return replace(self, things=tuple(things))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The kinds of objects and backgrounds that a source of scenes draws from."""

    shapes: tuple[str, ...] = SHAPES
    colors: tuple[str, ...] = tuple(COLORS)
    backgrounds: tuple[str, ...] = BACKGROUNDS


WHOLE_WORLD = Vocabulary()
NARROW_WORLD = Vocabulary(
    shapes=("circle", "square", "triangle", "star"),
    colors=("red", "green", "blue", "yellow", "purple"),
    backgrounds=("plain", "dark", "striped"),
)
"""What the accurately annotated source shows: fewer kinds of everything."""


def random_thing(rng: random.Random, vocabulary: Vocabulary = WHOLE_WORLD) -> Thing:
    return Thing(rng.choice(SIZES), rng.choice(vocabulary.colors), rng.choice(vocabulary.shapes))


def random_scene(rng: random.Random, split: Split, vocabulary: Vocabulary = WHOLE_WORLD) -> Scene:
    """A scene of the split with one to six objects."""
    while True:
        places = set(rng.sample(PLACES, rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 5, 6))))
        things = tuple(random_thing(rng, vocabulary) if place in places else None for place in PLACES)
        scene = Scene(rng.choice(vocabulary.backgrounds), things)
        if scene.split == split:
            return scene


def render(scene: Scene) -> PILImage.Image:
    """Draw the scene, RGB, `IMAGE_SIZE` pixels square.

    Positions are jittered by a digest of the scene, so the same scene is always the same picture.
    """
    scale = 2  # drawn larger and reduced, which smooths the edges
    side = IMAGE_SIZE * scale
    picture = PILImage.new("RGB", (side, side), (250, 250, 250))
    draw = ImageDraw.Draw(picture)
    _draw_background(draw, scene.background, side)
    rng = random.Random(repr(scene))
    cell_width, cell_height = side / COLUMNS, side / ROWS
    for index, thing in enumerate(scene.things):
        if thing is None:
            continue
        radius = (10.5 if thing.size == "big" else 6.0) * scale
        slack_x, slack_y = cell_width / 2 - radius - scale, cell_height / 2 - radius - 2 * scale
        x = (index % COLUMNS + 0.5) * cell_width + rng.uniform(-slack_x, slack_x)
        y = (index // COLUMNS + 0.5) * cell_height + rng.uniform(-slack_y, slack_y)
        _draw_shape(draw, thing.shape, x, y, radius, COLORS[thing.color])
    return picture.reduce(scale)


def _draw_background(draw: ImageDraw.ImageDraw, background: str, side: int) -> None:
    tint, step = (205, 205, 205), side // 9
    if background == "dark":
        draw.rectangle((0, 0, side, side), fill=(45, 45, 50))
    elif background == "striped":
        for y in range(0, side, step):
            draw.rectangle((0, y, side, y + step // 2), fill=tint)
    elif background == "dotted":
        for y in range(step // 2, side, step):
            for x in range(step // 2, side, step):
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(150, 150, 150))
    elif background == "checked":
        for row in range(9):
            for column in range(row % 2, 9, 2):
                draw.rectangle((column * step, row * step, (column + 1) * step, (row + 1) * step), fill=tint)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, color: tuple[int, int, int]
) -> None:
    def polygon(points: list[tuple[float, float]]) -> None:
        draw.polygon([(x + radius * dx, y + radius * dy) for dx, dy in points], fill=color)

    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=color)
    elif shape == "ring":
        draw.ellipse(box, outline=color, width=max(2, round(radius * 0.38)))
    elif shape == "square":
        polygon([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    elif shape == "triangle":
        polygon([(0, -1), (0.95, 0.8), (-0.95, 0.8)])
    elif shape == "star":
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        polygon(
            [
                (math.cos(a) * r, math.sin(a) * r)
                for i, a in enumerate(angles)
                for r in [1 if i % 2 == 0 else 0.42]
            ]
        )
    elif shape == "cross":
        for dx, dy in ((0.3, 1.0), (1.0, 0.3)):
            polygon([(-dx, -dy), (dx, -dy), (dx, dy), (-dx, dy)])
    else:
        raise ValueError(f"unknown shape {shape!r}, expected one of {', '.join(SHAPES)}")
