"""What the runs of a table found: for each row and column a mean over seeds and items, with what is known of it.

A value is the mean over the seeds of the means over the items. Its 95 % interval is over items and seeds (see
`sparkles.eval.crossed`); for a row with one seed it is that of the run, over items alone. Rows are compared with the
reference row on the items of both, item by item, each row averaged over its seeds; the p-values of a column are
corrected by Holm's method. The best of a column is marked only if the 95 % interval of its difference to the second
excludes 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from statsmodels.stats.multitest import multipletests

from sparkles.eval.crossed import (
    Estimate,
    Scores,
    crossed_difference,
    crossed_mean,
    seed_variance,
    share_interval,
    spread_mean,
)
from sparkles.eval.significance import Interval
from sparkles.eval.table import PaperValue, PaperValues, read_metrics, read_paper
from sparkles.tables.runs import RowRun
from sparkles.tables.scores import Column, ItemKey, Items, RunScore, columns_of, read_scores
from sparkles.tables.spec import Row, TableSpec
from sparkles.tables.verdicts import Published, Verdict, of_finding, of_value


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the runs of one row found in one column."""

    seeds: tuple[int, ...]
    """Those that have a value."""
    estimate: Estimate
    interval: Interval
    """At 95 %."""
    num: int | None
    """Items of each seed, unscored ones included."""
    unscored: int
    """Over all seeds."""
    items: tuple[Mapping[ItemKey, float], ...]
    """Scores by seed; the mappings are empty where a metric is no mean over items."""

    @property
    def value(self) -> float:
        return self.estimate.value

    @cached_property
    def keys(self) -> frozenset[ItemKey]:
        """Items that have a score in every seed."""
        return frozenset.intersection(*map(frozenset, self.items))

    def scores(self, keys: Sequence[ItemKey]) -> Scores:
        """Of items that have one in every seed."""
        return np.array([[items[key] for items in self.items] for key in keys])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A row minus the reference row."""

    estimate: Estimate
    num: int | None
    """Items of both on which they were compared; None if they could not be, and count as independent."""
    p_value: float
    """Two-sided, not corrected."""
    corrected: float
    """By Holm's method, for the rows of the column."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row in one column."""

    row: Row
    column: Column
    measured: Measured | None
    """None where no run has a value."""
    paper: PaperValue | None
    problem: str
    """Why there is no value, or which seeds it lacks; empty if nothing is wrong."""
    difference: Difference | None = None
    """None for the reference row itself, and where nothing tells how certain a difference is."""
    verdict: Verdict | None = None
    best: bool = False

    @property
    def published(self) -> Published | None:
        """The paper's value on our scale; None where there is none, or the number of its items is not known."""
        if self.paper is None or not self.paper.value or not self.paper.num:
            return None
        scale = 100 if self.column.metric == "accuracy" else 1
        return Published(value=float(self.paper.value) / scale, num=self.paper.num)


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that is known of a table."""

    spec: TableSpec
    runs: tuple[RowRun, ...]
    columns: tuple[Column, ...]
    rows: tuple[tuple[Result, ...], ...]
    """In the order of the table's rows, a result for each column."""

    @property
    def complete(self) -> bool:
        """Whether every cell has its value, of all seeds."""
        return not any(result.problem for results in self.rows for result in results)

    @property
    def problems(self) -> list[str]:
        """A line for each run that is not finished, and for each other cell that lacks something."""
        unfinished = [run for run in self.runs if run.state != "finished"]
        runs = [
            f"{run.row.name}, seed {run.seed}: {run.state}" + (f"; see {run.log}" if run.log else "")
            for run in unfinished
        ]
        known = {run.row.name for run in unfinished}
        cells = [
            f"{result.row.name}, {result.column.title}: {result.problem}"
            for results in self.rows
            for result in results
            if result.problem and result.row.name not in known
        ]
        return runs + cells

    @property
    def reference(self) -> Row | None:
        """The row that others are compared with, if the table has it at this size."""
        return next((row for row in self.spec.rows if row.name == self.spec.reference), None)


def read_results(spec: TableSpec, runs: Sequence[RowRun]) -> Results:
    """Read `metrics.json` and `predictions/` of every finished run, and the table's `paper.csv` if there is one.

    Raises:
        RunFolderError: one of them cannot be read.
    """
    finished = [run.run_dir for run in runs if run.state == "finished"]
    columns = tuple(columns_of(spec, {key for run_dir in finished for key in read_metrics(run_dir)}))
    items = Items()
    scores = {run_dir: read_scores(run_dir, columns, items) for run_dir in finished}
    paper = read_paper(spec.paper) if spec.paper.is_file() else {}
    by_column = []
    for column in columns:
        results = [
            _result(row, column, [run for run in runs if run.row.name == row.name], scores, items, paper)
            for row in spec.rows
        ]
        by_column.append(_judged(spec, _compared(spec, results, items), items))
    return Results(spec=spec, runs=tuple(runs), columns=columns, rows=tuple(zip(*by_column, strict=True)))


