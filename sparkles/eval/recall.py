"""Recall: dialogues over many pictures and turns that end with a question about a picture shown earlier.

Reads a dialogue file (see `sparkles.data.annotations`) whose records say more of their last question:

    {"evaluation_id": 1,
     "dialogue": [{"role": "user", "content": ..., "images": [...]}, {"role": "assistant", "content": ...}, ...],
     "asked_image_id": 123402,                  which picture it is about; one of an earlier message
     "options": ["on a beach", "in a forest"],  answers as a reply would spell them
     "answers": {"123401": ["in a forest"], "123402": ["on a beach"]},     by picture: which of them hold of it
     "kind": "place"}                           may be left out

Users' messages are asked one after the other; the responder's own answers stand between them, those of the file are
not shown. For the last reply to be about the picture and not about words, earlier questions should not ask for what
the last one does.

The option that a reply names first is its answer, or with "Therefore" in it the one that it concludes. An answer that
holds of another picture of the dialogue, and not of the asked one, is a mix-up; any other that is not right, a miss.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from sparkles.data.annotations import AnnotationError, parse_dialogue
from sparkles.data.images import ImageFolder
from sparkles.eval.answers import parse_choice
from sparkles.eval.benchmark import Item, Metrics, Prediction, Score, read_items
from sparkles.eval.files import file_hash, read_rows
from sparkles.eval.matching import shared_content
from sparkles.eval.metrics import accuracy_metrics, choice_metrics
from sparkles.eval.significance import proportion_interval
from sparkles.types import Dialogue, Judge, Message

COLUMNS = ("evaluation_id", "dialogue", "asked_image_id", "options", "answers")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What there is to remember for the last question of a dialogue."""

    images: int
    """Pictures of the dialogue."""
    turns: int
    position: int
    """Of the asked picture among all, from 1."""
    images_back: int
    """Pictures shown after the asked one; at least 0."""
    turns_back: int
    """Turns since it was shown, at least 1."""
    options: tuple[str, ...]
    right: str
    of_others: frozenset[str]
    """Options that hold of another picture, and not of the asked one."""


@dataclass(frozen=True, kw_only=True)
class RecallScorer:
    """Tells what a reply remembers: the asked picture, another one, or none."""

    asked: Mapping[str, Asked]
    """By item id."""
    name = "first option named"
    needs_judge = False
    options = ()  # they are those of the item

    def score(self, items: Sequence[Item], dialogues: Sequence[Dialogue], judge: Judge | None) -> list[Score]:
        answers = [
            read_option(dialogue.messages[-1].content, self.asked[item.item_id].options)
            for item, dialogue in zip(items, dialogues, strict=True)
        ]
        return [
            Score(answer=answer, correct=answer == item.label)
            for item, answer in zip(items, answers, strict=True)
        ]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        """`choice_metrics`; shares of mix-ups and misses; and all that by what there was to remember.

        `mix_up_chance` is the share of mix-ups among wrong options: of wrong answers as many would be mix-ups if they
        had nothing to do with the pictures.
        """
        groups = defaultdict(list)
        for prediction in predictions:
            asked = self.asked[prediction.item_id]
            for group in ("images", "turns", "position", "images_back", "turns_back"):
                groups[group, getattr(asked, group)].append(prediction)
        grouped = {
            f"{group}/{value}/{name}": measured
            for (group, value), found in sorted(groups.items())
            for name, measured in (accuracy_metrics(found) | self._memory(found)).items()
        }
        return choice_metrics(predictions) | self._memory(predictions) | grouped

    def _memory(self, predictions: Sequence[Prediction]) -> Metrics:
        asked = [self.asked[prediction.item_id] for prediction in predictions]
        mixed_up = [p.score.answer in a.of_others for p, a in zip(predictions, asked, strict=True)]
        missed = [not p.score.correct and not mixed for p, mixed in zip(predictions, mixed_up, strict=True)]
        shares = [len(one.of_others) / (len(one.options) - 1) for one in asked]
        return {
            **_share("mix_up_rate", mixed_up, predictions),
            **_share("miss_rate", missed, predictions),
            "mix_up_chance": fmean(shares) if shares else None,
        }


