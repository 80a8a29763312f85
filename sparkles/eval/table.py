"""Several runs side by side: a row for each run, a column for each benchmark, the paper's value in the cell.

    python -m sparkles.eval.table runs/minigpt4 runs/sparkleschat --paper experiments/demo/paper.csv

Reads the `metrics.json` of each run folder and nothing else.
"""

import argparse
import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from sparkles.eval.benchmark import Metrics
from sparkles.eval.rendering import Cell, Comparison, csv_text, latex, markdown, rich_table
from sparkles.types import InputError

Metric = Literal["accuracy", "overall", "other"]

BENCHMARK_TITLES = {"bison": "BISON", "nlvr2": "NLVR2", "nlvr": "NLVR", "sparkles_eval": "SparklesEval"}
"""Display names, in the order of the columns; other benchmarks follow under their own names."""

PAPER_COLUMNS = ("row", "label", "benchmark", "value", "num", "source")
PAPER_NOTE = "* paper, other scale: full-size models on the paper's own items; not comparable with ours."
INTERVAL_NOTE = "In brackets the 95 % interval; n is the number of items."


class RunFolderError(InputError):
    """A run folder or a file of published values cannot be used as it is."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The number that a benchmark, or one kind of its items, is judged by, with its 95 % interval."""

    metric: Metric
    """`accuracy` is a share of 1 and shown in percent, `overall` a rating from 1 to 10, `other` shown as it is."""
    value: float | None
    """None when no item could be scored."""
    low: float | None = None
    high: float | None = None
    num: int | None = None
    unscored: int = 0
    majority_rate: float | None = None
    """What the most frequent label would score as the answer to everything."""

    @classmethod
    def read(cls, metrics: Metrics, prefix: str) -> "Headline | None":
        """The headline stored under `<prefix>/accuracy` or `<prefix>/overall`, None where there is neither.

        >>> Headline.read({"bison/accuracy": 0.5, "bison/num": 4}, "bison").shown
        '50.0'
        """
        metric: Metric
        for metric in ("accuracy", "overall"):
            if (key := f"{prefix}/{metric}") in metrics:
                num = number(metrics.get(f"{prefix}/num"))
                return cls(
                    metric=metric,
                    value=number(metrics[key]),
                    low=number(metrics.get(f"{key}_low")),
                    high=number(metrics.get(f"{key}_high")),
                    num=None if num is None else int(num),
                    unscored=int(number(metrics.get(f"{prefix}/unscored")) or 0),
                    majority_rate=number(metrics.get(f"{prefix}/majority_rate")),
                )
        return None

    @property
    def unit(self) -> str:
        return {"accuracy": "accuracy, %", "overall": "1 to 10", "other": ""}[self.metric]

    @property
    def shown(self) -> str:
        return "none scored" if self.value is None else self.show(self.value)

    @property
    def told(self) -> str:
        """In a line: value, interval, and what an answer that never changes would score.

        >>> Headline(metric="accuracy", value=0.5, low=0.4, high=0.6, majority_rate=0.55).told
        '50.0 [40.0, 60.0], the most frequent label 55.0'
        """
        told = f"{self.shown} {self.interval}".rstrip()
        return (
            told
            if self.majority_rate is None
            else f"{told}, the most frequent label {self.show(self.majority_rate)}"
        )

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"[{self.show(self.low)}, {self.show(self.high)}]"

    @property
    def counts(self) -> str:
        """The denominator and the failures: `n=600, 2 unscored`."""
        num = [] if self.num is None else [f"n={self.num}"]
        return ", ".join(num + ([f"{self.unscored} unscored"] if self.unscored else []))

    def show(self, value: float) -> str:
        """
        >>> Headline(metric="other", value=None).show(4521.0)
        '4,521'
        """
        if self.metric == "other":
            return f"{value:,.5g}"
        return f"{100 * value:.1f}" if self.metric == "accuracy" else f"{value:.2f}"

    def position(self, value: float) -> float:
        """Where `value` lies on the metric's scale, from 0 to 1."""
        return value if self.metric == "accuracy" else (value - 1) / 9


@dataclass(frozen=True, kw_only=True)
class PaperValue:
    """One cell of a `paper.csv`: what was published, as it was published, and where."""

    label: str
    value: str
    """Empty where no source gives it."""
    num: int | None = None
    """Of the items that it is a mean of."""
    source: str


PaperValues = Mapping[tuple[str, str], PaperValue]
"""Keyed by (row, benchmark)."""


def read_metrics(run_dir: Path) -> Metrics:
    """The flat `metrics.json` of a run; empty when the run has not got that far.

    Raises:
        RunFolderError: there is no such folder, or the file is not a JSON object.
    """
    if not run_dir.is_dir():
        raise RunFolderError(
            f"no run folder at {run_dir}; expected the run_dir of a finished `python train.py` run "
            f"(its metrics.json is read)"
        )
    path = run_dir / "metrics.json"
    if not path.exists():
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunFolderError(f"{path}: not JSON ({error}); run the evaluation again to rewrite it") from error
    if not isinstance(metrics, dict):
        raise RunFolderError(f"{path}: expected one flat object of metrics, got a {type(metrics).__name__}")
    return metrics


