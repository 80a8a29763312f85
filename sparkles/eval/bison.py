"""BISON (Binary Image SelectiON): which of two similar pictures fits the caption.

Reads records `{"true_image_id", "image_candidates": [{"image_id", "image_filename"}, ...]}` of two files:

* COCO-BISON, `bison_annotations.cocoval2014.json`: `{"info", "data": [...]}`, where a record has a `bison_id` and the
  `caption_id` of COCO's `captions_val2014.json`;
* the original's list of 150 of them, where a record has an `evaluation_id` and its `caption`; `kind` may say what it
  tests.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from sparkles.data.annotations import AnnotationError
from sparkles.data.images import ImageFolder
from sparkles.eval.benchmark import Item, Prediction, fill_prompt, read_items
from sparkles.eval.files import file_hash, read_rows
from sparkles.eval.prompting import prompt_hash
from sparkles.eval.scorers import ChoiceScorer
from sparkles.prompt_format import image_mention
from sparkles.types import Image

COLUMNS = ("true_image_id", "image_candidates")

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bison:
    """`images` is the folder of the candidates' `image_filename`s; the two are IMAGE#1 and IMAGE#2 in that order."""

    annotations: str | Path
    images: str | Path
    captions: str | Path | None = None
    """COCO's captions, for records that name a `caption_id` of it."""
    num: int | None = None
    """Items drawn by `seed`; None for all."""
    seed: int = 0
    prompt_file: str = "bison"
    """Name of a shipped prompt, or path of a text with $caption."""
    original_answers: bool = False
    """Read answers as the published code did, see `sparkles.eval.original`."""
    name: str = "bison"

    @property
    def scorer(self) -> ChoiceScorer:
        return ChoiceScorer(options=("IMAGE#1", "IMAGE#2"), original_answers=self.original_answers)

    def items(self) -> list[Item]:
        folder = ImageFolder(Path(self.images), patterns=("{image_id}",))
        captions = self._captions()

        def build(row: Record) -> Item:
            candidates = row["image_candidates"]
            ids = [candidate["image_id"] for candidate in candidates]
            if len(ids) != 2 or ids.count(row["true_image_id"]) != 1:
                raise AnnotationError(
                    f"true_image_id {row['true_image_id']} among the candidates {ids}; expected two, one of them true"
                )
            images = tuple(
                Image(image_id=position, path=folder.find(candidate["image_filename"]))
                for position, candidate in enumerate(candidates, start=1)
            )
            return Item(
                item_id=_item_id(row),
                questions=(fill_prompt(self.prompt_file, images, caption=_caption(row, captions)),),
                label=image_mention(1 + ids.index(row["true_image_id"])),
                kind=row.get("kind", ""),
            )

        return read_items(Path(self.annotations), COLUMNS, build, num=self.num, seed=self.seed)

    def scorer_file(self, predictions: Sequence[Prediction]) -> tuple[str, str] | None:
        """`[{"bison_id", "predicted_image_id"}]` as `bison_eval.py` reads it; null where no answer could be read.

        That scorer takes a part of its items for all of them. None for the original's list, which has no `bison_id`.
        """
        rows = {_item_id(row): row for row in read_rows(Path(self.annotations), COLUMNS)}
        asked = [(prediction, rows[prediction.item_id]) for prediction in predictions]
        chosen = [
            {"bison_id": row["bison_id"], "predicted_image_id": _chosen_image(prediction, row)}
            for prediction, row in asked
            if "bison_id" in row
        ]
        return (".scorer.json", json.dumps(chosen) + "\n") if chosen else None

    def _captions(self) -> Mapping[int, str]:
        """Text by caption id."""
        if self.captions is None:
            return {}
        return {row["id"]: row["caption"] for row in read_rows(Path(self.captions), ("id", "caption"))}

    def hashes(self) -> Mapping[str, str]:
        captions = {"captions": file_hash(Path(self.captions))} if self.captions else {}
        return {
            "annotations": file_hash(Path(self.annotations)),
            **captions,
            "prompt": prompt_hash(self.prompt_file),
        }


def _item_id(row: Record) -> str:
    """As COCO-BISON has it, or the original, which numbers its sample anew.

    Raises:
        AnnotationError: the record has neither.
    """
    for column in ("bison_id", "evaluation_id"):
        if column in row:
            return str(row[column])
    raise AnnotationError(f"neither bison_id nor evaluation_id, got {', '.join(row)}")


def _caption(row: Record, captions: Mapping[int, str]) -> str:
    if "caption" in row:
        return str(row["caption"])
    if row.get("caption_id") in captions:
        return captions[row["caption_id"]].strip()
    raise AnnotationError(
        f"no caption, and caption_id {row.get('caption_id')} is not among the {len(captions)} of captions=...; "
        "COCO-BISON needs COCO's captions_val2014.json there"
    )


def _chosen_image(prediction: Prediction, row: Record) -> int | None:
    """Id of the picture that the answer names. By file name: what is IMAGE#1 depends on the order that was shown."""
    ids = {PurePath(one["image_filename"]).name: int(one["image_id"]) for one in row["image_candidates"]}
    shown = {image_mention(image["image_id"]): image["path"] for image in prediction.dialogue[0]["images"]}
    path = shown.get(prediction.score.answer or "")
    return None if path is None else ids.get(PurePath(path).name)