def _result(
    row: Row,
    column: Column,
    runs: Sequence[RowRun],
    scores: Mapping[Path, Mapping[str, RunScore]],
    items: Items,
    paper: PaperValues,
) -> Result:
    """The row on its own. `scores` are by run folder and name of the column."""
    found: dict[int, RunScore] = {}
    problems: dict[int, str] = {}
    for run in runs:
        score = scores.get(run.run_dir, {}).get(column.name)
        if score is not None and score.value is not None:
            found[run.seed] = score
        elif run.state == "finished":
            problems[run.seed] = "missing" if score is None else "none scored"
        else:
            problems[run.seed] = run.state
    return Result(
        row=row,
        column=column,
        measured=_measure(column, found, items) if found else None,
        paper=paper.get((row.name, column.name)),
        problem=_problem(problems, whole=not found),
    )


def _problem(by_seed: Mapping[int, str], *, whole: bool) -> str:
    """
    >>> _problem({0: "missing", 1: "missing"}, whole=True), _problem({1: "failed"}, whole=False)
    ('missing', 'seed 1 failed')
    """
    different = set(by_seed.values())
    if whole and len(different) <= 1:
        return next(iter(different), "missing")
    return ", ".join(f"seed {seed} {problem}" for seed, problem in by_seed.items())


def _measure(column: Column, found: Mapping[int, RunScore], items: Items) -> Measured:
    """Of the scores by seed."""
    scores = list(found.values())
    measured = Measured(
        seeds=tuple(found),
        estimate=_spread_mean(scores),
        interval=scores[0].interval,
        num=min((score.num for score in scores if score.num is not None), default=None),
        unscored=sum(score.unscored for score in scores),
        items=tuple(score.items for score in scores),
    )
    interval = measured.estimate.interval
    if len(keys := sorted(measured.keys)) > 1:
        crossed = crossed_mean(measured.scores(keys), items.overlap(keys))
        measured = replace(measured, estimate=replace(crossed, value=measured.value))
        of_share = column.metric == "accuracy"
        interval = share_interval(measured.estimate) if of_share else measured.estimate.interval
    alone = (
        len(scores) == 1 and scores[0].interval.low is not None
    )  # then it is the interval of the run's report
    return measured if alone else replace(measured, interval=interval)


def _spread_mean(scores: Sequence[RunScore]) -> Estimate:
    bounds = [(score.interval.low, score.interval.high) for score in scores]
    return spread_mean(
        [score.value for score in scores if score.value is not None],
        [(high - low) / 2 for low, high in bounds if low is not None and high is not None],
    )


def _difference(
    ours: Measured, theirs: Measured, column: Column, items: Items
) -> tuple[Estimate, int | None]:
    """And the number of items on which they were compared."""
    keys = sorted(ours.keys & theirs.keys)
    if len(keys) < 2:
        return ours.estimate.minus(theirs.estimate), None
    estimate = crossed_difference(
        ours.scores(keys),
        theirs.scores(keys),
        items.overlap(keys),
        smallest=1.0 if column.metric == "accuracy" else 0.0,
    )
    return estimate, len(keys)


def _compared(spec: TableSpec, results: Sequence[Result], items: Items) -> list[Result]:
    """A column's results with their differences to the reference row."""
    reference = next((one.measured for one in results if one.row.name == spec.reference), None)
    if reference is None:
        return list(results)
    found = {
        at: _difference(one.measured, reference, one.column, items)
        for at, one in enumerate(results)
        if one.measured is not None and one.measured is not reference
    }
    found = {at: (estimate, num) for at, (estimate, num) in found.items() if estimate.parts}
    if not found:
        return list(results)
    p_values = [estimate.p_value for estimate, _ in found.values()]
    corrected = multipletests(p_values, method="holm")[1]
    differences = {
        at: Difference(estimate=estimate, num=num, p_value=p_value, corrected=float(after))
        for (at, (estimate, num)), p_value, after in zip(found.items(), p_values, corrected, strict=True)
    }
    return [replace(one, difference=differences.get(at)) for at, one in enumerate(results)]


def _judged(spec: TableSpec, results: Sequence[Result], items: Items) -> list[Result]:
    """A column's results with their verdicts, and the best of them marked."""
    reference = next((one.published for one in results if one.row.name == spec.reference), None)
    best = _best(results, items)
    return [replace(one, verdict=_verdict(spec, one, reference), best=one is best) for one in results]


def _best(results: Sequence[Result], items: Items) -> Result | None:
    """The best of a column if it is distinguishable from the second."""
    ranked = sorted(
        ((one.measured, one) for one in results if one.measured and one.column.more_is_better),
        key=lambda pair: -pair[0].value,
    )
    if len(ranked) < 2:
        return None
    (first, best), (second, _) = ranked[:2]
    difference, _ = _difference(first, second, best.column, items)
    return best if difference.value > difference.half_width() else None


def _verdict(spec: TableSpec, result: Result, reference: Published | None) -> Verdict | None:
    measured, published, metric = result.measured, result.published, result.column.metric
    if measured is None or published is None:
        return None
    deviation = seeds = None
    if len(keys := sorted(measured.keys)) > 1:
        scores = measured.scores(keys)
        deviation, seeds = float(scores.std(axis=0, ddof=1).mean()), seed_variance(scores)
    if spec.size != "nano":
        return of_value(measured.estimate, published, metric, deviation=deviation, seed_variance=seeds)
    if reference is None or result.difference is None:
        return None
    return of_finding(result.difference.estimate, published, reference, metric, deviation=deviation)