def _share(name: str, found: Sequence[bool], predictions: Sequence[Prediction]) -> Metrics:
    interval = proportion_interval(found, shared_content(predictions))
    return {
        name: fmean(found) if found else None,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
        f"{name}_interval": interval.method,
    }


@dataclass(frozen=True, kw_only=True)
class Recall:
    """`images` is the folder of `<image_id>.jpg` (or .png)."""

    annotations: str | Path
    images: str | Path
    num: int | None = None
    """Dialogues drawn by `seed`; None for all."""
    seed: int = 0
    prepare: Callable[[], object] | None = None
    """Called before anything is read, to make the files."""
    name: str = "recall"

    @cached_property
    def scorer(self) -> RecallScorer:
        rows = read_rows(self._file, COLUMNS)
        return RecallScorer(asked={_item_id(row): read_asked(row) for row in rows})

    def items(self) -> list[Item]:
        path, folder = self._file, ImageFolder(Path(self.images))

        def located(message: Message) -> Message:
            images = tuple(replace(image, path=folder.find(image.image_id)) for image in message.images)
            return replace(message, images=images)

        def build(row: dict[str, Any]) -> Item:
            return Item(
                item_id=_item_id(row),
                questions=tuple(map(located, _questions(row))),
                label=read_asked(row).right,
                kind=row.get("kind", ""),
            )

        return read_items(path, COLUMNS, build, num=self.num, seed=self.seed)

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(self._file)}

    @cached_property
    def _file(self) -> Path:
        if self.prepare is not None:
            self.prepare()
        return Path(self.annotations)


def read_asked(row: Mapping[str, Any]) -> Asked:
    """What a record says of its last question.

    Raises:
        AnnotationError: no earlier message shows the picture that is asked about, or the answers do not fit.
    """
    questions = _questions(row)
    shown = [(str(image.image_id), turn) for turn, one in enumerate(questions) for image in one.images]
    asked, options = str(row["asked_image_id"]), tuple(row["options"])
    turn_of = dict(shown)
    if turn_of.get(asked, len(questions)) >= len(questions) - 1:
        raise AnnotationError(
            f"asked_image_id {asked}: expected a picture of a message before the last question, "
            f"got {', '.join(turn_of) or 'none'}"
        )
    holding = {str(image_id): tuple(answers) for image_id, answers in row["answers"].items()}
    if unknown := {answer for answers in holding.values() for answer in answers} - set(options):
        raise AnnotationError(f"answers: {min(unknown)!r} is none of the options {', '.join(options)}")
    if len(holding.get(asked, ())) != 1 or len(options) < 2:
        raise AnnotationError(
            f"answers: expected exactly one of two or more options for the asked picture {asked}, "
            f"got {list(holding.get(asked, ()))} of {len(options)}"
        )
    (right,) = holding[asked]
    position = 1 + [image_id for image_id, _ in shown].index(asked)
    return Asked(
        images=len(shown),
        turns=len(questions),
        position=position,
        images_back=len(shown) - position,
        turns_back=len(questions) - 1 - turn_of[asked],
        options=options,
        right=right,
        of_others=frozenset(answer for answers in holding.values() for answer in answers) - {right},
    )


def read_option(reply: str, options: Sequence[str]) -> str | None:
    """The option that a reply names first, or concludes with "Therefore"; None where it names none.

    >>> read_option("The star of IMAGE#2 is at the top-left, of IMAGE#3 at the top.", ["at the top", "at the top-left"])
    'at the top-left'
    """
    if "therefore" in reply.lower():
        return parse_choice(reply, options)
    longest_first = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    found = re.search(rf"(?<!\w)({longest_first})(?!\w)", reply, re.IGNORECASE)
    return next((option for option in options if found and option.lower() == found[1].lower()), None)


def _item_id(row: Mapping[str, Any]) -> str:
    return str(row["evaluation_id"])


def _questions(row: Mapping[str, Any]) -> tuple[Message, ...]:
    [dialogue] = parse_dialogue(_item_id(row), dict(row))
    return tuple(message for message in dialogue.messages if message.role == "user")
