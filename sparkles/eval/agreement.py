"""How far judges, and people, agree about the same dialogues: Krippendorff's alpha for each criterion."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy import stats

from sparkles.eval.benchmark import Prediction
from sparkles.eval.judges import ANSWERS
from sparkles.eval.matching import dialogue_key
from sparkles.eval.metrics import ratings_by_judge
from sparkles.eval.rating import CELLS, HumanRating
from sparkles.eval.significance import CONFIDENCE, Interval
from sparkles.types import CRITERIA, InputError

Ratings = Mapping[str, Mapping[str, float]]
"""Of one rater: dialogue to cell (`A1/C1` ... `A2/C3`) to score."""

RESAMPLES = 2_000
OVERALL = "overall"
NOTE = (
    "Krippendorff's alpha for interval data with its 95 % bootstrap interval over dialogues: 1 is full agreement, 0 is "
    "what chance gives. A judge who rates higher throughout than another lowers it too."
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Between some raters, by criterion; `overall` is the mean of all six ratings of a dialogue."""

    raters: tuple[str, ...]
    num: int
    """Dialogues that at least two of them rated."""
    alpha: Mapping[str, float | None]
    """None where alpha is undefined: nothing rated twice, or all ratings equal."""
    intervals: Mapping[str, Interval]


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """Alpha for interval data (Krippendorff, Content Analysis, chapter 12).

    It is 1 - observed / expected disagreement. Both are mean squared differences, hence variances for interval data:
    within the units, and over all ratings that can be paired.

    Args:
        units: the ratings of each unit; a unit with fewer than two tells nothing.

    >>> krippendorff_alpha([[1, 1], [2, 2], [3, 3, 3]])
    1.0
    """
    return _finite(_alpha(*np.sum([_sums(unit) for unit in units], axis=0))) if units else None


def judge_ratings(runs: Sequence[Sequence[Prediction]]) -> dict[str, dict[str, dict[str, float]]]:
    """The ratings of each judge over all runs; what it said again of the same dialogue is a rater of its own."""
    raters: dict[str, dict[str, dict[str, float]]] = {}
    for prediction in chain.from_iterable(runs):
        key = dialogue_key(prediction)
        for judge, scores in ratings_by_judge(prediction).items():
            names = (judge if number == 1 else f"{judge}, verdict {number}" for number in count(1))
            name = next(name for name in names if key not in raters.get(name, {}))
            raters.setdefault(name, {})[key] = {
                f"{answer}/{criterion}": scores[answer][criterion]
                for answer in ANSWERS
                for criterion in CRITERIA
            }
    return raters


def human_ratings(ratings: Sequence[HumanRating]) -> dict[str, dict[str, Mapping[str, float]]]:
    raters: dict[str, dict[str, Mapping[str, float]]] = {}
    for rating in ratings:
        raters.setdefault(rating.rater, {})[rating.dialogue] = rating.scores
    return raters


def agreements(judges: Mapping[str, Ratings], people: Mapping[str, Ratings]) -> list[Agreement]:
    """Among the judges, among the people, and of each judge with the people's mean.

    Raises:
        InputError: no two raters share a dialogue.
    """
    found = [agreement(group) for group in (judges, people) if len(group) > 1]
    if people:
        consensus = _mean_ratings(list(people.values()))
        title = f"mean of {len(people)} people" if len(people) > 1 else next(iter(people))
        found += [agreement({judge: ratings, title: consensus}) for judge, ratings in judges.items()]
    found = [one for one in found if one.num]
    if not found:
        raise InputError(
            f"no dialogue was rated twice, by {', '.join([*judges, *people]) or 'nobody'}; give runs with the same "
            "answers and other judges, or ratings=CSV of the same runs"
        )
    return found


def agreement(raters: Mapping[str, Ratings]) -> Agreement:
    """Of these raters, on the dialogues that two of them rated."""
    keys = dict.fromkeys(key for ratings in raters.values() for key in ratings)
    shared = [key for key in keys if sum(bool(ratings.get(key)) for ratings in raters.values()) > 1]
    rated = {key: [ratings[key] for ratings in raters.values() if key in ratings] for key in shared}
    sums = {
        name: np.array([_dialogue_sums(rated[key], name) for key in shared]) for name in (*CRITERIA, OVERALL)
    }
    return Agreement(
        raters=tuple(raters),
        num=len(shared),
        alpha={
            name: _finite(_alpha(*values.sum(axis=0))) if shared else None for name, values in sums.items()
        },
        intervals={name: _interval(values) for name, values in sums.items()},
    )


def agreement_table(found: Sequence[Agreement]) -> Table:
    """For a terminal."""
    table = Table(show_lines=True, caption=NOTE, caption_justify="left")
    table.add_column("raters", overflow="fold")
    for column in ("dialogues", *CRITERIA, OVERALL):
        table.add_column(column)
    for one in found:
        cells = []
        for name, alpha in one.alpha.items():
            low, high = one.intervals[name].low, one.intervals[name].high
            bounds = "" if low is None or high is None else f"\n[{low:.2f}, {high:.2f}]"
            cells.append("undefined" if alpha is None else f"{alpha:.2f}{bounds}")
        table.add_row("\n".join(one.raters), str(one.num), *cells)
    return table


def _mean_ratings(raters: Sequence[Ratings]) -> dict[str, dict[str, float]]:
    keys = dict.fromkeys(key for ratings in raters for key in ratings)
    means = {}
    for key in keys:
        rated = [ratings[key] for ratings in raters if key in ratings]
        means[key] = {
            cell: fmean(scores) for cell in CELLS if (scores := [one[cell] for one in rated if cell in one])
        }
    return means


def _dialogue_sums(rated: Sequence[Mapping[str, float]], name: str) -> NDArray[np.float64]:
    """`_sums` over the units of one dialogue: both answers for a criterion, or their mean."""
    if name == OVERALL:
        units = [[fmean(scores.values()) for scores in rated if len(scores) == len(CELLS)]]
    else:
        cells = [cell for cell in CELLS if cell.endswith(name)]
        units = [[scores[cell] for scores in rated if cell in scores] for cell in cells]
    return np.sum([_sums(unit) for unit in units], axis=0)


def _sums(unit: Sequence[float]) -> NDArray[np.float64]:
    """What alpha is made of, as sums over units: ratings, their spread within the unit, their sum, their squares."""
    if len(unit) < 2:
        return np.zeros(4)
    values = np.asarray(unit, float)
    return np.array([len(values), len(values) * values.var(ddof=1), values.sum(), (values**2).sum()])


def _alpha(num: Any, within: Any, total: Any, squares: Any) -> Any:
    """From sums over units, each a number or float[...]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (squares - total**2 / num) / (num - 1)
        return 1 - within / num / expected


def _interval(sums: NDArray[np.float64]) -> Interval:
    """`sums`: float[dialogues, 4]."""
    if len(sums) < 2 or _finite(_alpha(*sums.sum(axis=0))) is None:
        return Interval()
    with warnings.catch_warnings():
        # Of few dialogues some resamples hold equal ratings only: then there is no interval.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            tuple(sums.T),
            lambda *columns, axis: _alpha(*(column.sum(axis=axis) for column in columns)),
            paired=True,
            vectorized=True,
            confidence_level=CONFIDENCE,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    low, high = map(_finite, found.confidence_interval)
    return Interval(low=low, high=high, method=f"bootstrap over {len(sums)} dialogues")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
