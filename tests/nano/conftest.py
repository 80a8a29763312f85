"""A small world on disk, a tokenizer of its language, and an oracle that reads statements on its own."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from transformers import PreTrainedTokenizerBase

from sparkles.nano import dataset
from sparkles.nano.corpus import random_conversation
from sparkles.nano.language import NUMBERS
from sparkles.nano.tokenizer import build_tokenizer
from sparkles.nano.world import COLORS, PLACES, SHAPES, SIZES, Scene, Thing
from sparkles.prompt_format import SYSTEM_MESSAGE

settings.register_profile("nano", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("nano")

SIZES_ON_DISK = dataset.Sizes(
    cc_dialogues=60,
    vg_dialogues=20,
    single_images=15,
    captions=20,
    validation_dialogues=4,
    benchmark_items=72,  # whole rounds of BISON's 4 kinds and NLVR2's 9 types, each with both labels
)


@pytest.fixture(scope="session")
def world_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset.ensure(tmp_path_factory.mktemp("world") / "scenes", seed=1, sizes=SIZES_ON_DISK)


@pytest.fixture(scope="session")
def nano_tokenizer() -> PreTrainedTokenizerBase:
    rng = random.Random(5)
    texts = [message.content for _ in range(600) for message in random_conversation(rng).messages]
    return build_tokenizer([SYSTEM_MESSAGE, *texts])


@pytest.fixture
def two_scenes() -> dict[str, Scene]:
    """Images 7 and 9, which have nothing in common."""
    return {
        "7": Scene(
            "dark", (Thing("big", "red", "star"), None, None, None, None, Thing("small", "blue", "ring"))
        ),
        "9": Scene(
            "dotted",
            (
                Thing("small", "green", "cross"),
                Thing("big", "pink", "circle"),
                Thing("big", "yellow", "square"),
            )
            + (None,) * 3,
        ),
    }


# --- the oracle -----------------------------------------------------------------------------------------------

_NUMBERS = {word: number for number, word in enumerate(NUMBERS)}
_FIELDS = {
    "a": r"the left image|the right image|IMAGE#1|IMAGE#2",
    "b": r"the left image|the right image|IMAGE#1|IMAGE#2",
    "n": "|".join(_NUMBERS),
    "place": "|".join(PLACES),
    "size": "|".join(SIZES),
    "color": "|".join(COLORS),
    "shape": "|".join(SHAPES),
    "attribute": "size|color|shape",
    "more": "more|fewer",
    "side": "above|below|left of|right of",
    "word": "|".join((*COLORS, *SHAPES)),
    "other": "|".join((*COLORS, *SHAPES)),
}
# {x} is one of the fields above, ~x a noun: "red object", "star", "crosses".
_PHRASINGS = {
    "more": (
        "{a} has {more} objects than {b}",
        "there are {more} objects in {a} than in {b}",
        "compared with {b}, {a} shows {more} objects",
    ),
    "same_background": (
        "both images have the same background",
        "the two images share one background",
        "the background of IMAGE#1 is the same as that of IMAGE#2",
    ),
    "both": (
        "both images show an? ~word",
        "there is an? ~word in each of the two images",
        "each image has an? ~word",
    ),
    "one_of": (
        "exactly one of the images shows an? ~word",
        "only one image has an? ~word",
        "there is an? ~word in one image but not in the other",
    ),
    "total": (
        "there are {n} objects? in total",
        "the two images show {n} objects? together",
        "{n} objects? can be seen in both images together",
    ),
    "has_thing": (
        "{a} has a {size} {color} {shape} at the {place}",
        "at the {place} of {a} there is a {size} {color} {shape}",
        "a {size} {color} {shape} is at the {place} of {a}",
    ),
    "same_at": (
        "the objects at the {place} have the same {attribute}",
        "the {attribute} of the object at the {place} is the same in both images",
        "at the {place} both images show the same {attribute}",
    ),
    "count_of": (
        "{a} has exactly {n} ~word",
        "there are exactly {n} ~word in {a}",
        "{n} ~word can be seen in {a}",
    ),
    "relation": (
        "in {a} the ~word is {side} the ~other",
        "the ~word is {side} the ~other in {a}",
        "{a} shows the ~word {side} the ~other",
    ),
}


def _regex(template: str) -> re.Pattern[str]:
    with_nouns = re.sub(r"~(\w+)", r"{\1}(?: objects?|e?s)?", template)
    return re.compile(re.sub(r"\{(\w+)\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]]})", with_nouns))


_TEMPLATES = [(kind, template, _regex(template)) for kind, ts in _PHRASINGS.items() for template in ts]


def read_statement(text: str, scenes: tuple[Scene, Scene]) -> tuple[str, str, bool]:
    """Type of a statement, the phrasing it is in, and whether it is true; by its words and the scenes alone."""
    ((kind, template, match),) = [
        (kind, template, match) for kind, template, regex in _TEMPLATES if (match := regex.fullmatch(text))
    ]
    return kind, template, _holds(kind, match.groupdict(), scenes)


def _holds(kind: str, said: dict[str, str], scenes: tuple[Scene, Scene]) -> bool:
    drawn = [[thing for thing in scene.things if thing] for scene in scenes]
    sides = {"the left image": 0, "IMAGE#1": 0, "the right image": 1, "IMAGE#2": 1}
    here = sides[said["a"]] if "a" in said else 0
    number = _NUMBERS[said["n"]] if "n" in said else 0

    def shown(image: int) -> int:
        return sum(said["word"] in (thing.color, thing.shape) for thing in drawn[image])

    def position(word: str) -> tuple[int, int]:
        (index,) = (i for i, t in enumerate(scenes[here].things) if t and word in (t.color, t.shape))
        return divmod(index, 3)

    if kind == "more":
        assert sides[said["b"]] == 1 - here
        first, second = len(drawn[here]), len(drawn[1 - here])
        return first > second if said["more"] == "more" else first < second
    if kind == "same_background":
        return scenes[0].background == scenes[1].background
    if kind == "both":
        return bool(shown(0) and shown(1))
    if kind == "one_of":
        return bool(shown(0)) != bool(shown(1))
    if kind == "total":
        return len(drawn[0]) + len(drawn[1]) == number
    if kind == "has_thing":
        wanted = Thing(said["size"], said["color"], said["shape"])
        return scenes[here].things[PLACES.index(said["place"])] == wanted
    if kind == "same_at":
        compared = [getattr(scene.things[PLACES.index(said["place"])], said["attribute"]) for scene in scenes]
        return compared[0] == compared[1]
    if kind == "count_of":
        return shown(here) == number
    (row, column), (other_row, other_column) = position(said["word"]), position(said["other"])
    return {
        "above": row < other_row,
        "below": row > other_row,
        "left of": column < other_column,
        "right of": column > other_column,
    }[said["side"]]


@pytest.fixture(scope="session")
def oracle() -> Callable[[str, tuple[Scene, Scene]], tuple[str, str, bool]]:
    return read_statement
