"""Dialogue files and training files of the original, read and written as they are.

A dialogue file is a list of `{"dialogue": [{"role", "content", "images": [{"image_id", "caption"}]}, ...]}`,
with an `evaluation_id` in evaluation sets. A training file holds one record for each turn that is learnt:
`{"uniform_question", "instruction", "answer", "tgt_imgs"}`, where `instruction` is the whole prompt and
`tgt_imgs` lists its images in the order of their tags. Either may also be a dict of records, keyed by id.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sparkles.data.images import ImageError, ImageFolder
from sparkles.prompt_format import MINIGPT4, PromptFormatError, check_tags
from sparkles.types import Dialogue, Image, InputError, Message, Prompt, Sample

Record = dict[str, Any]
T = TypeVar("T")

_MAX_SHOWN = 10
"""Problems of one file that are spelled out; the rest are counted."""


class AnnotationError(InputError):
    """A file, or records in it, that cannot be read; the message names the file and each record."""


def read_dialogues(path: str | Path, images: ImageFolder | None = None) -> list[Dialogue]:
    """Dialogues of a file; with `images`, every image gets the path of its pixels.

    Raises:
        AnnotationError: names every record that is malformed or whose images are missing.
    """
    return _read(Path(path), lambda key, record: _parse_dialogue(key, record, images))


def read_samples(path: str | Path, images: ImageFolder | None = None) -> list[Sample]:
    """Samples of a per-turn training file.

    A record without `instruction` is a single turn that asks `uniform_question` (or else `question`), and
    `fix_answer` replaces `answer` where a record holds both, as in the original.

    Raises:
        AnnotationError: names every record that is malformed or whose images are missing.
    """
    return _read(Path(path), lambda key, record: _parse_sample(key, record, images))


def write_dialogues(path: str | Path, dialogues: Iterable[Dialogue]) -> None:
    """Write a dialogue file; `read_dialogues` gives the same dialogues again."""
    _write(Path(path), [_dialogue_record(dialogue) for dialogue in dialogues])


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write a per-turn training file; `read_samples` gives the same samples again."""
    _write(Path(path), [_sample_record(sample) for sample in samples])


def samples_of(dialogue: Dialogue) -> list[Sample]:
    """One sample for each answered turn: all that precedes the answer is its prompt."""
    return [
        Sample(
            prompt=Prompt(
                messages=dialogue.messages[:answer],
                item_id=f"{dialogue.dialogue_id}/turn{turn}" if dialogue.dialogue_id else "",
            ),
            answer=dialogue.messages[answer].content,
        )
        for turn, answer in enumerate(range(1, len(dialogue.messages), 2), start=1)
    ]


def split_by_images(
    dialogues: Iterable[Dialogue], turns: Collection[int] = (1, 2)
) -> dict[int, list[Sample]]:
    """Samples of the chosen turns (counted from 1) by the number of images in their prompt.

    These are the original's training files: `turns=(2,)` and 3 images is its `..._turn2_3img.json`.
    """
    by_images: defaultdict[int, list[Sample]] = defaultdict(list)
    for dialogue in dialogues:
        for turn, sample in enumerate(samples_of(dialogue), start=1):
            if turn in turns:
                by_images[len(sample.images)].append(sample)
    return dict(sorted(by_images.items()))


def _read(path: Path, parse: Callable[[int | str, Record], T]) -> list[T]:
    values: list[T] = []
    problems: list[str] = []
    for key, record in _records(path):
        try:
            values.append(parse(key, record))
        except (AnnotationError, PromptFormatError, ImageError) as error:
            problems.append(f"{path}, record {key}: {error}")
    if len(problems) > _MAX_SHOWN:
        problems[_MAX_SHOWN:] = [f"... and {len(problems) - _MAX_SHOWN} more such records in {path}"]
    if problems:
        raise AnnotationError("\n".join(problems))
    return values


def _records(path: Path) -> Iterator[tuple[int | str, Record]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such file; make the data first or correct the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path}: not JSON in UTF-8: {error}") from error
    if not isinstance(content, list | dict):
        raise AnnotationError(
            f"{path}: got a {type(content).__name__}, expected a list of records or a dict of them by id"
        )
    yield from content.items() if isinstance(content, dict) else enumerate(content)


