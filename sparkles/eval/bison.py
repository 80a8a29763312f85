"""BISON (Binary Image SelectiON): which of two similar pictures fits the caption.

Reads the original's annotation file: a list of `{"evaluation_id", "caption", "true_image_id", "image_candidates":
[{"image_id", "image_filename"}, ...]}`, where `kind` may say what a record tests.
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
from sparkles.prompt_format import image_mention
from sparkles.types import Image

COLUMNS = ("evaluation_id", "caption", "true_image_id", "image_candidates")


@dataclass(frozen=True, kw_only=True)
class Bison:
    """`images` is the folder of the candidates' `image_filename`s; the two are IMAGE#1 and IMAGE#2 in that order."""

    annotations: str | Path
    images: str | Path
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

        def build(row: dict[str, Any]) -> Item:
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
                item_id=str(row["evaluation_id"]),
                questions=(fill_prompt(self.prompt_file, images, caption=row["caption"]),),
                label=image_mention(1 + ids.index(row["true_image_id"])),
                kind=row.get("kind", ""),
            )

        return read_items(Path(self.annotations), COLUMNS, build, num=self.num, seed=self.seed)

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(Path(self.annotations)), "prompt": prompt_hash(self.prompt_file)}
