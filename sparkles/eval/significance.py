"""What scores of so many items can tell: 95 % intervals, and paired tests between two runs.

Items may overlap: NLVR asks one sentence of several pictures, BISON shows one picture with several sentences.
Their scores are not independent, and intervals that take them for it come out too narrow. So every function here
takes the `Overlap` of the items and, where there is one, the variance that is robust to it.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
RESAMPLES = 9_999
_TAIL = (1 + CONFIDENCE) / 2


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval."""

    low: float | None = None
    """None, as `high`, where there are too few values for an interval."""
    high: float | None = None
    method: str = "too few values"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of one run minus the mean of another on the same items."""

    value: float
    interval: Interval
    p_value: float
    """Two-sided, of the test that takes the items for independent."""
    test: str
    clustered_p_value: float | None = None
    """Two-sided, of a t-test with the variance that is robust to overlap; None where no items overlap."""


@dataclass(frozen=True)
class Overlap:
    """Which items share something, a sentence or a picture.

    The variance of a mean is then the sum of the products of residuals over all pairs that share something. For
    disjoint groups this is the usual cluster-robust variance (Liang and Zeger 1986); where an item shares its
    sentence with some and its picture with others it is that of Aronow, Samii and Assenova (2015), which does not
    join into one group all that hangs together by some chain.
    """

    pairs: sparse.csr_array
    """bool[n, n], the diagonal included."""

    @property
    def groups(self) -> float:
        """How many groups of equal size would overlap as much as these items do."""
        return float(self.pairs.shape[0] ** 2 / self.pairs.sum())

    @property
    def critical_value(self) -> float:
        """Of Student's t, with the degrees of freedom that the groups leave; infinite for a single group."""
        return float(stats.t.ppf(_TAIL, self.groups - 1)) if self.groups > 1 else np.inf

    def design_effect(self, values: NDArray[np.float64]) -> float:
        """The variance of the mean of `values` (float[n]) over what it is for independent items; at least 1."""
        residuals = values - values.mean()
        if not residuals.any() or self.groups <= 1:  # equal values show no correlation: assume the highest
            return float(self.pairs.sum() / len(values))
        robust = residuals @ (self.pairs @ residuals) * self.groups / (self.groups - 1)
        return max(1.0, float(robust / (residuals @ residuals)))


def overlap(keys: Sequence[Collection[Hashable]]) -> Overlap | None:
    """Items that have a key in common, `keys` being those of each item; None where there are none.

    What all items have tells none apart and is left out.

    >>> overlap([["a"], ["a", "b"], ["b"], ["c"]]).pairs.toarray().astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    """
    counts = Counter(chain.from_iterable(set(own) for own in keys))
    columns = {key: index for index, key in enumerate(k for k, n in counts.items() if 1 < n < len(keys))}
    if not columns:
        return None
    places = [(row, columns[key]) for row, own in enumerate(keys) for key in set(own) if key in columns]
    rows, cols = zip(*places, strict=True)
    has = sparse.csr_array((np.ones(len(rows)), (rows, cols)), shape=(len(keys), len(columns)))
    return Overlap(sparse.csr_array(((has @ has.T) + sparse.eye_array(len(keys))) > 0))


def proportion_interval(successes: Sequence[bool], shared: Overlap | None = None) -> Interval:
    """Of a share: Wilson's, where items overlap at the effective number of items.

    That is n over the design effect, and less where few groups make the variance itself uncertain: the method of
    Korn and Graubard (1998) with Wilson's interval in place of Clopper and Pearson's, see Dean and Pagano (2015).
    """
    num = len(successes)
    if num == 0:
        return Interval()
    method, effective = "Wilson", float(num)
    if shared:
        effective /= shared.design_effect(np.asarray(successes, float))
        effective *= (stats.norm.ppf(_TAIL) / shared.critical_value) ** 2
        method = f"Wilson, {num} overlapping items counted as {effective:.0f}"
    if effective == 0:
        return Interval(method="every item overlaps with every other")
    share = sum(successes) / num
    low, high = proportion_confint(share * effective, effective, alpha=1 - CONFIDENCE, method="wilson")
    return Interval(low=float(low), high=float(high), method=method)


