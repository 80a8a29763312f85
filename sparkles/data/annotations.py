"""Dialogue files and training files of the original, read and written as they are.

A dialogue file is a list of `{"dialogue": [{"role", "content", "images": [{"image_id", "caption"}]}, ...]}`,
with an `evaluation_id` in evaluation sets. A training file holds one record for each turn that is learnt:
`{"uniform_question", "instruction", "answer", "tgt_imgs"}`, where `instruction` is the whole prompt and
`tgt_imgs` lists its images in the order of their tags. Either may also be a dict of records, keyed by id, or JSON
lines (`.jsonl`); records without lists may be a table (`.csv`).
Other fields are not read, such as `raw`, in which a dialogue file keeps the request and reply it came from.
"""

import csv
import json
import re
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TextIO, TypeVar

from sparkles.data.images import ImageError, ImageFolder, MissingImageError
from sparkles.prompt_format import MINIGPT4, PromptFormatError, check_message
from sparkles.types import Dialogue, Image, InputError, Message, Prompt, Sample

Record = dict[str, Any]
Key = int | str
"""Where a record stands: its index in a list, or its key in a dict."""
T = TypeVar("T", Dialogue, Sample)

MAX_SHOWN = 10
"""Problems of one file, and missing images of one folder, that are spelled out; the rest are counted."""
_CHUNK = 1 << 20
"""Characters of a file that are read at a time."""
_NO_SPACE = re.compile(r"[^ \t\n\r]")
_SEPARATOR = re.compile(r"[ \t\n\r]*[,\]]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")


class AnnotationError(InputError):
    """A file, or records in it, that cannot be read; the message names the file and each record."""


class _MissingImagesError(AnnotationError):
    """Images of one record that are not there, by id."""

    def __init__(self, errors: dict[Key, MissingImageError]) -> None:
        first, *others = errors
        also = f" (nor is image {', '.join(map(str, others))})" if others else ""
        super().__init__(f"{errors[first]}{also}")
        self.image_ids = list(errors)


