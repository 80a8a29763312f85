"""Before a table is run: which of its comparisons so many items and seeds can separate, and what it would cost.

A difference is separated where its 95 % interval would exclude 0 with 80 % power. How certain it would be is measured
on runs of the table that are finished (the variance between items of the two rows' difference, and between the seeds
of either), or assumed: a discordance for accuracies, deviations for ratings and seeds as nano's have turned out to be.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from rich.text import Text
from scipy import stats

from sparkles.config import root_cause
from sparkles.eval.crossed import Estimate, Part
from sparkles.eval.files import read_json
from sparkles.eval.power import POWER
from sparkles.eval.table import Headline
from sparkles.tables.results import Result, Results, read_results
from sparkles.tables.runs import RECORD, STORE, RowRun, Store, Wanted, config_loader, state_of, wanted_runs
from sparkles.tables.scores import Column
from sparkles.tables.spec import Row, TableSpec
from sparkles.types import InputError

SEED_DEVIATION = {"accuracy": 0.015, "overall": 0.13}
"""Assumed between the means of seeds: that of three nano SparklesChats on 600 items."""
MOST_ITEMS = 1_000_000
GPU_FLOPS = 125e12
"""A second: 40 % of what an A100 can do at most in 16 bit."""


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is assumed where no run tells it."""

    discordance: float = 0.3
    """Share of items that one of two rows has right and the other wrong."""
    deviation: float = 2.0
    """Of the differences between two rows' ratings of an item."""

    def __post_init__(self) -> None:
        if not 0 < self.discordance < 1:
            raise InputError(
                f"discordance={self.discordance}: expected a share between 0 and 1, such as discordance=0.3"
            )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Variances of a difference between two rows."""

    item: float
    """Between the items, of one seed's difference or of that of all."""
    seed: float
    """Between the seeds of either row, added up."""
    trained: int
    """Rows with several seeds, of the two."""
    source: str

    def detectable(self, num: int, seeds: int) -> float:
        """The difference that `num` items and `seeds` seeds separate from 0."""
        parts = [Part(variance=self.item / num, freedom=num - 1)]
        if seeds > 1 and self.trained:
            parts.append(Part(variance=self.seed / seeds, freedom=self.trained * (seeds - 1)))
        noise = Estimate(value=0.0, parts=tuple(parts))
        return noise.half_width() + float(stats.norm.ppf(POWER)) * noise.standard_error

    def items_needed(self, difference: float, seeds: int) -> float:
        """How many items separate a difference; infinite where no number does with so few seeds."""
        low, high = 2, MOST_ITEMS
        if self.detectable(high, seeds) > difference:
            return inf
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.detectable(middle, seeds) <= difference else (middle + 1, high)
        return low


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One row against the reference row in one column."""

    row: Row
    column: Column
    detectable: float
    spread: Spread
    published: float | None
    """The paper's difference; None where it does not give both values."""
    needed: float | None
    """Items that separate a difference as large as the paper's."""

    @property
    def separable(self) -> bool | None:
        """Whether a difference as large as the paper's would be seen."""
        return None if self.published is None else abs(self.published) >= self.detectable


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a table would tell and take."""

    spec: TableSpec
    num: int
    seeds: int
    comparisons: tuple[Planned, ...]
    costs: tuple[str, ...]
    """A line each."""


def plan_table(spec: TableSpec, assumed: Assumed, store: Path = STORE) -> Plan:
    """What `spec` would tell, with what is known from runs in `store`, and what it would cost. Runs nothing.

    Raises:
        InputError: the table takes all items of its benchmarks, has no reference row, or one of its configs is wrong.
    """
    if spec.num is None:
        raise InputError(f"{spec.name} takes all items there are; say how many with num=...")
    found = Store(store)
    wanted = wanted_runs(spec, found.contents)
    runs = found.place(wanted)
    results = read_results(spec, runs)
    if results.reference is None:
        raise InputError(f"{spec.name} at size {spec.size} has no reference row; nothing is compared in it")
    return Plan(
        spec=spec,
        num=spec.num,
        seeds=len(spec.seeds),
        comparisons=tuple(_comparisons(results, spec.num, assumed)),
        costs=(*_times(spec, runs, store), *_endpoints(spec, wanted), *_arithmetic(spec, wanted)),
    )


def plan_tables(plan: Plan) -> list[Table]:
    """For a terminal: what can be separated, and what it costs."""
    reference = next(row.label for row in plan.spec.rows if row.name == plan.spec.reference)
    spreads = "; ".join(dict.fromkeys(one.spread.source for one in plan.comparisons))
    told = Table(
        title=Text(f"{plan.spec.title}: {plan.num} items, {plan.seeds} seeds"),
        caption=Text(
            f"Which differences to {reference} are seen (95 % intervals, {100 * POWER:g} % power), whether one as "
            f"large as the paper's would be, and what that takes. How far scores spread: {spreads}."
        ),
        title_justify="left",
        caption_justify="left",
        show_lines=True,
    )
    cells = {(one.row.label, one.column.heading): _told(one) for one in plan.comparisons}
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    for heading in ("row", *columns):
        told.add_column(Text(heading.replace(", ", "\n", 1)))
    for row in rows:
        told.add_row(Text(row), *(Text(cells[row, column]) for column in columns))
    costs = Table(title="What it would take", title_justify="left", show_header=False)
    for line in plan.costs:
        costs.add_row(Text(line))
    return [told, costs]


def plan_values(plan: Plan) -> list[dict[str, Any]]:
    """The comparisons as they go into JSON; accuracies as shares."""
    return [
        {
            "row": one.row.name,
            "column": one.column.name,
            "num": plan.num,
            "seeds": plan.seeds,
            "detectable": one.detectable,
            "published": one.published,
            "separable": one.separable,
            "items_needed": None if one.needed in (None, inf) else one.needed,
            "spread": one.spread.source,
        }
        for one in plan.comparisons
    ]


# --- what can be separated ------------------------------------------------------------------------------------


def _comparisons(results: Results, num: int, assumed: Assumed) -> Iterator[Planned]:
    for cells in zip(*results.rows, strict=True):
        reference = next(cell for cell in cells if cell.row == results.reference)
        for cell in cells:
            if cell is reference or cell.column.metric == "other":
                continue
            seeds = len(results.spec.seeds)
            spread = _spread(cell, reference, assumed)
            ours, theirs = cell.published, reference.published
            published = ours.value - theirs.value if ours and theirs else None
            yield Planned(
                row=cell.row,
                column=cell.column,
                detectable=spread.detectable(num, seeds),
                spread=spread,
                published=published,
                needed=spread.items_needed(abs(published), seeds) if published else None,
            )


def _spread(cell: Result, reference: Result, assumed: Assumed) -> Spread:
    """Measured where both rows have runs, else assumed."""
    difference = cell.difference
    if difference and difference.num and cell.measured and reference.measured:
        item, *seed = difference.estimate.parts
        counts = [len(one.measured.seeds) for one in (cell, reference) if one.measured]
        return Spread(
            item=item.variance * difference.num,
            seed=sum(part.variance for part in seed) * max(counts),
            trained=sum(count > 1 for count in counts),
            source=f"measured, {difference.num} items, {' and '.join(map(str, counts))} seeds",
        )
    share = cell.column.metric == "accuracy"
    trained = sum(len(row.seeds) > 1 for row in (cell.row, reference.row))
    told = f"discordance {assumed.discordance:g}" if share else f"deviation {assumed.deviation:g}"
    return Spread(
        item=assumed.discordance if share else assumed.deviation**2,
        seed=trained * SEED_DEVIATION["accuracy" if share else "overall"] ** 2,
        trained=trained,
        source=f"assumed, {told}",
    )


def _told(one: Planned) -> str:
    """What is planned of a row in a column, in lines."""
    show = Headline(metric=one.column.metric, value=None).show
    shows = f"from {show(one.detectable)}"
    if one.published is None or one.needed is None:
        return shows
    paper = f"paper {'−' if one.published < 0 else '+'}{show(abs(one.published))}"
    needed = "more seeds" if one.needed == inf else f"{one.needed:,.0f} items"
    return f"{shows}\n{paper}: {'yes' if one.separable else 'no'}\nneeds {needed}"


# --- what it costs --------------------------------------------------------------------------------------------


def _times(spec: TableSpec, runs: Sequence[RowRun], store: Path) -> Iterator[str]:
    """From runs of this table that are finished, or else, at nano size, of any in the store."""
    todo = [run for run in runs if run.state != "finished"]
    yield f"{len(runs)} runs, of which {len(runs) - len(todo)} are finished and are used again"
    if not todo:
        return
    own = [run.seconds for run in runs if run.state == "finished" and run.seconds is not None]
    if own:
        yield f"time: {_clock(len(todo) * fmean(own))} for the rest, one after another, at {fmean(own):.0f} s a run"
    elif spec.size != "nano":
        yield "time: not known, as no run of this table is finished; see training below"
    elif others := list(_store_seconds(store)):
        yield (
            f"time: {_clock(len(todo) * fmean(others))} one after another, at {fmean(others):.0f} s a run, the mean of "
            f"{len(others)} finished runs of other tables, whose size and items may differ"
        )
    else:
        yield (
            f"time: not known, as no run in {store} is finished; python -m sparkles.tables table={spec.name} "
            + ("rows=[...] seeds=[0] tells it")
        )


def _store_seconds(store: Path) -> Iterator[float]:
    for path in sorted(store.glob(f"rows/*/{RECORD}")):
        seconds = read_json(path).get("seconds")
        if state_of(path.parent) == "finished" and seconds is not None:
            yield float(seconds)


def _clock(seconds: float) -> str:
    """
    >>> _clock(90), _clock(9000)
    ('2 minutes', '2.5 hours')
    """
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _endpoints(spec: TableSpec, wanted: Sequence[Wanted]) -> Iterator[str]:
    """Dollars of judges and of answers over endpoints, for each different way to ask."""
    known: dict[str, list[str]] = {}
    lines: Counter[str] = Counter()
    firsts = list(
        {one.row.name: one for one in reversed(wanted)}.values()
    )  # what is asked does not depend on seeds
    for one, cfg in zip(firsts, _composed(spec, firsts), strict=True):
        asking = OmegaConf.to_yaml(
            OmegaConf.masked_copy(cfg, ["responder", "judge", "benchmark", "data_root"])
        )
        if asking not in known:
            known[asking] = _asked(cfg)
        lines.update(known[asking] * len(one.row.seeds))
    yield from (f"{count} x {line}" for line, count in lines.items())
    if not lines:
        yield "endpoints: none is asked, neither for answers nor for verdicts"


def _asked(cfg: DictConfig) -> list[str]:
    """What a run would ask of endpoints; a line that says why where it cannot be told."""
    from sparkles.eval.endpoint import EndpointResponder
    from sparkles.eval.estimate import estimates, verdict_estimates
    from sparkles.eval.llm_judge import EnsembleJudge, LLMJudge

    asks = [f"{kind.__module__}.{kind.__name__}" for kind in (EndpointResponder, LLMJudge, EnsembleJudge)]
    nodes = [cfg.get(key) or {} for key in ("responder", "judge")]
    if not any(node.get("_target_") in asks for node in nodes):
        return []
    try:
        benchmarks = list(instantiate(cfg.benchmark.suite, _convert_="all").values())
        responder, judge = (instantiate(node, _convert_="all") if node else None for node in nodes)
        if isinstance(responder, EndpointResponder):
            return estimates(benchmarks, responder, judge)
        max_tokens = cfg.callbacks.benchmarks.generation.max_new_tokens if "callbacks" in cfg else 0
        return [line for one in benchmarks for line in verdict_estimates(one, judge, max_tokens)]
    except Exception as error:  # instantiate wraps what a constructor raises
        cause = root_cause(error)
        if not isinstance(cause, InputError | OSError | OmegaConfBaseException):
            raise
        return [f"endpoints: cost not known: {str(cause).splitlines()[0]}"]


def _arithmetic(spec: TableSpec, wanted: Sequence[Wanted]) -> Iterator[str]:
    """FLOPs and GPU hours of the trainings at full size, each taken for that of the first."""
    trained = [one for one in wanted if one.trains]
    if spec.size == "nano" or not trained:
        return
    from sparkles.dry_run import build_on_meta, measure_lengths, measure_work, without_weights

    for cfg in _composed(spec, trained[:1]):
        plain = without_weights(cfg)
        lengths = measure_lengths(plain)
        work = measure_work(plain, build_on_meta(plain), lengths)
    each = work.steps * work.flops
    yield (
        f"training: {len(trained)} times {each:.1e} FLOPs, {len(trained) * each / GPU_FLOPS / 3600:.0f} GPU hours at "
        f"{GPU_FLOPS / 1e12:.0f} TFLOP/s (40 % of an A100); answering comes on top; {lengths.source}"
    )


def _composed(spec: TableSpec, wanted: Sequence[Wanted]) -> Iterator[DictConfig]:
    """Their configs, each of which can be resolved until the next is asked for."""
    with config_loader(spec.config) as loader:
        for one in wanted:
            overrides = [*one.overrides, "run_dir='<run>'", "hydra.runtime.output_dir='<run>'"]
            cfg = loader.load_configuration(spec.config, overrides, RunMode.RUN)
            HydraConfig.instance().set_config(cfg)
            yield cfg
