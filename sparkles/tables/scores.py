"""What single runs have in the columns of a table: metrics, and the score of each item where a metric is their mean."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from sparkles.eval.benchmark import Metrics, Prediction
from sparkles.eval.judges import ANSWERS
from sparkles.eval.matching import pieces_of
from sparkles.eval.metrics import rating_of
from sparkles.eval.predictions import read_predictions
from sparkles.eval.significance import Interval, Overlap, overlap
from sparkles.eval.table import Metric, number, read_metrics, title_of
from sparkles.tables.spec import TableSpec

ItemKey = tuple[str, str, str]
"""Id, question and label ("" for none). Pictures are left out: a row may show others on purpose."""

_RATED = "sparkles_eval"
"""The benchmark whose headline is a rating, where no run is there to tell it."""
_SHARES = ("accuracy", "_rate", "_chance", "consistency")
"""How the names of metrics end that are shares of 1."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One metric of a table."""

    name: str
    """As `paper.csv` has it under `benchmark`: the benchmark for its headline, else the key."""
    key: str
    """Of `metrics.json`."""
    title: str

    @property
    def benchmark(self) -> str:
        return self.key.partition("/")[0]

    @property
    def metric(self) -> Metric:
        """How it is shown; `accuracy` is any share of 1."""
        *groups, last = self.key.split("/")
        if last.endswith(_SHARES):
            return "accuracy"
        return "overall" if last.startswith("overall") or groups[-1] in ANSWERS else "other"

    @property
    def heading(self) -> str:
        """Title and unit."""
        share = "accuracy, %" if self.key.endswith("accuracy") else "%"
        unit = {"accuracy": share, "overall": "1 to 10", "other": ""}[self.metric]
        return f"{self.title}, {unit}" if unit else self.title

    @property
    def more_is_better(self) -> bool:
        return self.key.endswith("accuracy") or self.metric == "overall"


@dataclass(frozen=True, kw_only=True)
class RunScore:
    """What one run has in one column."""

    value: float | None
    """None where nothing could be scored."""
    interval: Interval
    num: int | None
    """Items, unscored ones included."""
    unscored: int
    items: Mapping[ItemKey, float]
    """Score of each item; empty where the metric is no mean over items, or not one that is known here."""


@dataclass(frozen=True, kw_only=True)
class Items:
    """What is known of the items themselves, whoever answered."""

    pieces: dict[ItemKey, list[Hashable]] = field(default_factory=dict)
    """What each may share with others, as the first run that was read has it."""
    _overlaps: dict[tuple[ItemKey, ...], Overlap | None] = field(default_factory=dict)

    def overlap(self, keys: Sequence[ItemKey]) -> Overlap | None:
        """Which of these items share a sentence or a picture."""
        if (asked := tuple(keys)) not in self._overlaps:
            self._overlaps[asked] = overlap([self.pieces[key] for key in asked])
        return self._overlaps[asked]


def columns_of(spec: TableSpec, keys: Iterable[str]) -> Iterator[Column]:
    """The columns of a table; `keys` are those of its runs' metrics, which tell what a benchmark's headline is."""
    known = set(keys)
    named = spec.columns if spec.columns is not None else dict.fromkeys(spec.benchmarks, "")
    for name, title in named.items():
        benchmark, _, path = name.partition("/")
        key = name
        if not path:
            guess = "overall" if name == _RATED else "accuracy"
            headlines = [f"{name}/{metric}" for metric in ("accuracy", "overall", guess)]
            key = next((headline for headline in headlines if headline in known), headlines[-1])
        yield Column(name=name, key=key, title=title or f"{title_of(benchmark)} {path}".strip())


def read_scores(run_dir: Path, columns: Sequence[Column], items: Items) -> dict[str, RunScore]:
    """By the name of the column, those that the run has. Adds what it learns of the items to `items`.

    Raises:
        RunFolderError: its metrics or predictions cannot be read.
    """
    metrics = read_metrics(run_dir)
    by_benchmark: dict[str, list[Column]] = defaultdict(list)
    for column in columns:
        if column.key in metrics:
            by_benchmark[column.benchmark].append(column)
    found: dict[str, RunScore] = {}
    for benchmark, own in by_benchmark.items():
        predictions = read_items(run_dir, benchmark)
        for key, prediction in predictions.items():
            items.pieces.setdefault(key, pieces_of(prediction))
        found |= {column.name: _score(column, metrics, predictions) for column in own}
    return found


def read_items(run_dir: Path, benchmark: str) -> dict[ItemKey, Prediction]:
    """The predictions of one benchmark, as they can be found in other runs; empty where there are none."""
    path = run_dir / "predictions" / f"{benchmark}.jsonl"
    predictions = read_predictions(path) if path.is_file() else []
    return {(one.item_id, one.prompt, one.label or ""): one for one in predictions}


def _score(column: Column, metrics: Metrics, predictions: Mapping[ItemKey, Prediction]) -> RunScore:
    score = _item_score(column.key.partition("/")[2])
    scored = {key: score(prediction) for key, prediction in predictions.items()} if score else {}
    num = _nearest(metrics, column.key, "num")
    return RunScore(
        value=number(metrics[column.key]),
        interval=Interval(
            low=number(metrics.get(f"{column.key}_low")), high=number(metrics.get(f"{column.key}_high"))
        ),
        num=None if num is None else int(num),
        unscored=int(_nearest(metrics, column.key, "unscored") or 0),
        items={key: value for key, value in scored.items() if value is not None},
    )


def _nearest(metrics: Metrics, key: str, name: str) -> float | None:
    """The metric `name` beside `key`, or of the group around it.

    >>> _nearest({"sparkles_eval/num": 150}, "sparkles_eval/A1/mean", "num")
    150.0
    """
    while "/" in key:
        key = key.rpartition("/")[0]
        if (found := number(metrics.get(f"{key}/{name}"))) is not None:
            return found
    return None


def _item_score(path: str) -> Callable[[Prediction], float | None] | None:
    """How the metric at `path` below its benchmark scores an item (None: not at all).

    None for metrics that are no mean over items, or over items that a prediction does not tell apart.
    """
    *groups, last = path.split("/")
    if groups and groups[0] == "kind":
        kind, of_all = "/".join(groups[1:]), _item_score(last)
        return of_all and (lambda one: of_all(one) if one.kind == kind else None)
    if path == "accuracy":
        return lambda one: float(bool(one.score.correct))
    if path == "overall":
        return rating_of
    if len(groups) == 1 and groups[0] in ANSWERS:
        return lambda one: _criterion(one, groups[0], last)
    return None


def _criterion(prediction: Prediction, answer: str, criterion: str) -> float | None:
    verdict = prediction.score.verdict
    if verdict is None or not verdict.scores:
        return None
    ratings = verdict.scores[answer]
    return fmean(ratings.values()) if criterion == "mean" else ratings[criterion]