class Check(Protocol):
    """Looks for bad records while work goes on."""

    def done(self) -> bool: ...

    def result(self) -> list[str]:
        """The first problems, for which it waits."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[T]):
    """What came of a file: the values of its good records, and what is wrong with the others."""

    path: Path
    values: Sequence[T]
    num_records: int
    problems: list[str]
    """One for each bad record, which has no values."""
    folder: Path | None = None
    missing: tuple[Key, ...] = ()
    """Ids of the images that `folder` lacks, each once."""
    image_ids: frozenset[str] = frozenset()
    """Of the images of all values; none are known before `check` has ended."""
    check: Check | None = None
    """Comes to know the first problems, where values are given before they have been checked."""


def read_file(
    path: Path, parse: Callable[[Key, Record], Iterable[T]], images: ImageFolder | None = None
) -> Reading[T]:
    """What `parse` makes of each record; with `images`, every image gets the path of its pixels.

    Raises:
        AnnotationError: the file is missing, is not JSON, or holds no records. Bad records do not raise.
    """
    values: list[T] = []
    problems: list[str] = []
    missing: dict[Key, None] = {}
    image_ids: set[str] = set()
    num_records = 0
    for key, record, _ in records(path):
        num_records += 1
        try:
            found = located(parse(key, record), images) if images else parse(key, record)
        except (AnnotationError, PromptFormatError, ImageError) as error:
            problems.append(f"{path}, record {key}: {error}")
            if isinstance(error, _MissingImagesError):
                missing |= dict.fromkeys(error.image_ids)
        else:
            for value in found:
                values.append(value)
                image_ids.update(str(image.image_id) for image in value.images)
    return Reading(
        path=path,
        values=values,
        num_records=num_records,
        problems=problems,
        folder=images.root if images else None,
        missing=tuple(missing),
        image_ids=frozenset(image_ids),
    )


def bad_records(
    path: Path, parse: Callable[[Key, Record], Iterable[Sample]], images: ImageFolder
) -> Iterator[str]:
    """What is wrong with each bad record, as `read_file` tells it, without keeping the others."""
    for key, record, _ in records(path):
        try:
            located(parse(key, record), images)
        except (AnnotationError, PromptFormatError, ImageError) as error:
            yield f"{path}, record {key}: {error}"


def report(readings: Iterable[Reading[Any]]) -> str:
    """The first problems of each file, how many more there are, and which images each folder lacks."""
    lines: list[str] = []
    missing: defaultdict[Path | None, dict[Key, None]] = defaultdict(dict)
    for reading in readings:
        lines += reading.problems[:MAX_SHOWN]
        if (unseen := len(reading.problems) - MAX_SHOWN) > 0:
            lines.append(f"... and {unseen} more such records in {reading.path}")
        missing[reading.folder] |= dict.fromkeys(reading.missing)
    for folder, image_ids in missing.items():
        if image_ids:
            shown = ", ".join(map(str, list(image_ids)[:MAX_SHOWN]))
            dots = ", ..." if len(image_ids) > MAX_SHOWN else ""
            lines.append(f"{folder} lacks {len(image_ids)} of the images in use: {shown}{dots}")
    return "\n".join(lines)


def read_dialogues(path: str | Path, images: ImageFolder | None = None) -> list[Dialogue]:
    """Dialogues of a file; with `images`, every image gets the path of its pixels.

    Raises:
        AnnotationError: names every record that is malformed or whose images are missing.
    """
    return _values(read_file(Path(path), parse_dialogue, images))


def read_samples(path: str | Path, images: ImageFolder | None = None) -> list[Sample]:
    """Samples of a per-turn training file.

    A record without `instruction` is a single turn that asks `uniform_question` (or else `question`), and
    `fix_answer` replaces `answer` where a record holds both, as in the original.

    Raises:
        AnnotationError: names every record that is malformed or whose images are missing.
    """
    return _values(read_file(Path(path), parse_sample, images))


def write_dialogues(path: str | Path, dialogues: Iterable[Dialogue]) -> None:
    """Write a dialogue file; `read_dialogues` gives the same dialogues again, but for the paths of images.

    Raises:
        AnnotationError, PromptFormatError: a dialogue could not be read again, see `check_messages`.
    """
    _write(Path(path), [dialogue_record(dialogue) for dialogue in dialogues])


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """Write a per-turn training file; `read_samples` gives the same samples again, but for the paths of images.

    Raises:
        AnnotationError, PromptFormatError: a sample could not be read again, see `check_messages`; or its text
            holds what separates messages.
    """
    _write(Path(path), [sample_record(sample) for sample in samples])


def write_training_files(folder: Path, name: str, dialogues: Sequence[Dialogue]) -> list[Path]:
    """Write `<name>.json`, the dialogue file, and the original's training files by turn and number of images.

    Returns the files. Raises as `write_dialogues` and `write_samples` do.
    """
    paths = [folder / f"{name}.json"]
    write_dialogues(paths[0], dialogues)
    for turn in range(1, max((dialogue.num_turns for dialogue in dialogues), default=0) + 1):
        for num_images, samples in split_by_images(dialogues, turns=(turn,)).items():
            paths.append(folder / f"{name}_turn{turn}_{num_images}img.json")
            write_samples(paths[-1], samples)
    return paths


def unwritable(dialogue: Dialogue) -> str:
    """Why a dialogue cannot be written and read again, "" if it can: what a model writes may hold separators."""
    try:
        records = [dialogue_record(dialogue), *map(sample_record, samples_of(dialogue))]
        json.dumps(records, ensure_ascii=False).encode()
    except (AnnotationError, PromptFormatError, UnicodeEncodeError) as error:
        return str(error)
    return ""


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


def parse_dialogue(key: Key, record: Record) -> list[Dialogue]:
    """The one dialogue of a record of a dialogue file."""
    messages = tuple(_parse_message(entry) for entry in get_field(record, "dialogue", kind=list))
    check_messages(messages)
    return [Dialogue(messages=messages, dialogue_id=identity(key, record, "evaluation_id"))]


def parse_sample(key: Key, record: Record) -> list[Sample]:
    """The one sample of a record of a training file."""
    images = _parse_images(get_field(record, "tgt_imgs", kind=list))
    if "instruction" in record:
        messages = MINIGPT4.parse_prompt(get_field(record, "instruction"), images)
    else:
        question = get_field(record, "uniform_question", "question")
        messages = (Message(role="user", content=question, images=images),)
    answer = get_field(record, "fix_answer", "answer")
    check_messages([*messages, Message(role="assistant", content=answer)])
    prompt = Prompt(messages=messages, item_id=identity(key, record, "sample_id"))
    return [Sample(prompt=prompt, answer=answer)]


def check_messages(messages: Sequence[Message]) -> None:
    """Check that user and assistant take turns and that only the user shows images, one for each tag.

    Raises:
        AnnotationError: a message has the wrong role.
        PromptFormatError: a message shows what it should not, or misses a tag.
    """
    for index, message in enumerate(messages):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            raise AnnotationError(
                f"message {index} has role {message.role!r}, expected {expected!r}: "
                "roles alternate and begin with 'user'"
            )
        check_message(message, f"message {index}")


def get_field(record: Record, *keys: str, kind: type | tuple[type, ...] = str) -> Any:
    """The value of the first of `keys` that the record has, checked to be of `kind`."""
    if not isinstance(record, dict):
        raise AnnotationError(f"got {record!r:.60}, expected an object with {' or '.join(map(repr, keys))}")
    for key in keys:
        if key in record:
            value = record[key]
            kinds = kind if isinstance(kind, tuple) else (kind,)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise AnnotationError(
                    f"{key!r} is {value!r:.60}, expected {' or '.join(k.__name__ for k in kinds)}"
                )
            if isinstance(value, str) and not value.isascii() and _LONE_SURROGATE.search(value):
                raise AnnotationError(f"{key!r} holds half of a character, which no file can: {value!r:.60}")
            return value
    raise AnnotationError(
        f"no {' or '.join(map(repr, keys))}; the record has {', '.join(map(repr, record)) or 'no fields'}"
    )


def identity(key: Key, record: Record, field: str) -> str:
    """The record's own id, else the key it stands under; a place in a list is no id."""
    if field in record:
        return str(get_field(record, field, kind=(int, str)))
    return key if isinstance(key, str) else ""