def mean_interval(values: Sequence[float], shared: Overlap | None = None) -> Interval:
    """Of a mean of items (dialogues, not turns): bias-corrected bootstrap with a fixed seed, or cluster-robust t."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return Interval()
    if np.ptp(array) == 0:  # resampling cannot show any spread
        return Interval(low=float(array[0]), high=float(array[0]), method="all values are equal")
    if shared:
        half = shared.critical_value * _standard_error(array, shared)
        if not np.isfinite(half):
            return Interval(method="every item overlaps with every other")
        mean = float(array.mean())
        return Interval(low=mean - half, high=mean + half, method="cluster-robust t")
    found = stats.bootstrap(
        (array,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, batch=1_000, rng=_rng()
    )
    low, high = found.confidence_interval
    return Interval(low=float(low), high=float(high), method=f"bootstrap over {len(array)} items")


def proportion_difference(
    ours: Sequence[bool], theirs: Sequence[bool], shared: Overlap | None = None
) -> Difference:
    """Of two runs on the same items: exact McNemar test, and the interval of Agresti and Min (2005).

    That interval adds half an item to each cell of the 2 x 2 table, so that it has a width where the runs never
    disagree. Where items overlap it is widened by the design effect.
    """
    first, second = np.asarray(ours, bool), np.asarray(theirs, bool)
    table = np.array([[(first & second).sum(), (first & ~second).sum()],
                      [(~first & second).sum(), (~first & ~second).sum()]])  # fmt: skip
    num, gained, lost = len(first), table[0, 1], table[1, 0]
    differences = first.astype(float) - second
    center = (gained - lost) / (num + 2)
    half = _critical(shared) * sqrt(((gained + lost + 1) / (num + 2) - center**2) / (num + 2))
    if shared:
        half *= sqrt(shared.design_effect(differences))
    return Difference(
        value=float(differences.mean()),
        interval=Interval(
            low=max(-1.0, float(center - half)),
            high=min(1.0, float(center + half)),
            method="Agresti and Min" + (", cluster-robust" if shared else ""),
        ),
        p_value=float(mcnemar(table, exact=True).pvalue),
        test="exact McNemar",
        clustered_p_value=_robust_p_value(differences, shared),
    )


def mean_difference(
    ours: Sequence[float], theirs: Sequence[float], shared: Overlap | None = None
) -> Difference:
    """Of two runs' ratings of the same items: paired permutation test, which swaps the runs item by item."""
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    p_value = 1.0  # of fewer than 2 items, which scipy does not test
    if len(differences) >= 2:
        tested = stats.permutation_test(
            (np.asarray(ours, float), np.asarray(theirs, float)),
            lambda x, y, axis: np.mean(x - y, axis=axis),
            permutation_type="samples",
            n_resamples=RESAMPLES,
            batch=1_000,
            rng=_rng(),
        )
        p_value = float(tested.pvalue)
    return Difference(
        value=float(differences.mean()),
        interval=mean_interval(differences.tolist(), shared),
        p_value=p_value,
        test="paired permutation",
        clustered_p_value=_robust_p_value(differences, shared),
    )


def _critical(shared: Overlap | None) -> float:
    return shared.critical_value if shared else float(stats.norm.ppf(_TAIL))


def _standard_error(values: NDArray[np.float64], shared: Overlap) -> float:
    return float(stats.sem(values) * sqrt(shared.design_effect(values)))


def _robust_p_value(differences: NDArray[np.float64], shared: Overlap | None) -> float | None:
    if shared is None:
        return None
    if not differences.any() or shared.groups <= 1:
        return 1.0
    error = _standard_error(differences, shared)
    if error == 0:  # the same difference at every item
        return 0.0
    return float(2 * stats.t.sf(abs(differences.mean()) / error, shared.groups - 1))


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)
