"""The formats in which training data is published: each reader turns one record of a file into samples.

The original's own files are `TrainingFile` and `DialogueFile`. Others describe single images and do not say where
in the question the image stands: `CaptionFile`, `LlavaFile` and `SvitFile` put it there, by seed, in words of ours.
"""

import random
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from sparkles.data.annotations import (
    AnnotationError,
    Key,
    Record,
    check_messages,
    get_field,
    identity,
    parse_dialogue,
    parse_sample,
    read_file,
    report,
    samples_of,
)
from sparkles.data.images import IMAGE_PATTERNS, ImageFolder
from sparkles.prompt_format import IMAGE_TAG, image_reference
from sparkles.types import Dialogue, Image, InputError, Message, Prompt, Role, Sample

MENTIONS = (
    "{image}: {question}",
    "Look at {image}. {question}",
    "This is about {image}. {question}",
    "{stem} in {image}{end}",
    "{question} See {image}.",
    "{question} I ask about {image}.",
)
"""Ways to bring an image into a question that does not speak of one; `question` is `stem` + `end`."""

_MENTION_FIELDS = (["image", "question"], ["end", "image", "stem"])
_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_LLAVA_IMAGE = "<image>"
_THE_IMAGE = re.compile(r"\b(the|this) (image|picture|photo|photograph)\b", re.IGNORECASE)


class Reader(Protocol):
    """Knows one format."""

    def parse(self, key: Key, record: Record) -> list[Sample]:
        """The samples of a record, whose images have no paths yet.

        Raises:
            AnnotationError: the record is not as the format says.
            PromptFormatError: its tags do not match its images, or are the assistant's.
        """
        ...


@dataclass(frozen=True)
class TrainingFile:
    """The original's training file: a record is one turn with all that precedes it."""

    def parse(self, key: Key, record: Record) -> list[Sample]:
        return parse_sample(key, record)


@dataclass(frozen=True, kw_only=True)
class DialogueFile:
    """The original's dialogue file: a sample for each answered turn, of any number of turns."""

    turns: Sequence[int] | None = None
    """Those to learn, counted from 1; None for all."""

    def parse(self, key: Key, record: Record) -> list[Sample]:
        (dialogue,) = parse_dialogue(key, record)
        samples = _learnable(dialogue)
        return [
            sample for turn, sample in enumerate(samples, start=1) if self.turns is None or turn in self.turns
        ]


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """MiniGPT-4's second stage (`filter_cap.json`): `{"image_id", "caption"}`, which a question is put before."""

    questions: Sequence[str]
    """One is drawn for each record; `{image}` becomes the image's tag, without an id, as MiniGPT-4 has none."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check_templates("questions", self.questions, ["image"])

    def parse(self, key: Key, record: Record) -> list[Sample]:
        caption = get_field(record, "caption")
        image = Image(image_id=get_field(record, "image_id", kind=(int, str)), caption=caption)
        question = _chooser(self.seed, key).choice(self.questions).format(image=IMAGE_TAG)
        return _samples([question, caption], (image,), identity(key, record, "image_id"))


@dataclass(frozen=True, kw_only=True)
class LlavaFile:
    """LLaVA's instructions: `{"id", "image", "conversations": [{"from": "human" or "gpt", "value"}, ...]}`.

    `id` names the image. A record without `image` is text only.
    """

    mentions: Sequence[str] = MENTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        _check_templates("mentions", self.mentions, *_MENTION_FIELDS)

    def parse(self, key: Key, record: Record) -> list[Sample]:
        name = identity(key, record, "id")
        question, *others = _texts(get_field(record, "conversations", kind=list))
        question = question.replace(_LLAVA_IMAGE, "", 1).strip()
        if "image" not in record:
            return _samples([question, *others], (), name)
        image = Image(image_id=get_field(record, "id", kind=(int, str)))
        question = mention(question, image, self.mentions, _chooser(self.seed, key))
        return _samples([question, *others], (image,), name)


@dataclass(frozen=True, kw_only=True)
class SvitFile:
    """SVIT: `{"image_id", "conversations": [{"content": [{"from": "user" or "gpt", "value"}, ...]}, ...]}`.

    The conversations of a record are independent of each other.
    """

    mentions: Sequence[str] = MENTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        _check_templates("mentions", self.mentions, *_MENTION_FIELDS)

    def parse(self, key: Key, record: Record) -> list[Sample]:
        image = Image(image_id=get_field(record, "image_id", kind=(int, str)))
        chooser = _chooser(self.seed, key)
        samples = []
        for conversation in get_field(record, "conversations", kind=list):
            question, *others = _texts(get_field(conversation, "content", kind=list))
            question = mention(question, image, self.mentions, chooser)
            samples += _samples([question, *others], (image,), identity(key, record, "image_id"))
        return samples


def read_captions(
    path: Path, images: Path | None = None, patterns: Sequence[str] = IMAGE_PATTERNS
) -> list[Image]:
    """The images of a file with their captions, for those who see nothing else.

    It holds `image_id` and `caption` (`filter_cap.json` of cc_sbu_align, or any CSV, JSONL or JSON with these two),
    or is of LLaVA or SVIT, whose first answers are the captions.

    Args:
        images: folder of their pictures, which are then looked for by `patterns`.

    Raises:
        AnnotationError: names every record that is malformed or whose image is missing.
    """
    folder = ImageFolder(Path(images), patterns) if images else None
    reading = read_file(Path(path), _captioned, folder)
    if reading.problems:
        raise AnnotationError(report([reading]))
    return [replace(sample.images[0], caption=sample.answer) for sample in reading.values]


def _captioned(key: Key, record: Record) -> list[Sample]:
    """A sample that shows the record's image and nothing else; its answer describes it."""
    if "conversations" not in record:
        name, text = "image_id", get_field(record, "caption")
    else:
        name = "id" if "id" in record else "image_id"
        entries = get_field(record, "conversations", kind=list)
        if name == "image_id":  # SVIT's are several, of which the first describes
            entries = get_field(entries[0] if entries else {}, "content", kind=list)
        _, text, *_ = [*_texts(entries), ""]
    image = Image(image_id=get_field(record, name, kind=(int, str)))
    question = Message(role="user", content=IMAGE_TAG, images=(image,))
    return [Sample(prompt=Prompt(messages=(question,)), answer=text)]