def _values(reading: Reading[T]) -> list[T]:
    if reading.problems:
        raise AnnotationError(report([reading]))
    return list(reading.values)


def located(values: Iterable[T], folder: ImageFolder) -> list[T]:
    """The values of one record, whose images now have paths.

    Raises:
        AnnotationError: names all of the record's images that are not there.
        ImageError: an id leads out of the folder.
    """
    missing: dict[Key, MissingImageError] = {}

    def with_path(image: Image) -> Image:
        try:
            return replace(image, path=folder.find(image.image_id))
        except MissingImageError as error:
            missing[image.image_id] = error
            return image

    def with_paths(messages: Iterable[Message]) -> tuple[Message, ...]:
        return tuple(replace(one, images=tuple(map(with_path, one.images))) for one in messages)

    def with_its_paths(value: T) -> T:
        if isinstance(value, Dialogue):
            return replace(value, messages=with_paths(value.messages))  # type: ignore[call-arg]  # no subclass of both
        return replace(value, prompt=replace(value.prompt, messages=with_paths(value.prompt.messages)))

    all_located = [with_its_paths(value) for value in values]
    if missing:
        raise _MissingImagesError(missing)
    return all_located


class Placed(NamedTuple):
    """A record, and where it stands."""

    key: Key
    record: Any
    span: tuple[int, int] | None = None
    """First byte and the one behind the last; None where the file cannot be read in parts."""


def records(path: Path) -> Iterator[Placed]:
    """Each record of a file; those of a list are decoded one by one.

    Raises:
        AnnotationError: the file is missing, is not JSON, or holds no records.
    """
    number: int | None = None
    try:
        with path.open("rb") as bytes_:
            offset = len(BOM_UTF8) if bytes_.read(len(BOM_UTF8)) == BOM_UTF8 else 0
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from (Placed(*row) for row in enumerate(csv.DictReader(file)))
                return
            if path.suffix == ".jsonl":
                for number, line in enumerate(file):
                    start, offset = offset, offset + len(line.encode())
                    yield Placed(number, json.loads(line), (start, offset))
                return
            reader = _ListReader(file, offset)
            if reader.peek() == "[":
                number = 0
                for record, span in reader.elements():
                    yield Placed(number, record, span)
                    number += 1
                return
            content = reader.whole()
    except FileNotFoundError:
        raise AnnotationError(f"{path}: no such file; make the data first or correct the path") from None
    except (ValueError, RecursionError) as error:
        where = path if number is None else f"{path}, record {number}"
        near = f", at {error.doc[error.pos :]!r:.60}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise AnnotationError(f"{where}: not JSON in UTF-8: {reason}{near}") from error
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{path}: got a {type(content).__name__}, expected a list of records or a dict of them by id"
        )
    listed = content.get("annotations")
    yield from (Placed(*row) for row in (enumerate(listed) if isinstance(listed, list) else content.items()))


