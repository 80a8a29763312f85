"""NLVR2: is the statement true of a pair of photographs.

Reads NLVR2's JSON lines and the original's list of the same records: `{"sentence", "label", "identifier"}`, where
`evaluation_id` and `kind` may be added. The pictures of `test1-7-3-0` are `test1-7-3-img0.png` and `-img1.png`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkles.data.annotations import AnnotationError
from sparkles.data.images import ImageFolder
from sparkles.eval.benchmark import Item, fill_prompt, read_items
from sparkles.eval.files import file_hash
from sparkles.eval.prompting import prompt_hash
from sparkles.eval.scorers import ChoiceScorer
from sparkles.types import Image

COLUMNS = ("sentence", "label", "identifier")
OPTIONS = ("TRUE", "FALSE")


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
    def scorer(self) -> ChoiceScorer:
        return ChoiceScorer(options=OPTIONS, original_answers=self.original_answers)

    def items(self) -> list[Item]:
        folder = ImageFolder(Path(self.images), patterns=("{image_id}.png", "{image_id}.jpg"))

        def build(row: dict[str, Any]) -> Item:
            images = tuple(
                Image(image_id=position, path=folder.find(name))
                for position, name in enumerate(image_names(row["identifier"]), start=1)
            )
            return Item(
                item_id=str(row.get("evaluation_id", row["identifier"])),
                questions=(fill_prompt(self.prompt_file, images, sentence=row["sentence"]),),
                label=truth_label(row["label"]),
                kind=row.get("kind", ""),
            )

        return read_items(Path(self.annotations), COLUMNS, build, num=self.num, seed=self.seed)

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(Path(self.annotations)), "prompt": prompt_hash(self.prompt_file)}


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
