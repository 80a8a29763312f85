import math

import numpy as np
import pytest

from sparkles.eval.crossed import (
    Estimate,
    Part,
    Scores,
    crossed_difference,
    crossed_mean,
    seed_variance,
    share_interval,
    spread_mean,
)
from sparkles.eval.significance import overlap

ITEMS, SEEDS, REPEATS = 100, 3, 400


def drawn(rng: np.random.Generator, *, item: float, seed: float, rest: float, mean: float = 0.0) -> Scores:
    """Scores of items and seeds with parts of these deviations."""
    return (
        mean
        + rng.normal(0, item, (ITEMS, 1))
        + rng.normal(0, seed, (1, SEEDS))
        + rng.normal(0, rest, (ITEMS, SEEDS))
    )


def right(rng: np.random.Generator, *, share: float, item: float, seed: float) -> Scores:
    """Zeros and ones whose odds differ by item and seed."""
    logit = math.log(share / (1 - share)) + drawn(rng, item=item, seed=seed, rest=0)
    return (rng.random((ITEMS, SEEDS)) < 1 / (1 + np.exp(-logit))).astype(float)


@pytest.mark.parametrize(
    ("item", "seed", "rest"),
    [(1, 0, 1), (1, 0.05, 1), (1, 0.15, 1), (1, 0.5, 1), (0.5, 0.15, 1), (0.1, 1, 0.1)],
)
def test_the_interval_holds_the_mean_as_often_as_it_says(item: float, seed: float, rest: float) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(REPEATS):
        estimate = crossed_mean(drawn(rng, item=item, seed=seed, rest=rest))
        held += abs(estimate.value) <= estimate.half_width()
    assert held / REPEATS > 0.925


def test_two_models_that_are_equally_good_seldom_differ() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(REPEATS):
        ours, theirs = (drawn(rng, item=0.5, seed=0.1, rest=1) for _ in range(2))
        found += crossed_difference(ours, theirs).p_value < 0.05
    assert found / REPEATS < 0.075


def test_shares_close_to_one_are_held_as_well() -> None:
    rng = np.random.default_rng(2)
    truth = right(rng, share=0.95, item=1, seed=0.3).mean()
    truth = float(np.mean([right(rng, share=0.95, item=1, seed=0.3).mean() for _ in range(2000)]))
    held = 0
    for _ in range(REPEATS):
        interval = share_interval(crossed_mean(right(rng, share=0.95, item=1, seed=0.3)))
        assert interval.low is not None
        assert interval.high is not None
        assert 0 <= interval.low <= interval.high <= 1
        held += interval.low <= truth <= interval.high
    assert held / REPEATS > 0.92


def test_the_p_value_is_where_the_interval_ends() -> None:
    estimate = Estimate(value=2.0, parts=(Part(variance=0.5, freedom=200), Part(variance=0.3, freedom=2)))
    assert estimate.half_width(1 - estimate.p_value) == pytest.approx(2.0)


def test_one_part_alone_is_a_t_test() -> None:
    estimate = Estimate(value=2.0, parts=(Part(variance=1.0, freedom=2),))
    assert estimate.half_width() == pytest.approx(4.303, abs=1e-3)
    assert estimate.p_value == pytest.approx(0.1835, abs=1e-4)


def test_one_seed_says_nothing_of_seeds() -> None:
    scores = np.array([[0.0], [1.0], [1.0], [0.0]])
    assert len(crossed_mean(scores).parts) == 1
    assert seed_variance(scores) is None


def test_seeds_that_differ_by_more_than_their_items_explain_widen_the_interval() -> None:
    scores = np.tile(np.arange(50.0)[:, None] % 2, (1, 3))
    apart = scores + np.array([[-1.0, 0.0, 1.0]])
    assert crossed_mean(apart).half_width() > 10 * crossed_mean(scores).half_width()
    assert seed_variance(apart) == pytest.approx(1.0)


def test_overlapping_items_widen_the_interval() -> None:
    scores = np.repeat(np.random.default_rng(0).normal(size=(25, 3)), 4, axis=0)
    shared = overlap([[index // 4] for index in range(100)])
    found, taken_for_independent = crossed_mean(scores, shared), crossed_mean(scores)
    assert found.half_width() > taken_for_independent.half_width()
    assert found.parts[0].variance > 3 * taken_for_independent.parts[0].variance


def test_models_that_never_differ_are_not_known_to_be_equal() -> None:
    scores = np.ones((98, 3))
    difference = crossed_difference(scores, scores, smallest=1.0)
    assert difference.value == 0
    assert difference.half_width() == pytest.approx(1.984 / 100, abs=1e-4)
    assert difference.p_value == 1.0


def test_a_share_that_is_always_one_keeps_an_interval() -> None:
    interval = share_interval(crossed_mean(np.ones((50, 3))))
    assert interval.high == pytest.approx(1.0)
    assert interval.low == pytest.approx(0.929, abs=1e-3)


def test_intervals_of_runs_stand_in_for_items() -> None:
    estimate = spread_mean([0.5, 0.6, 0.7], [0.098, 0.098, 0.098])
    items, seeds = estimate.parts
    assert estimate.value == pytest.approx(0.6)
    assert items.variance == pytest.approx(0.05**2, rel=1e-3)
    assert seeds.variance == pytest.approx(0.01 / 3)


def test_without_intervals_nothing_is_known() -> None:
    estimate = spread_mean([0.5, 0.6], [])
    assert (estimate.half_width(), estimate.interval.low, estimate.p_value) == (math.inf, None, 1.0)
    assert estimate.minus(estimate).parts == ()
