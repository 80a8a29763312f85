"""A benchmark of your own, whole: which of three pictures is the odd one out? README.md beside this file runs it."""

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

PROMPT = str(Path(__file__).with_suffix(".txt"))
OPTIONS = ("IMAGE#1", "IMAGE#2", "IMAGE#3")


@dataclass(frozen=True, kw_only=True)
class OddOneOut:
    """`root` holds the pictures and items.json: a list of `{"id", "images": [three file names], "odd": 1, 2 or 3}`."""

    root: str | Path
    num: int | None = None
    seed: int = 0
    name: str = "odd_one_out"

    @property
    def scorer(self) -> ChoiceScorer:
        return ChoiceScorer(options=OPTIONS)

    def items(self) -> list[Item]:
        folder = ImageFolder(Path(self.root), patterns=("{image_id}",))

        def build(row: dict[str, Any]) -> Item:
            images = tuple(
                Image(image_id=position, path=folder.find(name))
                for position, name in enumerate(row["images"], start=1)
            )
            if (label := image_mention(row["odd"])) not in OPTIONS:
                raise AnnotationError(f"odd is {row['odd']!r}, expected 1, 2 or 3")
            return Item(item_id=str(row["id"]), questions=(fill_prompt(PROMPT, images),), label=label)

        return read_items(self._items_file, ("id", "images", "odd"), build, num=self.num, seed=self.seed)

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(self._items_file), "prompt": prompt_hash(PROMPT)}

    @property
    def _items_file(self) -> Path:
        return Path(self.root) / "items.json"
