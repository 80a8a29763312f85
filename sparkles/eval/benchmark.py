"""What a benchmark is: items to ask, and a scorer for what comes back.

One file per benchmark builds the items; `run.evaluate` asks them and writes one `Prediction` per line of
`predictions/<benchmark>.jsonl`, from which everything can be scored again without the model.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sparkles.data.annotations import AnnotationError
from sparkles.data.images import ImageError
from sparkles.eval.files import file_hash, read_rows
from sparkles.eval.prompting import load_prompt
from sparkles.prompt_format import PromptFormatError, check_tags
from sparkles.types import Dialogue, Image, InputError, Judge, Message, Verdict, images_of

Metrics = dict[str, float | str | None]
"""Flat names to values; None where nothing could be measured."""

T = TypeVar("T")


class BenchmarkError(InputError):
    """A benchmark's settings do not fit its files or each other."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to ask. Each further question is put behind the responder's own answers to the earlier ones."""

    item_id: str
    questions: tuple[Message, ...]
    label: str | None = None
    """The right option; None where a judge decides."""
    kind: str = ""
    """What the item tests, for metrics by kind; empty where the file does not say."""
    judged: tuple[Message, ...] = ()
    """The questions as a judge reads them, where a control shows others."""

    @property
    def images(self) -> tuple[Image, ...]:
        return images_of(self.questions)

    def key(self, *settings: str) -> str:
        """Hash of all that a score depends on: texts, pictures, label and `settings` (responder, scorer, judge)."""
        questions = (*self.questions, *self.judged)
        images = [
            (image.image_id, image.caption, image.box, image.path and file_hash(image.path))
            for image in images_of(questions)
        ]
        parts = ([question.content for question in questions], images, self.label, self.kind, settings)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What came of one item: an option and whether it is right, or a judge's verdict."""

    answer: str | None = None
    """The option read from the response; None where none could be read (unscored)."""
    correct: bool | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One line of `predictions/<benchmark>.jsonl`."""

    item_id: str
    kind: str
    prompt: str
    """The question; the questions of several turns are joined by an empty line."""
    image_ids: list[int | str]
    dialogue: list[dict[str, Any]]
    """The finished dialogue: {"role", "content", "images": [{"image_id", "caption", "path", "box"}]} per message."""
    tries: list[dict[str, Any]]
    """Every raw response, in order: {"turn" (from 1), "response", "seconds", "truncated"}, and "log_probs" of the
    options that were chosen among. A try begins with turn 1."""
    key: str
    """`Item.key`: a run that continues another keeps the lines whose key still holds."""
    label: str | None = None
    score: Score

    @property
    def num_tries(self) -> int:
        return sum(response["turn"] == 1 for response in self.tries)

    def to_json(self) -> str:
        """The line. The score's fields stand beside the others: `answer` and `correct`, or `verdict`."""
        fields = asdict(self)
        score = fields.pop("score")
        unused = ("label", "answer", "correct") if self.score.verdict else ("verdict",)
        return json.dumps({k: v for k, v in (fields | score).items() if k not in unused}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> "Prediction":
        fields = json.loads(line)
        verdict = fields.pop("verdict", None)
        score = Score(
            answer=fields.pop("answer", None),
            correct=fields.pop("correct", None),
            verdict=verdict and Verdict(**verdict),
        )
        return cls(score=score, **fields)


class Scorer(Protocol):
    """Turns finished dialogues into scores, and scores into metrics."""

    @property
    def name(self) -> str:
        """What tells it from others that score the same item differently; a part of `Item.key`."""
        ...

    @property
    def needs_judge(self) -> bool: ...

    @property
    def options(self) -> tuple[str, ...]:
        """What is chosen among; none where answers are free."""
        ...

    def score(self, items: Sequence[Item], dialogues: Sequence[Dialogue], judge: Judge | None) -> list[Score]:
        """The score of each item's dialogue, in order."""
        ...

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """Metrics without the benchmark's name in front."""
        ...


class Benchmark(Protocol):
    """Items and how they are scored."""

    @property
    def name(self) -> str: ...

    @property
    def scorer(self) -> Scorer: ...

    def items(self) -> list[Item]:
        """Read the files; every picture of the result exists."""
        ...

    def hashes(self) -> Mapping[str, str]:
        """sha256 of annotations and prompt, for `environment.json`."""
        ...


def fill_prompt(prompt_file: str, images: tuple[Image, ...], **fields: str) -> Message:
    """The question that a prompt file asks about `images`; dollar signs within the fields stay as they are."""
    try:
        content = load_prompt(prompt_file).substitute(fields)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${field}" for field in fields)
        raise BenchmarkError(
            f"prompt_file={prompt_file}: cannot fill in {error}; it may use {known}, and $$ for a dollar sign"
        ) from error
    check_tags(content, images, f"prompt_file={prompt_file}")
    return Message(role="user", content=content, images=images)


def read_items(
    path: Path, columns: Sequence[str], build: Callable[[dict[str, Any]], Item], *, num: int | None, seed: int
) -> list[Item]:
    """`build` for each record of the file, or for `num` of them.

    Raises:
        AnnotationError: names the file and the record that cannot become an item.
    """
    items = []
    for number, row in sample(list(enumerate(read_rows(path, columns))), num=num, seed=seed, where=path):
        try:
            items.append(build(row))
        except (ImageError, AnnotationError, PromptFormatError) as error:
            raise AnnotationError(f"{path}, record {number}: {error}") from error
    return items


def sample(values: Sequence[T], *, num: int | None, seed: int, where: Path) -> list[T]:
    """`num` of the values, drawn by `seed`, in their order; all of them for None."""
    if num is None:
        return list(values)
    if not 0 < num <= len(values):
        raise BenchmarkError(
            f"cannot draw num={num} items from the {len(values)} of {where}; num=null takes all"
        )
    return [values[index] for index in sorted(random.Random(seed).sample(range(len(values)), num))]