def benchmarks_of(metrics: Iterable[str]) -> list[str]:
    """Names of the benchmarks that the keys speak of, in display order.

    >>> benchmarks_of(["nlvr2/accuracy", "bison/accuracy", "bison/kind/place/accuracy"])
    ['bison', 'nlvr2']
    """
    order = list(BENCHMARK_TITLES)
    names_and_rest = (key.split("/", 1) for key in metrics if "/" in key)
    found = {name for name, rest in names_and_rest if rest in ("accuracy", "overall")}
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def title_of(benchmark: str) -> str:
    return BENCHMARK_TITLES.get(benchmark, benchmark)


def read_paper(path: Path) -> PaperValues:
    """The published values in a `paper.csv` with the columns `PAPER_COLUMNS`.

    Raises:
        RunFolderError: the file is missing or has other columns.
    """
    if not path.is_file():
        raise RunFolderError(
            f"no published values at {path}; pass --paper experiments/<table>/paper.csv or leave it out"
        )
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        columns = tuple(reader.fieldnames or ())
        if columns != PAPER_COLUMNS:
            raise RunFolderError(
                f"{path}: got the columns {','.join(columns)}, expected {','.join(PAPER_COLUMNS)}"
            )
        found = {}
        for at, line in enumerate(reader, start=2):
            if line["num"] and not line["num"].isdigit():
                raise RunFolderError(
                    f"{path}, line {at}: num={line['num']}; expected a number of items, or nothing"
                )
            found[line["row"], line["benchmark"]] = PaperValue(
                label=line["label"],
                value=line["value"],
                num=int(line["num"]) if line["num"] else None,
                source=line["source"],
            )
    return found


def compare(runs: Mapping[str, Path], paper: Path | None = None) -> Comparison:
    """Read every run; a run or a benchmark without numbers yields empty cells, never an absent row.

    Args:
        runs: run folders by row name. A row of `paper` belongs to the run with the same name.
    """
    published = read_paper(paper) if paper else {}
    labels = {row: value.label for (row, _), value in published.items()}
    metrics = {row: read_metrics(run_dir) for row, run_dir in runs.items()}
    keys = {key for values in metrics.values() for key in values}
    columns = benchmarks_of(keys | {f"{name}/accuracy" for row, name in published if row in runs})
    if not columns:
        folders = ", ".join(map(str, runs.values()))
        raise RunFolderError(f"no benchmark in the metrics.json of {folders}; let a run finish one first")
    headlines = {
        row: [Headline.read(values, column) for column in columns] for row, values in metrics.items()
    }
    values = {key: one.value for key, one in published.items() if one.value and key[0] in runs}
    rows = tuple(
        (
            labels.get(row, row),
            tuple(
                headline_cell(headline, paper=f"{values[row, column]}*" if (row, column) in values else "")
                for column, headline in zip(columns, found, strict=True)
            ),
        )
        for row, found in headlines.items()
    )
    units = [
        next((headline.unit for headline in column if headline), "missing")
        for column in zip(*headlines.values(), strict=True)
    ]
    return Comparison(
        columns=tuple(f"{title_of(name)}, {unit}" for name, unit in zip(columns, units, strict=True)),
        rows=rows,
        notes=(INTERVAL_NOTE, PAPER_NOTE) if values else (INTERVAL_NOTE,),
    )


def headline_cell(headline: Headline | None, *, paper: str = "") -> Cell:
    """A headline as a cell; None is one that is missing."""
    if headline is None:
        return Cell(problem="missing", paper=paper, raw={"paper": paper.rstrip("*")})
    return Cell(
        value=headline.shown,
        interval=headline.interval,
        facts=tuple(headline.counts.split(", ")) if headline.counts else (),
        paper=paper,
        raw={
            "value": headline.value,
            "low": headline.low,
            "high": headline.high,
            "num": headline.num,
            "unscored": headline.unscored,
            "paper": paper.rstrip("*"),
        },
    )


def number(value: float | str | None) -> float | None:
    """A finite number, or None: JSON holds null or NaN where a mean was taken over nothing."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _named_runs(arguments: Sequence[str]) -> dict[str, Path]:
    """`runs/a` is a row named a, `mine=runs/a` a row named mine."""
    runs: dict[str, Path] = {}
    for argument in arguments:
        name, _, folder = argument.rpartition("=")
        run_dir = Path(folder)
        name = name or run_dir.resolve().name
        if name in runs:
            raise RunFolderError(
                f"two runs named {name!r} ({runs[name]} and {run_dir}); name one with NAME={run_dir}"
            )
        runs[name] = run_dir
    return runs


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sparkles.eval.table", description="Compare finished runs."
    )
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN_DIR")
    parser.add_argument(
        "--paper", type=Path, help="published values to show beside ours (experiments/<table>/paper.csv)"
    )
    style = parser.add_mutually_exclusive_group()
    for name, render in {"markdown": markdown, "latex": latex, "csv": csv_text}.items():
        style.add_argument(
            f"--{name}", dest="render", action="store_const", const=render, help=f"print {name}"
        )
    options = parser.parse_args(arguments)
    try:
        comparison = compare(_named_runs(options.runs), options.paper)
    except RunFolderError as error:
        raise SystemExit(f"error: {error}") from error
    if options.render:
        print(options.render(comparison))
    else:
        Console().print(rich_table(comparison))


if __name__ == "__main__":
    main()
