from collections.abc import Callable
from dataclasses import replace

import pytest

from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.metrics import choice_metrics, metrics_of, overall_rating, rating_metrics
from sparkles.types import CRITERIA, Verdict


def prediction(score: Score, kind: str = "", num_tries: int = 1) -> Prediction:
    tries = [{"turn": 1, "response": "", "seconds": 0.0, "truncated": False}] * num_tries
    return Prediction(
        item_id="",
        kind=kind,
        prompt="",
        image_ids=[],
        dialogue=[],
        tries=tries,
        key="",
        label="TRUE",
        score=score,
    )


RIGHT, WRONG = Score(answer="TRUE", correct=True), Score(answer="FALSE", correct=False)
UNSCORED = Score(answer=None, correct=False)


def test_an_unreadable_answer_counts_as_wrong_and_is_counted() -> None:
    metrics = choice_metrics(
        [prediction(RIGHT), prediction(WRONG), prediction(UNSCORED), prediction(UNSCORED)]
    )
    assert (metrics["accuracy"], metrics["num"], metrics["unscored"]) == (0.25, 4, 2)
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert 0 < low < 0.25 < high < 1


def test_the_majority_rate_is_that_of_always_giving_the_most_frequent_label() -> None:
    labels = ["TRUE", "FALSE", "FALSE", "FALSE"]
    metrics = choice_metrics([replace(prediction(RIGHT), label=label) for label in labels])
    assert metrics["majority_rate"] == 0.75


def test_of_no_items_nothing_is_measured() -> None:
    metrics = choice_metrics([])
    assert (metrics["accuracy"], metrics["first_try_accuracy"], metrics["accuracy_low"]) == (None, None, None)
    assert (metrics["num"], metrics["majority_rate"]) == (0, None)


def test_only_first_tries_count_for_first_try_accuracy() -> None:
    metrics = choice_metrics([prediction(RIGHT), prediction(RIGHT, num_tries=2), prediction(WRONG)])
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["first_try_accuracy"] == pytest.approx(1 / 3)


def test_each_kind_has_its_own_accuracy_and_count() -> None:
    metrics = choice_metrics(
        [prediction(RIGHT, "color"), prediction(WRONG, "color"), prediction(RIGHT, "place")]
    )
    assert (metrics["kind/color/accuracy"], metrics["kind/color/num"]) == (0.5, 2)
    assert (metrics["kind/place/accuracy"], metrics["kind/place/num"]) == (1.0, 1)


def test_items_without_a_kind_make_no_metrics_by_kind() -> None:
    assert not any(name.startswith("kind/") for name in choice_metrics([prediction(RIGHT)]))


def test_ratings_are_means_over_rated_dialogues() -> None:
    scores = {"A1": {"C1": 9.0, "C2": 6.0, "C3": 3.0}, "A2": dict.fromkeys(CRITERIA, 4.0)}
    low_scores = {answer: dict.fromkeys(CRITERIA, 2.0) for answer in ("A1", "A2")}
    verdicts = [
        Verdict(scores=scores, judge="j"),
        Verdict(scores=low_scores, judge="j"),
        Verdict(scores=None, judge="j", unscored_reason="refused"),
    ]
    metrics = rating_metrics([prediction(Score(verdict=verdict)) for verdict in verdicts])
    assert metrics["A1/C1"] == 5.5
    assert (metrics["A1/mean"], metrics["A2/mean"], metrics["overall"]) == (4.0, 3.0, 3.5)
    assert (metrics["num"], metrics["unscored"], metrics["judge"]) == (3, 1, "j")
    assert overall_rating(scores) == 5.0


def test_without_any_rating_there_is_no_mean() -> None:
    metrics = rating_metrics([prediction(Score(verdict=Verdict(scores=None, judge="j")))])
    assert metrics["overall"] is metrics["overall_low"] is metrics["A1/C1"] is None
    assert metrics["unscored"] == 1


def test_an_interval_says_how_it_was_made(make_prediction: Callable[..., Prediction]) -> None:
    alone = [make_prediction(str(n), correct=n % 3 > 0) for n in range(60)]
    in_fours = [make_prediction(str(n), question=f"{n // 4}", correct=n // 4 % 3 > 0) for n in range(60)]
    plain, clustered = choice_metrics(alone), choice_metrics(in_fours)
    assert plain["accuracy"] == clustered["accuracy"]
    assert plain["accuracy_interval"] == "Wilson"
    assert (
        clustered["accuracy_interval"] == "Wilson, 60 overlapping items counted as 12"
    )  # t instead of z for 15
    assert clustered["accuracy_low"] < plain["accuracy_low"]  # type: ignore[operator]


def test_dialogues_are_resampled_and_not_turns(make_prediction: Callable[..., Prediction]) -> None:
    rated = [make_prediction(str(n), answers=["a", "b"], rating=1.0 + n % 9) for n in range(18)]
    assert rating_metrics(rated)["overall_interval"] == "bootstrap over 18 items"


def test_a_rating_at_the_length_of_the_reference_stands_beside_the_raw_one(
    make_prediction: Callable[..., Prediction],
) -> None:
    rated = [make_prediction(str(n), answers=["w " * n, "w"], rating=1.0 + n / 5) for n in range(40)]
    metrics = rating_metrics(rated, reference_words=11.0)
    assert metrics["words"] == 20.5
    assert metrics["overall_length_controlled_low"] < metrics["overall_length_controlled"]  # type: ignore[operator]
    assert metrics["overall_length_controlled"] < metrics["overall"]  # type: ignore[operator]
    assert rating_metrics(rated, reference_words=400.0)["overall_length_controlled"] is None
    assert "overall_length_controlled" not in rating_metrics(rated)


def test_what_a_judge_rated_has_ratings_and_the_rest_accuracies(
    make_prediction: Callable[..., Prediction],
) -> None:
    assert "accuracy" in metrics_of([make_prediction()])
    assert "overall" in metrics_of([make_prediction(answers=["a", "b"], rating=None)])
