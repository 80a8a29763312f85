"""SparklesEval: two-turn dialogues about several images, rated by a judge that reads the captions.

Reads the original's annotation file, a dialogue file whose records have an `evaluation_id`. Only its questions are
asked; the second follows the responder's own answer to the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from sparkles.data.annotations import AnnotationError, read_dialogues
from sparkles.data.images import ImageFolder
from sparkles.eval.benchmark import Item, sample
from sparkles.eval.files import file_hash
from sparkles.eval.scorers import RatingScorer
from sparkles.types import Dialogue


@dataclass(frozen=True, kw_only=True)
class SparklesEval:
    """`images` is the folder of `<image_id>.jpg` (or .png)."""

    annotations: str | Path
    images: str | Path
    num: int | None = None
    """Dialogues drawn by `seed`; None for all."""
    seed: int = 0
    name: str = "sparkles_eval"

    @cached_property
    def scorer(self) -> RatingScorer:
        """Reads the length-controlled rating at the mean length of the file's own answers, where it has some."""
        said = [
            sum(len(message.content.split()) for message in dialogue.messages if message.role == "assistant")
            for dialogue in self._dialogues
        ]
        return RatingScorer(reference_words=fmean(said) if said and all(said) else None)

    @cached_property
    def _dialogues(self) -> list[Dialogue]:
        return list(read_dialogues(Path(self.annotations), ImageFolder(Path(self.images))))

    def items(self) -> list[Item]:
        path = Path(self.annotations)
        dialogues = list(enumerate(self._dialogues))
        items = []
        for number, dialogue in sample(dialogues, num=self.num, seed=self.seed, where=path):
            questions = tuple(message for message in dialogue.messages if message.role == "user")
            if len(questions) != 2:
                raise AnnotationError(f"{path}, record {number}: {len(questions)} questions, expected two")
            items.append(Item(item_id=dialogue.dialogue_id or str(number), questions=questions))
        return items

    def hashes(self) -> Mapping[str, str]:
        return {"annotations": file_hash(Path(self.annotations))}
