"""NLVR2: is the statement true of a pair of photographs.

Reads NLVR2's JSON lines and the original's list of the same records: `{"sentence", "label", "identifier"}`, where
`evaluation_id` and `kind` may be added. The pictures of `test1-7-3-0` are `test1-7-3-img0.png` and `-img1.png`.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from sparkles.data.annotations import AnnotationError
from sparkles.data.images import ImageFolder
from sparkles.eval.benchmark import Item, Metrics, Prediction, fill_prompt, read_items
from sparkles.eval.files import file_hash, read_rows
from sparkles.eval.prompting import prompt_hash
from sparkles.eval.scorers import ChoiceScorer
from sparkles.eval.significance import overlap, proportion_interval
from sparkles.types import Image

COLUMNS = ("sentence", "label", "identifier")
OPTIONS = ("TRUE", "FALSE")
_PICTURE = re.compile(r"(?P<set>.+)-\d+-img[01]")
"""File name of a picture, without suffix: split, set of eight pictures, pair of the set, side."""


@dataclass(frozen=True, kw_only=True)
class StatementScorer(ChoiceScorer):
    """Also says how many statements were judged rightly of each pair that they are made about."""

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return super().metrics(predictions) | consistency(predictions)


@dataclass(frozen=True, kw_only=True)
class NLVR2:
    """The left picture is IMAGE#1, the right one IMAGE#2."""

    annotations: str | Path
    images: str | Path
    num: int | None = None
    """Items drawn by `seed`; None for all."""
    seed: int = 0
    prompt_file: str = "nlvr2"
    """Name of a shipped prompt, or path of a text with $sentence."""
    original_answers: bool = False
    """Read answers as the published code did, see `sparkles.eval.original`."""
    name: str = "nlvr2"

    @property
    def scorer(self) -> StatementScorer:
        return StatementScorer(options=OPTIONS, original_answers=self.original_answers)

    def items(self) -> list[Item]:
        folder = ImageFolder(Path(self.images), patterns=("{image_id}.png", "{image_id}.jpg"))

        def build(row: dict[str, Any]) -> Item:
            images = tuple(
                Image(image_id=position, path=folder.find(name))
                for position, name in enumerate(image_names(row["identifier"]), start=1)
            )
            return Item(
                item_id=_item_id(row),
                questions=(fill_prompt(self.prompt_file, images, sentence=row["sentence"]),),
                label=truth_label(row["label"]),
                kind=row.get("kind", ""),
            )

        return read_items(Path(self.annotations), COLUMNS, build, num=self.num, seed=self.seed)

    def scorer_file(self, predictions: Sequence[Prediction]) -> tuple[str, str]:
        """CSV of identifier and True or False, as `eval/metrics.py` reads it; empty where no answer could be read.

        That scorer wants all items of its file, so `num` is to be null.
        """
        identifiers = {_item_id(row): row["identifier"] for row in read_rows(Path(self.annotations), COLUMNS)}
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            (identifiers[prediction.item_id], (prediction.score.answer or "").capitalize())
            for prediction in predictions
        )
        return ".csv", text.getvalue()

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(Path(self.annotations)), "prompt": prompt_hash(self.prompt_file)}


def consistency(predictions: Sequence[Prediction]) -> Metrics:
    """Share of statements that were judged rightly of every pair; nothing where the pictures are not NLVR2's.

    A statement is a sentence about one set of pictures, as in NLVR2's own `eval/metrics.py`. Statements about the same
    set share pictures, which widens the interval.
    """
    judged = defaultdict(list)
    for prediction in predictions:
        images = prediction.dialogue[0]["images"]
        name = _PICTURE.fullmatch(PurePath(images[0]["path"] or "").stem) if images else None
        if name is None:
            return {}
        judged[name["set"], prediction.prompt].append(bool(prediction.score.correct))
    if not judged:
        return {}
    consistent = [all(rights) for rights in judged.values()]
    interval = proportion_interval(consistent, overlap([[name] for name, _ in judged]))
    return {
        "consistency": sum(consistent) / len(consistent),
        "consistency_low": interval.low,
        "consistency_high": interval.high,
        "consistency_interval": interval.method,
        "statements": len(consistent),
    }


def _item_id(row: Mapping[str, Any]) -> str:
    """The original numbers its sample; NLVR2 has identifiers."""
    return str(row.get("evaluation_id", row["identifier"]))


def image_names(identifier: str) -> tuple[str, str]:
    """File names without suffix: the last part of an identifier numbers the sentences about one pair.

    >>> image_names("test1-7-3-0")
    ('test1-7-3-img0', 'test1-7-3-img1')
    """
    pair, _, _ = identifier.rpartition("-")
    return f"{pair}-img0", f"{pair}-img1"


def truth_label(label: str | bool) -> str:
    """One of OPTIONS, from "True" (NLVR2) or "true" (NLVR)."""
    if (option := str(label).upper()) not in OPTIONS:
        raise AnnotationError(f"label {label!r}, expected true or false")
    return option
