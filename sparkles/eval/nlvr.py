"""NLVR (Cornell, version 1): is the statement true of a picture that shows three boxes of shapes.

Each box is an image of its own, cut out of the one file, so that a model meets three images in one prompt. `root` is
laid out like the published splits: `<split>.json` with a record per line, and `images/<split>-<identifier>-0.png`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkles.data.images import ImageFolder
from sparkles.eval.benchmark import BenchmarkError, Item, fill_prompt, read_items
from sparkles.eval.files import file_hash
from sparkles.eval.nlvr2 import COLUMNS, OPTIONS, truth_label
from sparkles.eval.prompting import prompt_hash
from sparkles.eval.scorers import ChoiceScorer
from sparkles.types import Image

BOXES = ((0, 0, 100, 100), (150, 0, 250, 100), (300, 0, 400, 100))
"""(left, upper, right, lower) of the boxes in a picture of 400 x 100 pixels; 50 pixels lie between them."""


@dataclass(frozen=True, kw_only=True)
class NLVR:
    """The boxes are IMAGE#1 to IMAGE#3 from left to right."""

    root: str | Path
    split: str | None = None
    """Name of the JSON file; None where `root` holds just one."""
    num: int | None = None
    """Items drawn by `seed`; None for all."""
    seed: int = 0
    prompt_file: str = "nlvr"
    """Name of a shipped prompt, or path of a text with $sentence."""
    original_answers: bool = False
    """Read answers as the published code did, see `sparkles.eval.original`."""
    name: str = "nlvr"

    @property
    def annotations(self) -> Path:
        root = Path(self.root)
        if self.split is not None:
            return root / f"{self.split}.json"
        found = sorted(root.glob("*.json"))
        if len(found) != 1:
            raise BenchmarkError(
                f"{root} holds {len(found)} JSON files ({', '.join(path.stem for path in found) or 'none'}), expected "
                "one <split>.json beside images/; correct root=..., or set split=... where there are several"
            )
        return found[0]

    @property
    def scorer(self) -> ChoiceScorer:
        return ChoiceScorer(options=OPTIONS, original_answers=self.original_answers)

    def items(self) -> list[Item]:
        annotations = self.annotations
        folder = ImageFolder(Path(self.root) / "images", patterns=(f"{annotations.stem}-{{image_id}}-0.png",))

        def build(row: dict[str, Any]) -> Item:
            path = folder.find(row["identifier"])
            images = tuple(
                Image(image_id=position, path=path, box=box) for position, box in enumerate(BOXES, start=1)
            )
            return Item(
                item_id=row["identifier"],
                questions=(fill_prompt(self.prompt_file, images, sentence=row["sentence"]),),
                label=truth_label(row["label"]),
            )

        return read_items(annotations, COLUMNS, build, num=self.num, seed=self.seed)

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(self.annotations), "prompt": prompt_hash(self.prompt_file)}
