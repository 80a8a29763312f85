"""The smallest difference that so many items can show: 80 % power at the 5 % level, two-sided."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from scipy import optimize, stats
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.proportion import power_proportions_2indep

from sparkles.types import InputError

POWER = 0.8
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """One way to compare two runs, and the smallest difference that it shows."""

    comparison: str
    test: str
    difference: float | None
    """None where no difference is large enough."""


def detectable_differences(
    num: int, *, accuracy: float = 0.5, discordances: Sequence[float] = (), deviation: float | None = None
) -> list[Detectable]:
    """For accuracies on the same items, for each discordance, and on different ones; for ratings given a deviation.

    Raises:
        InputError: a share outside of 0 to 1, or fewer than two items.
    """
    found = [
        Detectable(
            comparison=f"accuracy, same items, {100 * discordance:g} % discordant",
            test="exact McNemar",
            difference=detectable_paired(num, discordance),
        )
        for discordance in discordances
    ]
    found.append(
        Detectable(
            comparison=f"accuracy, different items, above {100 * accuracy:g} %",
            test="two proportions",
            difference=detectable_unpaired(num, accuracy),
        )
    )
    if deviation is not None:
        found += [
            Detectable(
                comparison=f"rating, {which} items, deviation {deviation:g}",
                test="t-test",
                difference=detectable_rating(num, deviation, paired=which == "same"),
            )
            for which in ("same", "different")
        ]
    return found


def power_table(num: int, found: Sequence[Detectable]) -> Table:
    """For a terminal."""
    table = Table(title=f"Smallest difference that {num} items show with 80 % power", title_justify="left")
    for column in ("comparison", "test", "difference"):
        table.add_column(column)
    for one in found:
        points = one.comparison.startswith("accuracy")
        shown = (
            "none"
            if one.difference is None
            else f"{100 * one.difference:.1f} points"
            if points
            else f"{one.difference:.2f}"
        )
        table.add_row(one.comparison, one.test, shown)
    return table


def mcnemar_power(num: int, discordance: float, difference: float) -> float:
    """Probability that the exact McNemar test of `num` pairs rejects.

    Args:
        discordance: share of the pairs in which one run is right and the other wrong.
        difference: of the two accuracies, at most the discordance.

    >>> mcnemar_power(150, 0.3, 0.0) < ALPHA  # the test is conservative
    True
    """
    discordant = np.arange(num + 1)
    # The test rejects when at most `bound` of the discordant pairs fall to either side.
    bound = stats.binom.ppf(ALPHA / 2, discordant, 0.5) - 1
    better = (1 + difference / discordance) / 2
    rejected = stats.binom.cdf(bound, discordant, better) + stats.binom.cdf(bound, discordant, 1 - better)
    return float(stats.binom.pmf(discordant, num, discordance) @ rejected)


def detectable_paired(num: int, discordance: float) -> float | None:
    """Difference of two accuracies on the same items, by the exact McNemar test; None where no difference is enough.

    >>> round(detectable_paired(150, 0.3), 3)
    0.128
    """
    _check(num, discordance=discordance)
    return _smallest(lambda difference: mcnemar_power(num, discordance, difference), discordance)


def detectable_unpaired(num: int, accuracy: float) -> float | None:
    """Difference of an accuracy from a lower one measured on `num` other items; None where there is none."""
    _check(num, accuracy=accuracy)

    def power(difference: float) -> float:
        return float(power_proportions_2indep(difference, accuracy, num, alpha=ALPHA, return_results=False))

    return _smallest(power, 1 - accuracy)


def detectable_rating(num: int, deviation: float, *, paired: bool) -> float:
    """Difference of two mean ratings by the t-test.

    Args:
        deviation: standard deviation of the differences between the runs if paired, else of the ratings.
    """
    _check(num)
    if paired:
        effect = TTestPower().solve_power(nobs=num, alpha=ALPHA, power=POWER)
    else:
        effect = TTestIndPower().solve_power(nobs1=num, alpha=ALPHA, power=POWER)
    return float(np.squeeze(effect)) * deviation


def _smallest(power: Callable[[float], float], highest: float) -> float | None:
    lowest, highest = 1e-9, highest - 1e-9
    if power(highest) < POWER:
        return None
    return float(optimize.brentq(lambda difference: power(difference) - POWER, lowest, highest, xtol=1e-5))


def _check(num: int, **shares: float) -> None:
    if num < 2:
        raise InputError(f"num={num}: expected at least 2 items")
    for name, share in shares.items():
        if not 0 < share < 1:
            raise InputError(f"{name}={share}: expected a share between 0 and 1, such as {name}=0.3")
