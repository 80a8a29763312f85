"""What a page consists of: dialogues with pictures between the words, and the one file that holds all of it.

Models and users wrote what pages show. So all text is escaped, the page may load nothing and run nothing but the script
that it came with, and text whose direction is turned around turns nothing beside it.
"""

import base64
import hashlib
import io
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from math import isqrt
from typing import Literal, TypeVar

import PIL.Image
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.progress import track

from sparkles.data.images import ImageError, load_image
from sparkles.prompt_format import IMAGE_TAG, image_mention, referenced_ids, trailing_id
from sparkles.types import Image, Message

LONGEST_SIDE, SHORTEST_SIDE = 512, 160
"""Pixels of a picture's longest side, on a page with few pictures and on one with very many."""
PAGE_PIXELS = 100_000_000
"""Of all pictures together; about 25 MB of photographs."""
TINY = 128
"""Pixels up to which a picture is stored exactly: it is small anyway, and will be looked at enlarged."""
LONG_TEXT = 2_500
"""Characters from which an answer scrolls in a box of its own."""

Outcome = Literal["right", "wrong", "unscored"]
T = TypeVar("T")


class Album:
    """The pictures of a page, each stored once however often it is shown: as a CSS class that holds its pixels.

    A browser decodes those alone that are on the screen, and needs no script for it.

    Args:
        load: gives the pixels, or raises ImageError. Pictures are told apart by path, even where none lies there.
    """

    def __init__(
        self,
        images: Iterable[Image],
        *,
        load: Callable[[Image], PIL.Image.Image] = load_image,
        progress: bool = False,
    ) -> None:
        wanted = {(image.path, image.box): image for image in images if image.path}
        side = max(SHORTEST_SIDE, min(LONGEST_SIDE, isqrt(PAGE_PIXELS // (len(wanted) or 1))))
        self._names: dict[tuple[object, object], str] = {}
        self._stored: dict[tuple[bytes, float], str] = {}
        with ThreadPoolExecutor() as pool:  # Pillow works outside of Python's lock
            encoded = pool.map(partial(_encode, load=load, side=side), wanted.values())
            shown = track(encoded, "pictures", total=len(wanted), transient=True, disable=not progress)
            for key, found in zip(wanted, shown, strict=True):
                if found:
                    self._names[key] = self._stored.setdefault(found, f"p{len(self._stored)}")

    def find(self, image: Image) -> str:
        """The class of a picture; "" for one that has no file or cannot be read: a page is worth having without it."""
        return self._names.get((image.path, image.box), "")

    @property
    def style(self) -> Markup:
        """The CSS rules of all pictures."""
        return Markup(
            "\n".join(
                f".{name}{{--ratio:{ratio:.3f};"
                f"--pixels:url(data:image/webp;base64,{base64.b64encode(pixels).decode('ascii')})}}"
                for (pixels, ratio), name in self._stored.items()
            )
        )


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture at its place in a sentence."""

    mention: str
    """As the text spells it, such as IMAGE#7."""
    caption: str
    name: str
    """Its CSS class, see `Album.find`."""


@dataclass(frozen=True)
class Mention:
    """A place where the text speaks of a picture that is shown elsewhere in the same dialogue."""

    text: str


Text = tuple[str | Picture | Mention, ...]


@dataclass(frozen=True, kw_only=True)
class Try:
    """One of several responses to the same question."""

    response: Text
    facts: str = ""


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A judge's score, 1 to 10, of one answer by one criterion."""

    criterion: str
    score: float
    reason: Text = ()
    members: Mapping[str, float] | None = None
    """The scores of an ensemble's judges, by name."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A question and what was answered."""

    question: Text
    answer: Text | None
    """None where the dialogue ends with the question."""
    facts: str = ""
    earlier: tuple[Try, ...] = ()
    """Tries that did not become the answer."""
    ratings: tuple[Rating, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Item:
    """One dialogue as a page shows it, and what can be filtered by."""

    item_id: str
    turns: tuple[Turn, ...]
    kind: str = ""
    outcome: Outcome | Literal[""] = ""
    verdict: str = ""
    """In a word or two."""
    note: str = ""
    score: float | None = None
    """1 to 10."""

    @property
    def captions(self) -> dict[str, str]:
        """Ground truth by mention, for the reader only."""
        pictures = (part for turn in self.turns for part in turn.question if isinstance(part, Picture))
        return {picture.mention: picture.caption for picture in pictures if picture.caption}


class Speech:
    """Turns the text of one dialogue into parts: pictures in place of their tags, mentions that can be pointed at."""

    def __init__(self, messages: Sequence[Message], album: Album) -> None:
        self.messages = messages
        self._album = album
        ids = {
            name
            for message in messages
            if message.images
            for name in (*referenced_ids(message.content), *(image.image_id for image in message.images))
        }
        mentions = set(map(image_mention, ids))
        spelled = "|".join(re.escape(mention) for mention in sorted(mentions, key=len, reverse=True))
        self._mention = re.compile(rf"({spelled})(?!\w)") if mentions else None

    def turns(self) -> Iterator[Turn]:
        for question, answer in zip_longest(self.messages[::2], self.messages[1::2]):
            yield Turn(
                question=self.parts(question.content, question.images),
                answer=None if answer is None else self.parts(answer.content),
            )

    def parts(self, text: str, images: Sequence[Image] = ()) -> Text:
        """The text with each image tag, and the mention in front of it, replaced by the picture.

        A dialogue with more tags than images is still shown: such a tag stays in the text.
        """
        parts: list[str | Picture | Mention] = []
        *segments, last = text.split(IMAGE_TAG)
        for segment, image in zip_longest(segments, images[: len(segments)]):
            if image is None:
                parts += self._linked(segment + IMAGE_TAG)
                continue
            mention = image_mention(trailing_id(segment) or image.image_id)
            parts += self._linked(segment.removesuffix(mention))
            parts.append(Picture(mention=mention, caption=image.caption, name=self._album.find(image)))
        return (*parts, *self._linked(last))

    def _linked(self, text: str) -> Iterator[str | Mention]:
        pieces = self._mention.split(text) if self._mention else [text]
        for index, piece in enumerate(pieces):
            if piece:
                yield Mention(piece) if index % 2 else piece


def draw(values: Sequence[T], num: int | None, seed: int = 0) -> list[T]:
    """`num` of the values, drawn by `seed`, in their order; all of them for None or where there are no more."""
    if num is None or num >= len(values):
        return list(values)
    return [values[index] for index in sorted(random.Random(seed).sample(range(len(values)), num))]


def render(template: str, *, album: Album, **values: object) -> str:
    """The page that a template of `sparkles.pages` makes of `values`."""
    environment = Environment(
        loader=PackageLoader("sparkles.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests |= {
        "picture": lambda part: isinstance(part, Picture),
        "mention": lambda part: isinstance(part, Mention),
    }
    environment.filters["tally"] = tally
    script = environment.get_template("page.js").render()
    environment.globals |= {
        "script": Markup(script),
        # A hash and not a nonce: the same run makes the same file.
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "album": album,
        "long_text": LONG_TEXT,
    }
    page = environment.get_template(template).render(values)
    return page.encode("utf-8", "replace").decode()  # halves of characters, which JSON can hold and no file


def tally(items: Iterable[Item], attribute: str) -> dict[str, int]:
    """How many items have each value of an attribute, sorted by value; without those that have none."""
    counts: dict[str, int] = {}
    for item in items:
        if value := getattr(item, attribute):
            counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items()))


def _encode(
    image: Image, *, load: Callable[[Image], PIL.Image.Image], side: int
) -> tuple[bytes, float] | None:
    """The picture, scaled down to `side`, as WebP, and its width over its height; None when unreadable."""
    try:
        picture = load(image)
    except ImageError:
        return None
    exact = max(picture.size) <= TINY
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=exact, quality=82, method=2)
    return buffer.getvalue(), picture.width / picture.height
