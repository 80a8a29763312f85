"""A table as one self-contained page: what was found, how certain it is, what it took, and where rows differ."""

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from sparkles.eval.files import write_text
from sparkles.eval.table import Headline
from sparkles.pages.page import Album, render
from sparkles.tables.rendering import comparison_of, difference_text, headline_of
from sparkles.tables.results import Result, Results
from sparkles.tables.runs import RowRun
from sparkles.tables.scores import Column
from sparkles.tables.splits import find_splits

CURVES = {"train/loss": "Loss of training", "val/loss": "Loss of validation"}
"""Titles by column of the CSV logger's file."""
POINTS = 50
"""Of a curve, each the mean of what was logged around it."""

Points = tuple[tuple[float, float], ...]
"""(step, value)"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a forest plot; positions from 0 to 1."""

    label: str
    shown: str
    remark: str
    """The difference to the reference row."""
    at: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Forest:
    """The intervals of one column on a common scale."""

    title: str
    lines: tuple[Line, ...]
    low: str
    """What the scale begins with."""
    high: str
    reference: float | None
    """Position of the reference row's value."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One row and seed, as the points of an SVG polyline in a box of 1000 x 300."""

    label: str
    hue: int
    points: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves of all runs."""

    title: str
    curves: tuple[Curve, ...]
    low: float
    high: float
    steps: int

    @property
    def legend(self) -> dict[str, int]:
        """Hue by label."""
        return {curve.label: curve.hue for curve in self.curves}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the runs of one row took."""

    label: str
    runs: tuple[tuple[str, str], ...]
    """Of each seed, what is said of it and the address of its report, or ""."""
    seconds: float | None
    """Of all its runs; None where none was timed."""


def write_page(results: Results, folder: Path) -> Path:
    """Write `table.html` into the folder and return its path. Links lead from there to the reports of the runs.

    Raises:
        RunFolderError: the predictions of a finished run cannot be read.
    """
    splits = find_splits(results)
    album = Album(image for split in splits for image in split.images)
    path = folder / "table.html"
    page = render(
        "table.html.j2",
        album=album,
        spec=results.spec,
        comparison=comparison_of(results),
        problems=results.problems,
        forests=[_forest(column, cells, results) for column, cells in _by_column(results)],
        charts=list(_charts(results.runs)),
        costs=[_cost(row.label, _runs_of(row.name, results.runs), folder) for row in results.spec.rows],
        splits=[(split, split.items(album)) for split in splits],
        reference=results.reference.label if results.reference else "",
    )
    write_text(path, page)
    return path


def _by_column(results: Results) -> Iterator[tuple[Column, tuple[Result, ...]]]:
    return zip(results.columns, zip(*results.rows, strict=True), strict=True)


def _runs_of(name: str, runs: Iterable[RowRun]) -> list[RowRun]:
    return [run for run in runs if run.row.name == name]


# --- intervals ------------------------------------------------------------------------------------------------


def _forest(column: Column, cells: Sequence[Result], results: Results) -> Forest:
    known = [cell.measured for cell in cells if cell.measured]
    ends = [
        end for one in known for end in (one.value, one.interval.low, one.interval.high) if end is not None
    ]
    lowest, highest = min(ends, default=0.0), max(ends, default=1.0)
    span = (highest - lowest) or 1.0

    def position(value: float | None) -> float | None:
        return None if value is None else (value - lowest) / span

    reference = next(
        (cell.measured for cell in cells if results.reference and cell.row.name == results.reference.name),
        None,
    )
    show = Headline(metric=column.metric, value=None).show
    return Forest(
        title=column.heading,
        lines=tuple(_line(cell, position) for cell in cells),
        low=show(lowest) if ends else "",
        high=show(highest) if ends else "",
        reference=position(reference.value) if reference else None,
    )


def _line(cell: Result, position: Callable[[float | None], float | None]) -> Line:
    measured = cell.measured
    return Line(
        label=cell.row.label,
        shown=headline_of(cell, measured).shown if measured else cell.problem,
        remark=difference_text(cell),
        at=position(measured.value) if measured else None,
        low=position(measured.interval.low) if measured else None,
        high=position(measured.interval.high) if measured else None,
    )


# --- training -------------------------------------------------------------------------------------------------


def _charts(runs: Sequence[RowRun]) -> Iterator[Chart]:
    """Of what the CSV logger kept; none where nothing was logged."""
    logged = [(run, curves) for run in runs if (curves := read_curves(run.run_dir))]
    labels = list(dict.fromkeys(run.row.label for run, _ in logged))
    for name, title in CURVES.items():
        found = [(run.row.label, curves[name]) for run, curves in logged if len(curves.get(name, ())) > 1]
        if not found:
            continue
        values = [value for _, points in found for _, value in points]
        steps = max(step for _, points in found for step, _ in points) or 1
        low, high = min(values), max(values)
        span = (high - low) or 1.0
        yield Chart(
            title=title,
            curves=tuple(
                Curve(
                    label=label,
                    hue=360 * labels.index(label) // len(labels),
                    points=" ".join(
                        f"{1000 * step / steps:.0f},{300 * (high - value) / span:.0f}"
                        for step, value in points
                    ),
                )
                for label, points in found
            ),
            low=low,
            high=high,
            steps=int(steps),
        )


def read_curves(run_dir: Path) -> dict[str, Points]:
    """What the CSV logger kept of each of `CURVES`, thinned to `POINTS`.

    A run that was continued, or measured once more, has several files, of which the later ones count.
    """
    found: Mapping[str, dict[float, float]] = defaultdict(dict)
    for path in sorted(run_dir.glob("logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                for name in CURVES:
                    if line.get(name) and line.get("step"):
                        found[name][float(line["step"])] = float(line[name])
    return {name: _thinned(sorted(points.items())) for name, points in found.items()}


def _thinned(points: Sequence[tuple[float, float]]) -> Points:
    """
    >>> _thinned([(0.0, 2.0), (1.0, 4.0)])
    ((0.0, 2.0), (1.0, 4.0))
    """
    width = -(-len(points) // POINTS)
    groups = (points[start : start + width] for start in range(0, len(points), width))
    return tuple((fmean(step for step, _ in one), fmean(value for _, value in one)) for one in groups)


# --- cost -----------------------------------------------------------------------------------------------------


def _cost(label: str, runs: Sequence[RowRun], folder: Path) -> Cost:
    seconds = [run.seconds for run in runs if run.seconds is not None]
    return Cost(
        label=label,
        runs=tuple((_told(run), _address(run, folder)) for run in runs),
        seconds=sum(seconds) if seconds else None,
    )


def _told(run: RowRun) -> str:
    state = "" if run.state == "finished" else f" {run.state}"
    return f"seed {run.seed}{state}" + ("" if run.seconds is None else f", {run.seconds:.0f} s")


def _address(run: RowRun, folder: Path) -> str:
    """Of the run's report, or of its log where it failed, from the page's folder."""
    report = run.run_dir / "report.html"
    target = report if run.state == "finished" and report.is_file() else run.log
    return "" if target is None else Path(os.path.relpath(target, folder)).as_posix()
