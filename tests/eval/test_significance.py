"""Intervals cover what they say, and tests agree with scipy and statsmodels, on data drawn with a fixed seed."""

import numpy as np
import pytest
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import sparse, stats

from sparkles.eval.significance import (
    Overlap,
    mean_difference,
    mean_interval,
    overlap,
    proportion_difference,
    proportion_interval,
)


def groups(num: int, size: int) -> Overlap:
    """`num` disjoint groups of `size` items."""
    found = overlap([[index // size] for index in range(num * size)])
    assert found is not None
    return found


def correlated(rng: np.random.Generator, num: int, size: int, mean: float) -> NDArray[np.bool_]:
    """Right or wrong for groups whose items are strongly alike: Beta-binomial with a correlation of 1/2."""
    shares = rng.beta(mean, 1 - mean, num)
    return np.asarray(rng.random((num, size)) < shares[:, None]).ravel()


@pytest.mark.parametrize(
    ("successes", "low", "high"), [(85, 0.487, 0.643), (87, 0.500, 0.656), (150, 0.975, 1.0), (0, 0.0, 0.025)]
)
def test_wilson_intervals_of_150_items(successes: int, low: float, high: float) -> None:
    found = proportion_interval([True] * successes + [False] * (150 - successes))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    assert found.method == "Wilson"


def test_a_mean_of_many_values_has_the_interval_of_its_standard_error() -> None:
    values = [float(i % 10) for i in range(400)]  # mean 4.5, standard error 0.1437
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((4.5 - 0.2816, 4.5 + 0.2816), abs=0.02)
    assert found.method == "bootstrap over 400 items"
    assert mean_interval(values) == found


def test_too_few_or_equal_values() -> None:
    for interval in (mean_interval([]), mean_interval([3.0]), proportion_interval([])):
        assert (interval.low, interval.high) == (None, None)
    equal = mean_interval([3.0, 3.0])
    assert (equal.low, equal.high) == (3.0, 3.0)


def test_items_overlap_where_they_share_a_key_that_not_all_have() -> None:
    assert overlap([["a"], ["b"], ["c"]]) is None
    assert overlap([["all", "a"], ["all", "b"], ["all", "c"]]) is None
    found = overlap([["a"], ["a", "b"], ["b"], []])
    assert found is not None
    assert found.pairs.toarray().sum(axis=1).tolist() == [2, 3, 2, 1]


def test_groups_of_equal_size_are_counted_as_they_are() -> None:
    assert groups(25, 4).groups == 25


def test_the_design_effect_of_groups_is_that_of_statsmodels() -> None:
    values = correlated(np.random.default_rng(1), 30, 4, 0.6).astype(float)
    fit = sm.OLS(values, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": np.arange(120) // 4})
    independent = values.var() / 120
    assert groups(30, 4).design_effect(values) == pytest.approx(fit.bse[0] ** 2 / independent)


def test_a_clustered_interval_covers_where_the_plain_one_does_not() -> None:
    rng, shared = np.random.default_rng(2), groups(60, 4)
    plain = clustered = 0
    for _ in range(300):
        successes = correlated(rng, 60, 4, 0.7).tolist()
        for_independent, for_groups = proportion_interval(successes), proportion_interval(successes, shared)
        plain += for_independent.low <= 0.7 <= for_independent.high
        clustered += for_groups.low <= 0.7 <= for_groups.high
    assert plain / 300 < 0.87
    assert clustered / 300 == pytest.approx(0.95, abs=0.03)


def test_overlap_widens_the_interval_of_a_mean_and_says_so() -> None:
    values = np.repeat(np.random.default_rng(3).normal(size=40), 3).tolist()
    plain, clustered = mean_interval(values), mean_interval(values, groups(40, 3))
    assert clustered.high - clustered.low == pytest.approx(np.sqrt(3) * (plain.high - plain.low), rel=0.1)
    assert clustered.method == "cluster-robust t"


def test_all_right_in_few_groups_is_less_certain_than_in_many_items() -> None:
    shared, successes = groups(10, 5), [True] * 50
    assert proportion_interval(successes, shared).low < 0.75 < proportion_interval(successes).low
    assert "50 overlapping items counted as" in proportion_interval(successes, shared).method


def test_items_that_all_overlap_tell_nothing() -> None:
    everything = Overlap(sparse.csr_array(np.ones((4, 4), bool)))
    assert proportion_interval([True, False, True, True], everything).low is None
    assert mean_interval([1.0, 2.0, 3.0, 4.0], everything).low is None


@pytest.mark.parametrize(("gained", "lost"), [(10, 2), (7, 7), (0, 0), (40, 21)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_items(gained: int, lost: int) -> None:
    ours = [True] * gained + [False] * lost + [True] * 20
    theirs = [False] * gained + [True] * lost + [True] * 20
    found = proportion_difference(ours, theirs)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected)
    assert found.value == pytest.approx((gained - lost) / len(ours))
    assert found.interval.low < found.value < found.interval.high or gained + lost == 0
    assert (found.test, found.clustered_p_value) == ("exact McNemar", None)


def test_the_interval_of_a_paired_difference_covers_it() -> None:
    rng, covered = np.random.default_rng(4), 0
    for _ in range(1_000):
        cells = rng.choice(3, size=80, p=[0.25, 0.10, 0.65])  # the first alone right, the second alone, alike
        found = proportion_difference((cells == 0).tolist(), (cells == 1).tolist()).interval
        covered += found.low <= 0.15 <= found.high
    assert covered / 1_000 == pytest.approx(0.95, abs=0.02)


def test_the_clustered_test_keeps_its_level_where_mcnemar_does_not() -> None:
    rng, shared = np.random.default_rng(5), groups(40, 4)
    plain = clustered = 0
    for _ in range(300):
        # Groups lean to either run, none is better.
        ours, theirs = correlated(rng, 40, 4, 0.5), correlated(rng, 40, 4, 0.5)
        found = proportion_difference(ours.tolist(), theirs.tolist(), shared)
        plain += found.p_value < 0.05
        clustered += found.clustered_p_value < 0.05
    assert plain / 300 > 0.1
    assert clustered / 300 == pytest.approx(0.05, abs=0.03)


def test_the_permutation_test_of_few_ratings_is_exact() -> None:
    found = mean_difference([8.0, 7.0, 9.0, 6.0, 8.0], [7.0, 6.0, 7.0, 5.0, 6.0])
    assert found.p_value == 2 / 2**5  # all signs alike, either way
    assert found.value == pytest.approx(1.4)


def test_a_single_rating_tells_nothing() -> None:
    found = mean_difference([8.0], [6.0])
    assert (found.value, found.p_value, found.interval.low) == (2.0, 1.0, None)


def test_equal_ratings_differ_by_nothing() -> None:
    ratings = [float(i % 7) for i in range(21)]
    found = mean_difference(ratings, ratings, groups(7, 3))
    assert (found.value, found.p_value, found.clustered_p_value) == (0.0, 1.0, 1.0)
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)
