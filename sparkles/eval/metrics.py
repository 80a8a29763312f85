"""From predictions to flat metrics, each with its denominator, interval and failures."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from sparkles.eval.benchmark import Metrics, Prediction
from sparkles.eval.judges import ANSWERS
from sparkles.eval.length_control import length_controlled
from sparkles.eval.matching import answer_words, shared_content
from sparkles.eval.significance import Interval, mean_interval, proportion_interval
from sparkles.types import CRITERIA, CriterionScores


def metrics_of(predictions: Sequence[Prediction], *, reference_words: float | None = None) -> Metrics:
    """`rating_metrics` of what a judge rated, `choice_metrics` of the rest."""
    if any(prediction.score.verdict for prediction in predictions):
        return rating_metrics(predictions, reference_words=reference_words)
    return choice_metrics(predictions)


def choice_metrics(predictions: Sequence[Prediction]) -> Metrics:
    """Accuracy overall and by kind of item. A response without a readable answer counts as wrong."""
    return _with_kinds(predictions, accuracy_metrics)


def rating_metrics(predictions: Sequence[Prediction], *, reference_words: float | None = None) -> Metrics:
    """Mean ratings overall and by kind. A dialogue that the judge could not rate is counted, but in no mean.

    Args:
        reference_words: length of both answers together at which `overall_length_controlled` is read.
    """
    judges = sorted({p.score.verdict.judge for p in predictions if p.score.verdict})
    return {
        **_with_kinds(predictions, _ratings),
        **_at_length(predictions, reference_words),
        "judge": ", ".join(judges),
    }


def overall_rating(scores: Mapping[str, CriterionScores]) -> float:
    """Mean of both answers' criteria, all with the same weight."""
    return fmean(scores[answer][criterion] for answer in ANSWERS for criterion in CRITERIA)


def rating_of(prediction: Prediction) -> float | None:
    """The overall rating of a dialogue; None where it has none."""
    verdict = prediction.score.verdict
    return overall_rating(verdict.scores) if verdict and verdict.scores else None


def ratings_by_judge(prediction: Prediction) -> Mapping[str, Mapping[str, CriterionScores]]:
    """The scores of each judge that could rate a dialogue: of an ensemble's members, or of the one there is."""
    verdict = prediction.score.verdict
    if verdict is None or not (verdict.members or verdict.scores):
        return {}
    return verdict.members or {verdict.judge: verdict.scores or {}}


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


def accuracy_metrics(predictions: Sequence[Prediction]) -> Metrics:
    """Accuracy of these items together, with interval, failures, and what one answer to all of them would score."""
    num = len(predictions)
    correct = [bool(prediction.score.correct) for prediction in predictions]
    first_try = sum(right and p.num_tries == 1 for right, p in zip(correct, predictions, strict=True))
    labels = Counter(prediction.label for prediction in predictions)
    return {
        "accuracy": sum(correct) / num if num else None,
        **_bounds("accuracy", proportion_interval(correct, shared_content(predictions))),
        "first_try_accuracy": first_try / num if num else None,
        # What the most frequent label would score as the answer to everything.
        "majority_rate": max(labels.values()) / num if num else None,
        "num": num,
        "unscored": sum(prediction.score.answer is None for prediction in predictions),
    }


def _ratings(predictions: Sequence[Prediction]) -> Metrics:
    rated = [prediction for prediction in predictions if rating_of(prediction) is not None]
    scores = [p.score.verdict.scores for p in rated if p.score.verdict and p.score.verdict.scores]
    metrics: Metrics = {}
    for answer in ANSWERS:
        for criterion in CRITERIA:
            metrics[f"{answer}/{criterion}"] = _mean([found[answer][criterion] for found in scores])
        metrics[f"{answer}/mean"] = _mean([fmean(found[answer][c] for c in CRITERIA) for found in scores])
    overall = [overall_rating(found) for found in scores]
    return metrics | {
        "overall": _mean(overall),
        **_bounds("overall", mean_interval(overall, shared_content(rated))),
        "num": len(predictions),
        "unscored": len(predictions) - len(rated),
    }


def _at_length(predictions: Sequence[Prediction], reference_words: float | None) -> Metrics:
    """Mean length of the answers, and the overall rating at `reference_words` beside the raw one."""
    words = [answer_words(prediction) for prediction in predictions]
    metrics: Metrics = {"words": _mean(words)}
    if reference_words is None:
        return metrics
    rated = [(rating, n - reference_words) for p, n in zip(predictions, words, strict=True)
             if (rating := rating_of(p)) is not None]  # fmt: skip
    found = length_controlled([rating for rating, _ in rated], [extra for _, extra in rated])
    return metrics | {
        "reference_words": reference_words,
        "overall_length_controlled": found.value if found else None,
        "overall_length_controlled_low": found.interval.low if found else None,
        "overall_length_controlled_high": found.interval.high if found else None,
    }


def _bounds(name: str, interval: Interval) -> Metrics:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high, f"{name}_interval": interval.method}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
