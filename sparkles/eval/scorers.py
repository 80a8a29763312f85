"""The two ways to score: an option read from the text, or a judge's ratings."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparkles.eval import answers, original
from sparkles.eval.benchmark import BenchmarkError, Item, Metrics, Prediction, Score
from sparkles.eval.metrics import choice_metrics, rating_metrics
from sparkles.types import Dialogue, Judge


@dataclass(frozen=True, kw_only=True)
class ChoiceScorer:
    """Right when the last answer chooses the item's label."""

    options: tuple[str, ...]
    original_answers: bool = False
    """Read answers as the published code did, see `sparkles.eval.original`."""
    needs_judge = False

    @property
    def name(self) -> str:
        return f"choice of {'/'.join(self.options)}" + (" (original)" if self.original_answers else "")

    def score(self, items: Sequence[Item], dialogues: Sequence[Dialogue], judge: Judge | None) -> list[Score]:
        parse = original.parse_choice if self.original_answers else answers.parse_choice
        chosen = [parse(dialogue.messages[-1].content, self.options) for dialogue in dialogues]
        return [
            Score(answer=answer, correct=answer == item.label)
            for item, answer in zip(items, chosen, strict=True)
        ]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return choice_metrics(predictions)


@dataclass(frozen=True, kw_only=True)
class RatingScorer:
    """What a judge makes of both answers of a two-turn dialogue."""

    reference_words: float | None = None
    """Length of both answers at which the length-controlled rating is read, such as that of the reference answers."""
    name = "rating"
    needs_judge = True
    options = ()

    def score(self, items: Sequence[Item], dialogues: Sequence[Dialogue], judge: Judge | None) -> list[Score]:
        if judge is None:
            raise BenchmarkError("dialogues are rated by a judge, and there is none; set judge=...")
        return [Score(verdict=verdict) for verdict in judge.judge(dialogues)]

    def metrics(self, predictions: Sequence[Prediction]) -> Metrics:
        return rating_metrics(predictions, reference_words=self.reference_words)
