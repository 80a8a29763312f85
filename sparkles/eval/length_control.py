"""Ratings at equal answer length: judges tend to rate long answers higher, whatever they say.

After length-controlled AlpacaEval (Dubois, Galambosi, Liang and Hashimoto 2024, arXiv:2404.04475): regress the score
on how much longer the answer is, tanh(words / standard deviation of words), and read the prediction at no
difference, which is the intercept. Scores here are ratings of one run or differences between two, so that the
regression is linear (least squares with HC3 errors) where theirs, of preferences, is logistic, and items need no
term for their difficulty: in a difference it cancels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.regression.linear_model import OLS
from statsmodels.tools import add_constant

from sparkles.eval.significance import CONFIDENCE, Interval

FEWEST = 10
"""Below so many scores a slope says nothing."""


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """What the mean score would be without the extra words."""

    value: float
    interval: Interval
    p_value: float
    """Of the value being zero: of use for differences."""
    slope: float
    """Score per standard deviation of extra words, around no extra words."""


def length_controlled(scores: Sequence[float], extra_words: Sequence[float]) -> LengthControlled | None:
    """The mean of `scores` at no extra words.

    Returns:
        None where the data cannot say: few scores, equal lengths, or lengths all on one side of no extra words.
    """
    words = np.asarray(extra_words, float)
    if len(words) < FEWEST or words.min() > 0 or words.max() < 0 or np.ptp(words) == 0:
        return None
    # Not around its mean: at no extra words the regressor has to be zero.
    extra = np.tanh(words / words.std())
    fit = OLS(np.asarray(scores, float), add_constant(extra)).fit(cov_type="HC3", use_t=True)
    low, high = fit.conf_int(alpha=1 - CONFIDENCE)[0]
    return LengthControlled(
        value=float(fit.params[0]),
        interval=Interval(low=float(low), high=float(high), method="least squares, HC3"),
        p_value=float(fit.pvalues[0]),
        slope=float(fit.params[1]),
    )
