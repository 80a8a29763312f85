"""A data set as one page: what it consists of in figures, and its dialogues, or a sample of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from sparkles.data.annotations import AnnotationError, Key, Record, parse_dialogue, parse_sample, read_file
from sparkles.data.images import ImageError, ImageFolder
from sparkles.pages.page import Album, Item, Speech, draw, render
from sparkles.types import Dialogue, Image, Message

_MOST_BARS = 8


@dataclass(frozen=True, kw_only=True)
class Share:
    """One line of a distribution: how many of the dialogues."""

    title: str
    count: int
    share: float
    """Of the longest line, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a data set consists of."""

    counts: Mapping[str, str]
    """The numbers at the top of the page, by what they count."""
    distributions: Mapping[str, tuple[Share, ...]]


def dialogue_page(
    path: Path, images: Path | None = None, *, num: int | None = None, seed: int = 0, progress: bool = False
) -> str:
    """The page of a dialogue file (also of SparklesEval's annotations) or of a per-turn training file.

    Args:
        images: the folder of the pictures; None shows their ids and captions alone. What it lacks is shown as missing.
        num: of the dialogues on the page, drawn by `seed`; None for all. The figures are of the whole file.

    Raises:
        AnnotationError: the file is missing, is not JSON, or none of its records is such a one.
    """
    reading = read_file(path, _parse)
    if not reading.values:
        raise AnnotationError(
            f"{path}: no dialogue in {reading.num_records} records; expected {{'dialogue': [...]}} as in a dialogue "
            "file, or {'instruction', 'answer', 'tgt_imgs'} as in a training file. "
            + (f"The first is wrong so: {reading.problems[0]}" if reading.problems else "")
        )
    folder = ImageFolder(images) if images else None
    shown = [_located(dialogue, folder) for dialogue in draw(reading.values, num, seed)]
    album = Album((image for dialogue in shown for image in dialogue.images), progress=progress)
    return render(
        "dialogues.html.j2",
        album=album,
        name=path.name,
        figures=figures_of(reading.values),
        items=[_item(dialogue, Speech(dialogue.messages, album)) for dialogue in shown],
        num_dialogues=len(reading.values),
        problems=reading.problems,
    )


def figures_of(dialogues: Sequence[Dialogue]) -> Figures:
    """Counts, means and distributions over all dialogues."""
    turns = [turn for dialogue in dialogues for turn in _turns(dialogue)]
    images = [image for dialogue in dialogues for image in dialogue.images]
    questions = [len(question.content.split()) for question, _ in turns]
    answers = [len(answer.content.split()) for _, answer in turns if answer]
    counts = {
        "dialogues": f"{len(dialogues):,}",
        "turns": f"{len(turns):,}",
        "images": f"{len(images):,}",
        "different images": f"{len({image.image_id for image in images}):,}",
        "images per turn": f"{len(images) / len(turns):.2f}",
        "words per question": f"{fmean(questions):.1f}",
        "words per answer": f"{fmean(answers):.1f}" if answers else "no answers",
        "in the median answer": f"{median(answers):g}" if answers else "no answers",
    }
    distributions = {
        "Images in the turns of a dialogue": _shares(Counter(map(_kind, dialogues)).most_common(_MOST_BARS)),
        "Words of an answer": _shares(_binned(answers)),
    }
    return Figures(
        counts=counts, distributions={title: found for title, found in distributions.items() if found}
    )


def _parse(key: Key, record: Record) -> list[Dialogue]:
    """A dialogue of either kind of file; one without an id is named by its place."""
    if isinstance(record, dict) and "dialogue" in record:
        found = parse_dialogue(key, record)
    else:
        found = [
            Dialogue(
                messages=(*sample.prompt.messages, Message(role="assistant", content=sample.answer)),
                dialogue_id=sample.prompt.item_id,
            )
            for sample in parse_sample(key, record)
        ]
    return [replace(one, dialogue_id=one.dialogue_id or f"record {key}") for one in found]


def _located(dialogue: Dialogue, folder: ImageFolder | None) -> Dialogue:
    """With the paths of those pictures that are there."""

    def located(image: Image) -> Image:
        if folder is None:
            return image
        try:
            return replace(image, path=folder.find(image.image_id))
        except ImageError:
            return image

    messages = tuple(
        replace(message, images=tuple(map(located, message.images))) for message in dialogue.messages
    )
    return replace(dialogue, messages=messages)


def _item(dialogue: Dialogue, speech: Speech) -> Item:
    return Item(item_id=dialogue.dialogue_id, kind=_kind(dialogue), turns=tuple(speech.turns()))


def _turns(dialogue: Dialogue) -> Iterator[tuple[Message, Message | None]]:
    answers = [*dialogue.messages[1::2], None]
    return zip(dialogue.messages[::2], answers, strict=False)


def _kind(dialogue: Dialogue) -> str:
    """How many images each question shows, as the names of the original's files tell it.

    >>> _kind(Dialogue(messages=(Message(role="user", content="Hi?"), Message(role="assistant", content="Hi."))))
    '0 images'
    """
    counts = [len(question.images) for question, _ in _turns(dialogue)]
    return f"{' + '.join(map(str, counts))} {'image' if sum(counts) == 1 else 'images'}"


def _shares(counts: Iterable[tuple[str, int]]) -> tuple[Share, ...]:
    counts = list(counts)
    most = max((count for _, count in counts), default=1)
    return tuple(Share(title=title, count=count, share=count / most) for title, count in counts)


def _binned(values: Sequence[int]) -> list[tuple[str, int]]:
    """Counts in bins of equal, round width.

    >>> _binned([3, 12, 14, 39])
    [('0 to 4', 1), ('5 to 9', 0), ('10 to 14', 2), ('15 to 19', 0), ('20 to 24', 0), ...]
    """
    if not values:
        return []
    steps = (step * 10**power for power in range(9) for step in (1, 2, 5))
    width = next(step for step in steps if max(values) // step < _MOST_BARS)
    counts = Counter(value // width for value in values)
    return [
        (f"{index * width:,} to {(index + 1) * width - 1:,}", counts[index])
        for index in range(max(counts) + 1)
    ]
