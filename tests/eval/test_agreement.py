from collections.abc import Callable

import numpy as np
import pytest

from sparkles.eval.agreement import agreement, agreements, human_ratings, judge_ratings, krippendorff_alpha
from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.rating import CELLS, HumanRating
from sparkles.types import CRITERIA, InputError, Verdict

Make = Callable[..., Prediction]
PUBLISHED = [  # four observers, twelve units: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), E
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_alpha_is_the_published_one() -> None:
    units = [[float(value) for value in unit if value is not None] for unit in zip(*PUBLISHED, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_full_agreement_of_chance_and_of_opposites() -> None:
    values = np.random.default_rng(0).normal(size=(2, 20_000))
    assert krippendorff_alpha([[x, x] for x in (1.0, 2.0, 5.0)]) == pytest.approx(1.0)
    assert krippendorff_alpha(values.T.tolist()) == pytest.approx(0.0, abs=0.03)
    assert krippendorff_alpha([[1.0, 9.0], [9.0, 1.0]] * 50) == pytest.approx(-1.0, abs=0.02)


@pytest.mark.parametrize("units", [[], [[1.0], [2.0]], [[3.0, 3.0], [3.0, 3.0]]])
def test_alpha_is_undefined_where_nothing_varies_or_is_rated_twice(units: list[list[float]]) -> None:
    assert krippendorff_alpha(units) is None


def cells(**scores: float) -> dict[str, float]:
    return {cell: scores.get(cell.split("/")[1], 5.0) for cell in CELLS}


def test_each_criterion_has_its_own_alpha() -> None:
    one = {str(n): cells(C1=n, C2=n) for n in range(1, 10)}
    other = {str(n): cells(C1=n, C2=10 - n) for n in range(1, 10)}
    found = agreement({"one": one, "other": other})
    assert found.num == 9
    assert found.alpha["C1"] == pytest.approx(1.0)
    assert (found.alpha["C2"] or 0) < -0.5
    assert found.alpha["C3"] is None
    assert 0 < (found.alpha["overall"] or 0) < 1
    assert found.intervals["C1"].low == pytest.approx(1.0)
    assert found.intervals["C3"].low is None


def test_the_interval_of_alpha_covers_it() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(5, 2, 300)  # and errors of half its variance: alpha is 4 / (4 + 2)
    one, other = (
        {str(n): cells(C1=x + rng.normal(0, 2**0.5)) for n, x in enumerate(truth)} for _ in range(2)
    )
    found = agreement({"one": one, "other": other})
    interval = found.intervals["C1"]
    assert interval.low < found.alpha["C1"] < interval.high
    assert interval.low < 2 / 3 < interval.high
    assert interval.high - interval.low < 0.2


def test_cells_that_a_person_left_empty_are_not_counted() -> None:
    judge = {str(n): cells(C1=n, C2=n) for n in range(1, 10)}
    person = {key: {"A1/C1": scores["A1/C1"]} for key, scores in judge.items()}
    found = agreement({"judge": judge, "person": person})
    assert found.alpha["C1"] == pytest.approx(1.0)
    assert found.alpha["C2"] is found.alpha["overall"] is None


def test_a_judge_that_rates_a_dialogue_again_is_another_rater(make_prediction: Make) -> None:
    runs = [[make_prediction(answers=["a", "b"], rating=rating, judge="gpt-4")] for rating in (7.0, 8.0, 9.0)]
    found = judge_ratings([*runs, [make_prediction(answers=["a", "b"], rating=None)], [make_prediction()]])
    assert list(found) == ["gpt-4", "gpt-4, verdict 2", "gpt-4, verdict 3"]
    assert [rated[next(iter(rated))]["A2/C3"] for rated in found.values()] == [7.0, 8.0, 9.0]


def test_the_members_of_an_ensemble_are_raters(make_prediction: Make) -> None:
    prediction = make_prediction(answers=["a", "b"], rating=5.0)
    scores = {
        name: {a: dict.fromkeys(CRITERIA, value) for a in ("A1", "A2")}
        for name, value in (("x", 4.0), ("y", 6.0))
    }
    verdict = Verdict(scores=prediction.score.verdict.scores, judge="mean of x; y", members=scores)
    object.__setattr__(prediction, "score", Score(verdict=verdict))
    assert list(judge_ratings([[prediction]])) == ["x", "y"]


def test_judges_are_compared_with_the_mean_of_the_people() -> None:
    judge = {str(n): cells(C1=n, C2=n, C3=n) for n in range(1, 10)}
    people = human_ratings(
        [
            HumanRating(
                rater=rater, dialogue=key, scores={cell: score + step for cell, score in scores.items()}
            )
            for rater, step in (("ann", -1.0), ("bob", 1.0))
            for key, scores in judge.items()
        ]
    )
    among_people, with_people = agreements({"rubric": judge}, people)
    assert among_people.raters == ("ann", "bob")
    assert (among_people.alpha["C1"] or 0) < 1
    assert with_people.raters == ("rubric", "mean of 2 people")
    assert with_people.alpha["C1"] == pytest.approx(1.0)


def test_raters_of_different_dialogues_are_refused() -> None:
    with pytest.raises(
        InputError, match="no dialogue was rated twice, by rubric, ann; give runs with the same"
    ):
        agreements({"rubric": {"a": cells()}}, {"ann": {"b": cells()}})
