from collections.abc import Callable
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from sparkles.eval.benchmark import Prediction
from sparkles.eval.variance import split_variance, variance_table
from sparkles.types import InputError

Make = Callable[..., Prediction]


def simulated(make_prediction: Make, *, seeds: int, repeats: int, items: int = 400) -> list[list[Prediction]]:
    """Ratings with standard deviations of 1 (item), 0.7 (seed), 0.5 (item x seed) and 0.3 (judge)."""
    rng = np.random.default_rng(0)
    item = rng.normal(0, 1, items)
    runs = []
    for seed in range(seeds):
        base = item + rng.normal(0, 0.7) + rng.normal(0, 0.5, items)
        for _ in range(repeats):
            ratings = 5 + base + rng.normal(0, 0.3, items)
            runs.append(
                [
                    make_prediction(str(n), answers=[f"by seed {seed}", "x"], rating=float(rating))
                    for n, rating in enumerate(ratings)
                ]
            )
    return runs


def test_variances_are_those_that_the_ratings_were_drawn_with(make_prediction: Make) -> None:
    found = split_variance("sparkles_eval", simulated(make_prediction, seeds=8, repeats=3))
    assert (found.num_items, found.num_seeds, found.num_repeats, found.dropped) == (400, 8, (3,) * 8, 0)
    assert found.item == pytest.approx(1.0, rel=0.15)
    assert found.item_by_seed == pytest.approx(0.25, rel=0.1)
    assert found.judge == pytest.approx(0.09, rel=0.1)
    assert found.seed == pytest.approx(0.49, rel=0.7)  # of eight draws


def test_the_standard_error_is_made_of_all_parts(make_prediction: Make) -> None:
    found = split_variance("sparkles_eval", simulated(make_prediction, seeds=3, repeats=2, items=100))
    assert found.standard_error == pytest.approx(
        np.sqrt(found.item / 100 + found.seed / 3 + found.item_by_seed / 300 + found.judge / 600)
    )


def test_one_seed_judged_twice_tells_the_judge_from_the_items_only(make_prediction: Make) -> None:
    found = split_variance("sparkles_eval", simulated(make_prediction, seeds=1, repeats=2))
    assert (found.seed, found.item_by_seed) == (None, None)
    assert found.judge == pytest.approx(0.09, rel=0.2)
    assert found.item == pytest.approx(1.25, rel=0.15)


def test_an_accuracy_has_no_judge(make_prediction: Make) -> None:
    runs = [
        [make_prediction(str(n), correct=(n + seed) % 4 > 0, answers=()) for n in range(40)]
        for seed in range(2)
    ]
    for index, run in enumerate(runs):
        for prediction in run:
            prediction.dialogue[-1]["content"] = f"seed {index}"
    found = split_variance("bison", runs)
    assert found.judge is None
    assert found.mean == 0.75
    assert found.seed == 0.0


def test_items_without_a_score_in_some_run_are_dropped_and_said(make_prediction: Make) -> None:
    runs = simulated(make_prediction, seeds=2, repeats=1, items=10)
    runs[0][0] = make_prediction("0", answers=["by seed 0", "x"], rating=None)
    found = split_variance("sparkles_eval", [runs[0], runs[1][:-1]])
    assert (found.num_items, found.dropped) == (8, 2)
    text = StringIO()
    Console(width=160, file=text).print(variance_table([found]))
    assert "8, 2 not in all runs" in text.getvalue()


def test_runs_without_common_items_are_refused(make_prediction: Make) -> None:
    with pytest.raises(InputError, match="bison: 0 items are scored in all 2 runs"):
        split_variance("bison", [[make_prediction("1")], [make_prediction("2")]])