def mention(question: str, image: Image, mentions: Sequence[str], chooser: random.Random) -> str:
    """The question with its image: in place of its first "the image", or else as one of `mentions` says.

    >>> mention("What is odd about this image?", Image(image_id=7), MENTIONS, random.Random(0))
    'What is odd about IMAGE#7<Img><ImageHere></Img>?'
    >>> mention("Who won?", Image(image_id=7), ["{stem} in {image}{end}"], random.Random(0))
    'Who won in IMAGE#7<Img><ImageHere></Img>?'
    """
    reference = image_reference(image.image_id)
    replaced, found = _THE_IMAGE.subn(lambda _: reference, question, count=1)
    if found:
        return replaced
    stem = question.rstrip("?!. ")
    fields = {"question": question, "stem": stem, "end": question[len(stem) :], "image": reference}
    return chooser.choice(mentions).format(**fields)


def _texts(entries: list[Record]) -> list[str]:
    """What user and assistant say in turns."""
    for index, entry in enumerate(entries):
        expected = "assistant" if index % 2 else "user"
        if _ROLES.get(speaker := get_field(entry, "from")) != expected:
            raise AnnotationError(f"message {index} is from {speaker!r}, expected the {expected}")
    if not entries:
        raise AnnotationError("no messages, expected a question and its answer")
    return [get_field(entry, "value") for entry in entries]


def _samples(texts: Sequence[str], images: tuple[Image, ...], name: str) -> list[Sample]:
    """Samples of a dialogue whose first message shows the images."""
    question, *others = texts
    messages = [Message(role="user", content=question, images=images)]
    for index, text in enumerate(others):
        messages.append(Message(role="user" if index % 2 else "assistant", content=text))
    check_messages(messages)
    return _learnable(Dialogue(messages=tuple(messages), dialogue_id=name))


def _learnable(dialogue: Dialogue) -> list[Sample]:
    samples = samples_of(dialogue)
    if not samples:
        raise AnnotationError("no turn with an answer, so there is nothing to learn")
    return samples


def _chooser(seed: int, key: Key) -> random.Random:
    """Draws for one record, whatever was drawn for those before it."""
    return random.Random(f"{seed}/{key}")


def _check_templates(name: str, templates: Sequence[str], *allowed: list[str]) -> None:
    """Raise InputError unless there are templates, each with just one of the `allowed` lists of fields."""
    spelled = " or ".join(" ".join(f"{{{field}}}" for field in fields) for fields in allowed)
    if not templates:
        raise InputError(f"reader.{name} is empty; give at least one text with {spelled}")
    for template in templates:
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
        except ValueError as error:
            raise InputError(f"reader.{name}: {template!r}: {error}; write {{{{ for a brace") from error
        if sorted(fields) not in allowed:
            raise InputError(
                f"reader.{name}: {template!r}, expected a text with {spelled}, each of them once"
            )