def _parse_dialogue(key: int | str, record: Record, images: ImageFolder | None) -> Dialogue:
    messages = tuple(_parse_message(entry, images) for entry in _field(record, "dialogue", kind=list))
    for index, message in enumerate(messages):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            raise AnnotationError(
                f"message {index} has role {message.role!r}, expected {expected!r}: "
                "roles alternate and begin with 'user'"
            )
        check_tags(message.content, message.images, f"message {index}")
    return Dialogue(messages=messages, dialogue_id=_identity(key, record, "evaluation_id"))


def _parse_message(entry: Record, images: ImageFolder | None) -> Message:
    return Message(
        role=_field(entry, "role"),
        content=_field(entry, "content"),
        images=_parse_images(_field(entry, "images", kind=list) if "images" in entry else [], images),
    )


def _parse_sample(key: int | str, record: Record, images: ImageFolder | None) -> Sample:
    pictures = _parse_images(_field(record, "tgt_imgs", kind=list), images)
    if "instruction" in record:
        messages = MINIGPT4.parse_prompt(_field(record, "instruction"), pictures)
    else:
        question = _field(record, "uniform_question", "question")
        check_tags(question, pictures, "question")
        messages = (Message(role="user", content=question, images=pictures),)
    prompt = Prompt(messages=messages, item_id=_identity(key, record, "sample_id"))
    return Sample(prompt=prompt, answer=_field(record, "fix_answer", "answer"))


def _parse_images(entries: list[Record], images: ImageFolder | None) -> tuple[Image, ...]:
    return tuple(
        Image(
            image_id=(image_id := _field(entry, "image_id", kind=(int, str))),
            caption=entry.get("caption", ""),
            path=images.find(image_id) if images else None,
        )
        for entry in entries
    )


def _identity(key: int | str, record: Record, field: str) -> str:
    """The record's own id, else the key it stands under; a place in a list is no id."""
    return str(record.get(field, key if isinstance(key, str) else ""))


def _field(record: Record, *keys: str, kind: type | tuple[type, ...] = str) -> Any:
    """The value of the first of `keys` that the record has, checked to be of `kind`."""
    if not isinstance(record, dict):
        raise AnnotationError(f"got {record!r:.60}, expected an object with {' or '.join(map(repr, keys))}")
    for key in keys:
        if key in record:
            if not isinstance(record[key], kind):
                kinds = kind if isinstance(kind, tuple) else (kind,)
                raise AnnotationError(
                    f"{key!r} is {record[key]!r:.60}, expected {' or '.join(k.__name__ for k in kinds)}"
                )
            return record[key]
    raise AnnotationError(
        f"no {' or '.join(map(repr, keys))}; the record has {', '.join(map(repr, record)) or 'no fields'}"
    )


def _dialogue_record(dialogue: Dialogue) -> Record:
    messages = []
    for message in dialogue.messages:
        entry: Record = {"role": message.role, "content": message.content}
        if message.role == "user":
            entry["images"] = _image_records(message.images)
        messages.append(entry)
    record: Record = {"dialogue": messages}
    if dialogue.dialogue_id:
        # The original numbers its evaluation items, so a number is written as one.
        is_number = dialogue.dialogue_id.isascii() and dialogue.dialogue_id.isdecimal()
        number = int(dialogue.dialogue_id) if is_number else None
        same = str(number) == dialogue.dialogue_id  # false for "007", which stays text
        record["evaluation_id"] = number if same else dialogue.dialogue_id
    return record


def _sample_record(sample: Sample) -> Record:
    messages = sample.prompt.messages
    record: Record = {
        "uniform_question": messages[-1].content,
        "instruction": MINIGPT4.render_prompt(messages, system=False) + MINIGPT4.answer_prefix,
        "answer": sample.answer,
        "tgt_imgs": _image_records(sample.images),
    }
    if sample.prompt.item_id:
        record["sample_id"] = sample.prompt.item_id
    return record


def _image_records(images: Iterable[Image]) -> list[Record]:
    return [{"image_id": image.image_id, "caption": image.caption} for image in images]


def _write(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