class _ListReader:
    """Decodes a JSON list element by element, so that a large file need not lie in memory as a whole."""

    def __init__(self, file: TextIO, offset: int) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._position = 0
        self._counted = 0, offset  # a position in the text, and its byte in the file

    def peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            if found := _NO_SPACE.search(self._text, self._position):
                self._position = found.start()
                return found[0]
            if not self._read_on():
                return ""

    def whole(self) -> Any:
        """All that the file holds, as one value."""
        return json.loads(self._text[self._position :] + self._file.read())

    def elements(self) -> Iterator[tuple[Any, tuple[int, int]]]:
        """The elements of a list that begins where `peek` found its bracket, each with its bytes in the file.

        Raises:
            json.JSONDecodeError: the text is no JSON list; elements before the mistake have been given.
        """
        self._position += 1
        separator = self.peek()
        while separator != "]":
            start = self._byte()
            yield self._element(), (start, self._byte())
            separator = self.peek()
            if separator not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", self._text, self._position)
            self._position += separator == ","
        self._position += 1
        if self.peek():
            raise json.JSONDecodeError("Extra data", self._text, self._position)

    def _element(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._position)
            except json.JSONDecodeError:
                if not self._read_on():
                    raise
            else:
                # Anything else behind a value may be more of it, such as the rest of a number.
                if _SEPARATOR.match(self._text, end) or not self._read_on():
                    self._position = end
                    return value

    def _read_on(self) -> bool:
        """Read more, twice as much each time while nothing is taken; False at the end of the file."""
        self._counted = 0, self._byte()
        rest = self._text[self._position :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._position = rest + more, 0
        return bool(more)

    def _byte(self) -> int:
        """Where the position is in the file."""
        position, byte = self._counted
        self._counted = self._position, byte + len(self._text[position : self._position].encode())
        return self._counted[1]


def _parse_message(entry: Record) -> Message:
    return Message(
        role=get_field(entry, "role"),
        content=get_field(entry, "content"),
        images=_parse_images(get_field(entry, "images", kind=list) if "images" in entry else []),
    )


def _parse_images(entries: list[Record]) -> tuple[Image, ...]:
    return tuple(
        Image(
            image_id=get_field(entry, "image_id", kind=(int, str)),
            caption=get_field(entry, "caption") if "caption" in entry else "",
            box=_parse_box(get_field(entry, "box", kind=list)) if "box" in entry else None,
        )
        for entry in entries
    )


def _parse_box(box: list[Any]) -> tuple[int, int, int, int]:
    match box:
        case [int(left), int(upper), int(right), int(lower)]:
            return left, upper, right, lower
    raise AnnotationError(f"'box' is {box!r:.60}, expected four whole numbers: left, upper, right, lower")


def dialogue_record(dialogue: Dialogue) -> Record:
    """The record of a dialogue file, to which others may add fields. Raises as `write_dialogues` does."""
    check_messages(dialogue.messages)
    messages = []
    for message in dialogue.messages:
        entry: Record = {"role": message.role, "content": message.content}
        if message.role == "user":
            entry["images"] = _image_records(message.images)
        messages.append(entry)
    record: Record = {"dialogue": messages}
    if name := dialogue.dialogue_id:
        # The original numbers its evaluation items, so a number is written as one; "007" stays text.
        record["evaluation_id"] = int(name) if _NUMBER.fullmatch(name) else name
    return record


def sample_record(sample: Sample) -> Record:
    """The record of a training file, to which others may add fields. Raises as `write_samples` does."""
    messages = sample.prompt.messages
    check_messages([*messages, Message(role="assistant", content=sample.answer)])
    instruction = MINIGPT4.render_prompt(messages, system=False) + MINIGPT4.answer_prefix
    try:
        read_again = MINIGPT4.parse_prompt(instruction, sample.images)
    except PromptFormatError:
        read_again = ()
    if read_again != messages:
        raise AnnotationError(
            f"sample {sample.prompt.item_id!r} cannot be written as one text and read again, since a message is empty "
            f"or holds {MINIGPT4.user_prefix!r} or {MINIGPT4.assistant_prefix!r}: {instruction[:120]!r}; "
            "leave it out, or write a dialogue file"
        )
    record: Record = {
        "uniform_question": messages[-1].content,
        "instruction": instruction,
        "answer": sample.answer,
        "tgt_imgs": _image_records(sample.images),
    }
    if sample.prompt.item_id:
        record["sample_id"] = sample.prompt.item_id
    return record


def _image_records(images: Iterable[Image]) -> list[Record]:
    return [
        {"image_id": image.image_id, "caption": image.caption} | ({"box": image.box} if image.box else {})
        for image in images
    ]


def _write(path: Path, records: list[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
