"""From predictions to flat metrics, each with its denominator, interval and failures."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from sparkles.eval.benchmark import Metrics, Prediction
from sparkles.eval.significance import bootstrap_interval, wilson_interval
from sparkles.types import CRITERIA, CriterionScores

ANSWERS = ("A1", "A2")


def choice_metrics(predictions: Sequence[Prediction]) -> Metrics:
    """Accuracy overall and by kind of item. A response without a readable answer counts as wrong."""
    return _with_kinds(predictions, _accuracy)


def rating_metrics(predictions: Sequence[Prediction]) -> Metrics:
    """Mean ratings overall and by kind. A dialogue that the judge could not rate is counted, but in no mean."""
    judges = sorted({p.score.verdict.judge for p in predictions if p.score.verdict})
    return _with_kinds(predictions, _ratings) | {"judge": ", ".join(judges)}


def overall_rating(scores: Mapping[str, CriterionScores]) -> float:
    """Mean of both answers' criteria, all with the same weight."""
    return fmean(scores[answer][criterion] for answer in ANSWERS for criterion in CRITERIA)


def _with_kinds(
    predictions: Sequence[Prediction], measure: Callable[[Sequence[Prediction]], Metrics]
) -> Metrics:
    by_kind = defaultdict(list)
    for prediction in predictions:
        by_kind[prediction.kind].append(prediction)
    kinds = {
        f"kind/{kind}/{name}": value
        for kind, group in sorted(by_kind.items())
        if kind
        for name, value in measure(group).items()
    }
    return measure(predictions) | kinds


def _accuracy(predictions: Sequence[Prediction]) -> Metrics:
    num = len(predictions)
    correct = [prediction for prediction in predictions if prediction.score.correct]
    low, high = wilson_interval(len(correct), num)
    return {
        "accuracy": len(correct) / num,
        "accuracy_low": low,
        "accuracy_high": high,
        "first_try_accuracy": sum(len(prediction.tries) == 1 for prediction in correct) / num,
        "num": num,
        "unscored": sum(prediction.score.answer is None for prediction in predictions),
    }


def _ratings(predictions: Sequence[Prediction]) -> Metrics:
    rated = [p.score.verdict.scores for p in predictions if p.score.verdict and p.score.verdict.scores]
    metrics: Metrics = {}
    for answer in ANSWERS:
        for criterion in CRITERIA:
            metrics[f"{answer}/{criterion}"] = _mean([scores[answer][criterion] for scores in rated])
        metrics[f"{answer}/mean"] = _mean([fmean(scores[answer][c] for c in CRITERIA) for scores in rated])
    overall = [overall_rating(scores) for scores in rated]
    low, high = bootstrap_interval(overall)
    return metrics | {
        "overall": _mean(overall),
        "overall_low": low,
        "overall_high": high,
        "num": len(predictions),
        "unscored": len(predictions) - len(rated),
    }


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
