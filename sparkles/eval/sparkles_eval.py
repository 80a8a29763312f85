"""SparklesEval: two-turn dialogues about several images, rated by a judge that reads the captions.

Reads the original's annotation file, a dialogue file whose records have an `evaluation_id`. Only its questions are
asked; the second follows the responder's own answer to the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sparkles.data.annotations import AnnotationError, read_dialogues
from sparkles.data.images import ImageFolder
from sparkles.eval.benchmark import Item, sample
from sparkles.eval.files import file_hash
from sparkles.eval.scorers import RatingScorer


@dataclass(frozen=True, kw_only=True)
class SparklesEval:
    """`images` is the folder of `<image_id>.jpg` (or .png)."""

    annotations: str | Path
    images: str | Path
    num: int | None = None
    """Dialogues drawn by `seed`; None for all."""
    seed: int = 0
    name: str = "sparkles_eval"
    scorer: ClassVar = RatingScorer()

    def items(self) -> list[Item]:
        path = Path(self.annotations)
        dialogues = list(enumerate(read_dialogues(path, ImageFolder(Path(self.images)))))
        items = []
        for number, dialogue in sample(dialogues, num=self.num, seed=self.seed, where=path):
            questions = tuple(message for message in dialogue.messages if message.role == "user")
            if len(questions) != 2:
                raise AnnotationError(f"{path}, record {number}: {len(questions)} questions, expected two")
            items.append(Item(item_id=dialogue.dialogue_id or str(number), questions=questions))
        return items

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(Path(self.annotations))}
