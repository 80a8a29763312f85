"""What is said about scenes: captions, questions with their answers, and how to read claims back out of a text.

Everything is plain English in a small, fixed grammar, so that a rubric can check each claim. Questions come in
several phrasings; answers state per image what is needed and then compare, in the fixed short form that a small
language model can learn without error.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sparkles.nano.world import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene, Thing, random_thing
from sparkles.prompt_format import image_mention

NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def objects(count: int) -> str:
    return f"{NUMBERS[count]} object" + ("" if count == 1 else "s")


def listing(parts: Sequence[str]) -> str:
    """
    >>> listing(["a", "b", "c"])
    'a, b and c'
    """
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


# --- captions -------------------------------------------------------------------------------------------------


def caption(scene: Scene) -> str:
    """Everything there is to say about a scene.

    >>> caption(Scene("dark", (Thing("big", "red", "star"), None, None, None, None, None)))
    'one object on a dark background: a big red star at the top-left.'
    """
    things = ", ".join(f"{article(str(thing))} at the {place}" for place, thing in scene.at.items())
    return f"{objects(scene.count)} on {article(scene.background)} background: {things}."


_THING = re.compile(
    rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) at the ({'|'.join(PLACES)})"
)
_BACKGROUND = re.compile(rf"an? ({'|'.join(BACKGROUNDS)}) background")
_COUNT = re.compile(rf"({'|'.join(NUMBERS)}) objects?")


def parse_caption(text: str) -> Scene:
    """The scene that a caption describes; the reverse of `caption`.

    Raises:
        ValueError: the text names no background or no object of this world.
    """
    background, things = _BACKGROUND.search(text), _THING.findall(text)
    if background is None or not things:
        raise ValueError(
            f"not a caption of the scenes world: {text!r}; expected {caption(_EXAMPLE)!r} or the like"
        )
    scene = Scene(background[1], (None,) * len(PLACES))
    for size, color, shape, place in things:
        scene = scene.put(place, Thing(size, color, shape))
    return scene


_EXAMPLE = Scene("dark", (Thing("big", "red", "star"), None, None, None, None, None))


def coarse_caption(things: Iterable[Thing]) -> str:
    """What alt text says of a picture: colors and shapes, neither places nor sizes nor the background.

    >>> coarse_caption([Thing("big", "red", "star"), Thing("small", "orange", "ring")])
    'a red star and an orange ring.'
    """
    return listing([article(f"{thing.color} {thing.shape}") for thing in things]) + "."


@dataclass(frozen=True, kw_only=True)
class BiasedCaptioner:
    """Sees a scene as a weak captioning model would: always wrong in the same directions.

    It takes small things for big ones, overlooks things, sees things that are not there, and takes most
    backgrounds for plain; it rarely errs on colors and shapes. Chances are per object or per scene.
    """

    small_to_big: float = 0.2
    overlooks: float = 0.05
    hallucinates: float = 0.1
    background_to_plain: float = 0.25
    misnames: float = 0.05

    def perceive(self, scene: Scene, rng: random.Random) -> Scene:
        seen = scene
        for place, thing in scene.at.items():
            if rng.random() < self.overlooks and seen.count > 1:
                seen = seen.put(place, None)
                continue
            if thing.size == "small" and rng.random() < self.small_to_big:
                thing = replace(thing, size="big")
            if rng.random() < self.misnames:
                thing = replace(thing, color=_CONFUSED_COLORS[thing.color])
            if rng.random() < self.misnames:
                thing = replace(thing, shape=_CONFUSED_SHAPES[thing.shape])
            seen = seen.put(place, thing)
        empty = [place for place in PLACES if place not in scene.at]
        if empty and rng.random() < self.hallucinates:
            seen = seen.put(rng.choice(empty), random_thing(rng))
        if rng.random() < self.background_to_plain:
            seen = replace(seen, background="plain")
        return seen


_CONFUSED_COLORS = {
    "red": "orange",
    "orange": "red",
    "yellow": "orange",
    "green": "blue",
    "blue": "purple",
    "purple": "blue",
    "pink": "red",
}
_CONFUSED_SHAPES = {
    "circle": "ring",
    "ring": "circle",
    "square": "circle",
    "triangle": "star",
    "star": "triangle",
    "cross": "square",
}


# --- one step of reasoning ------------------------------------------------------------------------------------


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


def check_thing(image: str, scene: Scene, asked: Thing, place: str) -> tuple[str, bool]:
    """Compare what stands at a place with what was asked for, attribute by attribute.

    >>> check_thing("IMAGE#1", _EXAMPLE, Thing("big", "blue", "star"), "top-left")[0]
    'IMAGE#1 at the top-left: big for big yes, red for blue no, star for star yes, so no.'
    """
    seen = scene.at.get(place)
    if seen is None:
        return f"{image} at the {place}: nothing, so no.", False
    pairs = [f"{a} for {b} {yes_no(a == b)}" for a, b in zip(seen.words, asked.words, strict=True)]
    return f"{image} at the {place}: {', '.join(pairs)}, so {yes_no(seen == asked)}.", seen == asked


def find_word(image: str, scene: Scene, word: str) -> tuple[str, bool]:
    """Look through a scene for a color or shape.

    >>> find_word("IMAGE#1", _EXAMPLE, "blue")[0]
    'find blue in IMAGE#1: top-left red no, so no.'
    """
    found = bool(scene.places_with(word))
    return f"find {word} in {image}: {', '.join(inspect_places(scene, word))}, so {yes_no(found)}.", found


def locate_word(image: str, scene: Scene, word: str) -> tuple[str, str]:
    """Look through a scene for a color or shape that it shows once, and say where it is.

    >>> locate_word("IMAGE#1", _EXAMPLE, "red")[0]
    'find red in IMAGE#1: top-left red yes, so at the top-left.'
    """
    (place,) = scene.places_with(word)
    return f"find {word} in {image}: {', '.join(inspect_places(scene, word))}, so at the {place}.", place


def inspect_places(scene: Scene, word: str) -> list[str]:
    """What stands at each occupied place, and whether it is the color or shape that is looked for."""
    return [
        f"{place} {_same_kind(thing, word)} {yes_no(word in thing.words)}"
        for place, thing in scene.at.items()
    ]


def count_word(image: str, scene: Scene, word: str) -> tuple[str, int]:
    """Count the objects of a color or shape with a running total.

    >>> count_word("IMAGE#1", _EXAMPLE, "red")[0]
    'count red in IMAGE#1: top-left red yes one, so one.'
    """
    steps, total = [], 0
    for place, thing in scene.at.items():
        total += word in thing.words
        steps.append(f"{place} {_same_kind(thing, word)} {yes_no(word in thing.words)} {NUMBERS[total]}")
    return f"count {word} in {image}: {', '.join(steps)}, so {NUMBERS[total]}.", total


def _same_kind(thing: Thing, word: str) -> str:
    return thing.color if word in COLORS else thing.shape


def noun(word: str) -> str:
    """
    >>> noun("red"), noun("star")
    ('red object', 'star')
    """
    return f"{word} object" if word in COLORS else word


def therefore(answer: str) -> str:
    return f"Therefore, the answer is {answer}."


# --- BISON: which of two images matches the caption -----------------------------------------------------------

BISON_KINDS = ("color", "shape", "size", "place")


@dataclass(frozen=True)
class BisonItem:
    """Two scenes that differ in one attribute or place of one object."""

    kind: str
    caption: str
    scenes: tuple[Scene, Scene]
    label: int  # 0 or 1: which scene matches
    reasoning: str


def bison_caption(thing: Thing, place: str, rng: random.Random) -> str:
    a_thing = article(str(thing))
    return rng.choice(
        (
            f"{a_thing} at the {place}",
            f"at the {place} there is {a_thing}",
            f"the {place} shows {a_thing}",
            f"{article(thing.shape)} at the {place} that is {thing.size} and {thing.color}",
        )
    )


def bison_item(
    scene: Scene, kind: str, label: int, rng: random.Random, mentions: Sequence[str]
) -> BisonItem | None:
    """An item of the kind around `scene`, or None where the scene does not allow it."""
    place = rng.choice(list(scene.at))
    thing = scene.at[place]
    if kind == "place":
        empty = [other for other in PLACES if other not in scene.at]
        if not empty:
            return None
        other = scene.put(place, None).put(rng.choice(empty), thing)
    else:
        changed = {
            "color": lambda: replace(thing, color=_another(tuple(COLORS), thing.color, rng)),
            "shape": lambda: replace(thing, shape=_another(SHAPES, thing.shape, rng)),
            "size": lambda: replace(thing, size=_another(SIZES, thing.size, rng)),
        }[kind]()
        other = scene.put(place, changed)
    if other.split != scene.split:
        return None
    scenes = (scene, other) if label == 0 else (other, scene)
    lines = [check_thing(mention, s, thing, place)[0] for mention, s in zip(mentions, scenes, strict=True)]
    reasoning = " ".join([*lines, therefore(mentions[label])])
    return BisonItem(kind, bison_caption(thing, place, rng), scenes, label, reasoning)


def _another(options: Sequence[str], current: str, rng: random.Random) -> str:
    return rng.choice([option for option in options if option != current])


# --- NLVR2: is the statement true of the two images -----------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """A statement about a pair of scenes with its truth and the reasoning that shows it."""

    kind: str
    text: str
    truth: bool
    reasoning: str


StatementMaker = Callable[[tuple[Scene, Scene], random.Random], tuple[str, list[str], bool] | None]
_SIDES = (("the left image", "IMAGE#1"), ("the right image", "IMAGE#2"))
_IMAGE_1, _IMAGE_2 = image_mention(1), image_mention(2)


def _side(index: int, rng: random.Random) -> str:
    return rng.choice(_SIDES[index])


def _more(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool]:
    subject = rng.randrange(2)
    relation = rng.choice(("more", "fewer"))
    here, there = _side(subject, rng), _side(1 - subject, rng)
    text = rng.choice(
        (
            f"{here} has {relation} objects than {there}",
            f"there are {relation} objects in {here} than in {there}",
            f"compared with {there}, {here} shows {relation} objects",
        )
    )
    counts = [scenes[subject].count, scenes[1 - subject].count]
    truth = counts[0] > counts[1] if relation == "more" else counts[0] < counts[1]
    lines = [f"{image_mention(i + 1)} has {objects(scenes[i].count)}." for i in (subject, 1 - subject)]
    return (
        text,
        [*lines, f"{NUMBERS[counts[0]]} is {relation} than {NUMBERS[counts[1]]} {yes_no(truth)}."],
        truth,
    )


def _same_background(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool]:
    text = rng.choice(
        (
            "both images have the same background",
            "the two images share one background",
            "the background of IMAGE#1 is the same as that of IMAGE#2",
        )
    )
    first, second = (scene.background for scene in scenes)
    lines = [f"{_IMAGE_1} has {article(first)} background.", f"{_IMAGE_2} has {article(second)} background."]
    return text, [*lines, f"{second} is {first} {yes_no(first == second)}."], first == second


def _find_in_both(scenes: tuple[Scene, Scene], word: str) -> tuple[list[str], list[bool]]:
    lines, found = zip(
        *(find_word(image_mention(i + 1), scene, word) for i, scene in enumerate(scenes)), strict=True
    )
    return list(lines), list(found)


def _both(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool]:
    word = _shown_word(scenes, rng)
    a_word = article(noun(word))
    text = rng.choice(
        (
            f"both images show {a_word}",
            f"there is {a_word} in each of the two images",
            f"each image has {a_word}",
        )
    )
    lines, found = _find_in_both(scenes, word)
    return (
        text,
        [*lines, f"both {yes_no(found[0])} and {yes_no(found[1])} is {yes_no(all(found))}."],
        all(found),
    )


def _one_of(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool]:
    word = _shown_word(scenes, rng)
    a_word = article(noun(word))
    text = rng.choice(
        (
            f"exactly one of the images shows {a_word}",
            f"only one image has {a_word}",
            f"there is {a_word} in one image but not in the other",
        )
    )
    lines, found = _find_in_both(scenes, word)
    truth = found[0] != found[1]
    return text, [*lines, f"one of {yes_no(found[0])} and {yes_no(found[1])} is {yes_no(truth)}."], truth


def _total(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool]:
    counts = [scene.count for scene in scenes]
    total = sum(counts)
    claimed = total if rng.random() < 0.5 else min(max(2, total + rng.choice((-2, -1, 1, 2))), 12)
    text = rng.choice(
        (
            f"there are {objects(claimed)} in total",
            f"the two images show {objects(claimed)} together",
            f"{objects(claimed)} can be seen in both images together",
        )
    )
    lines = [f"{image_mention(i + 1)} has {objects(count)}." for i, count in enumerate(counts)]
    lines.append(f"{NUMBERS[counts[0]]} and {NUMBERS[counts[1]]} are {NUMBERS[total]}.")
    return (
        text,
        [*lines, f"{NUMBERS[total]} is {NUMBERS[claimed]} {yes_no(total == claimed)}."],
        total == claimed,
    )


def _has_thing(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool]:
    subject = rng.randrange(2)
    scene, here = scenes[subject], _side(subject, rng)
    place = rng.choice(list(scene.at))
    thing = scene.at[place]
    if rng.random() < 0.5:
        kind = rng.choice(("color", "shape", "size", "place"))
        if kind == "place":
            place = _another(PLACES, place, rng)
        else:
            options = {"color": tuple(COLORS), "shape": SHAPES, "size": SIZES}[kind]
            thing = replace(thing, **{kind: _another(options, getattr(thing, kind), rng)})
    a_thing = article(str(thing))
    text = rng.choice(
        (
            f"{here} has {a_thing} at the {place}",
            f"at the {place} of {here} there is {a_thing}",
            f"{a_thing} is at the {place} of {here}",
        )
    )
    line, truth = check_thing(image_mention(subject + 1), scene, thing, place)
    return text, [line], truth


def _same_at(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool] | None:
    places = [place for place in PLACES if place in scenes[0].at and place in scenes[1].at]
    if not places:
        return None
    place, attribute = rng.choice(places), rng.choice(("color", "shape", "size"))
    text = rng.choice(
        (
            f"the objects at the {place} have the same {attribute}",
            f"the {attribute} of the object at the {place} is the same in both images",
            f"at the {place} both images show the same {attribute}",
        )
    )
    first, second = (getattr(scene.at[place], attribute) for scene in scenes)
    lines = [f"{_IMAGE_1} at the {place}: {first}.", f"{_IMAGE_2} at the {place}: {second}."]
    return text, [*lines, f"{second} is {first} {yes_no(first == second)}."], first == second


def _count_of(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool]:
    subject = rng.randrange(2)
    scene, here = scenes[subject], _side(subject, rng)
    word = _shown_word((scene, scene), rng, absent=0.15)
    line, count = count_word(image_mention(subject + 1), scene, word)
    claimed = count if rng.random() < 0.5 else max(0, min(6, count + rng.choice((-1, 1, 1, 2))))
    things = f"{NUMBERS[claimed]} {noun(word)}" + ("" if claimed == 1 else "es" if word == "cross" else "s")
    text = rng.choice(
        (
            f"{here} has exactly {things}",
            f"there are exactly {things} in {here}",
            f"{things} can be seen in {here}",
        )
    )
    return (
        text,
        [line, f"{NUMBERS[count]} is {NUMBERS[claimed]} {yes_no(count == claimed)}."],
        count == claimed,
    )


_RELATIONS: dict[str, tuple[int, Callable[[int, int], bool]]] = {
    # words -> which part of a place ("top", "left") counts, and how its positions compare
    "above": (0, lambda a, b: a < b),
    "below": (0, lambda a, b: a > b),
    "left of": (1, lambda a, b: a < b),
    "right of": (1, lambda a, b: a > b),
}
_AXES = (("top", "bottom"), ("left", "middle", "right"))


def _relation(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, list[str], bool] | None:
    subject = rng.randrange(2)
    # "the left image" beside "left of" would read badly, so images go by their ids here.
    scene, here = scenes[subject], image_mention(subject + 1)
    unique = [word for word in (*COLORS, *SHAPES) if len(scene.places_with(word)) == 1]
    pairs = [(a, b) for a in unique for b in unique if scene.places_with(a) != scene.places_with(b)]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    place_a, place_b = scene.places_with(a)[0], scene.places_with(b)[0]
    relation = rng.choice(list(_RELATIONS))
    axis, compare = _RELATIONS[relation]
    part_a, part_b = (place.split("-")[axis] for place in (place_a, place_b))
    truth = compare(_AXES[axis].index(part_a), _AXES[axis].index(part_b))
    text = rng.choice(
        (
            f"in {here} the {noun(a)} is {relation} the {noun(b)}",
            f"the {noun(a)} is {relation} the {noun(b)} in {here}",
            f"{here} shows the {noun(a)} {relation} the {noun(b)}",
        )
    )
    lines = [locate_word(image_mention(subject + 1), scene, word)[0] for word in (a, b)]
    return text, [*lines, f"{part_a} is {relation} {part_b} {yes_no(truth)}."], truth


def _shown_word(scenes: tuple[Scene, Scene], rng: random.Random, absent: float = 0.25) -> str:
    """A color or shape, mostly one that stands in at least one of the scenes."""
    shown = sorted({word for scene in scenes for thing in scene.at.values() for word in thing.words[1:]})
    return rng.choice((*COLORS, *SHAPES)) if rng.random() < absent else rng.choice(shown)


STATEMENTS: dict[str, StatementMaker] = {
    "more": _more,
    "same_background": _same_background,
    "both": _both,
    "one_of": _one_of,
    "total": _total,
    "has_thing": _has_thing,
    "same_at": _same_at,
    "count_of": _count_of,
    "relation": _relation,
}


def statement(kind: str, scenes: tuple[Scene, Scene], rng: random.Random) -> Statement | None:
    """A statement of the kind about IMAGE#1 (left) and IMAGE#2 (right), or None where the scenes allow none."""
    made = STATEMENTS[kind](scenes, rng)
    if made is None:
        return None
    text, lines, truth = made
    return Statement(kind, text, truth, " ".join([*lines, therefore(str(truth).upper())]))
