"""95 % intervals: what a number from so many items can tell."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

CONFIDENCE = 0.95
RESAMPLES = 9_999

Interval = tuple[float | None, float | None]
"""(low, high), None where there are too few values for an interval."""


def wilson_interval(successes: int, num: int) -> Interval:
    """Of a proportion.

    >>> [round(bound, 3) for bound in wilson_interval(85, 150)]
    [0.487, 0.643]
    """
    if num == 0:
        return None, None
    low, high = proportion_confint(successes, num, alpha=1 - CONFIDENCE, method="wilson")
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """Of the mean of independent values (dialogues, not turns), by the bias-corrected bootstrap with a fixed seed."""
    if len(values) < 2:
        return None, None
    if len(set(values)) == 1:  # resampling cannot show any spread
        return fmean(values), fmean(values)
    result = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=1_000,
        rng=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
