"""Two runs on the same items: the difference with its interval, a paired test, and what could have been seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from rich.table import Table
from rich.text import Text

from sparkles.eval.benchmark import Prediction
from sparkles.eval.length_control import LengthControlled, length_controlled
from sparkles.eval.matching import MatchBy, Matched, answer_words, match, shared_content
from sparkles.eval.metrics import rating_of
from sparkles.eval.power import detectable_paired, detectable_rating
from sparkles.eval.significance import Difference, Interval, mean_difference, proportion_difference
from sparkles.eval.table import title_of
from sparkles.types import InputError

NOTE = (
    "Difference: run minus other, on the items of both, with its 95 % interval. p: two-sided, not corrected for "
    "several comparisons. Detectable: what a difference must be to show with 80 % power at this many items."
)

ROWS = ("items", "run", "other", "difference", "test", "at equal length", "detectable")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One benchmark in two runs."""

    benchmark: str
    metric: Literal["accuracy", "overall"]
    num: int
    """Items compared: matched and, for ratings, rated in both runs."""
    only_run: int
    only_other: int
    other_content: int
    unscored: int
    """Matched items without a score in at least one run: wrong for an accuracy, left out of a rating."""
    run: float
    """The mean of the run on the items compared."""
    other: float
    difference: Difference
    detectable: float | None
    run_only_right: int | None = None
    """Items that the run alone has right; None for ratings."""
    other_only_right: int | None = None
    equal_length: LengthControlled | None = None
    """The difference of ratings where both runs' answers are equally long; None for accuracies, or if unknown."""
    judges: tuple[str, ...] = ()


def compare_runs(
    ours: Mapping[str, Sequence[Prediction]],
    theirs: Mapping[str, Sequence[Prediction]],
    by: MatchBy = "content",
) -> list[Comparison]:
    """Compare every benchmark that both runs have.

    Raises:
        InputError: they have none in common, or no item of one.
    """
    names = [name for name in ours if name in theirs]
    if not names:
        raise InputError(
            f"no benchmark in both runs: run has {', '.join(ours)}, other has {', '.join(theirs)}"
        )
    return [_compare(name, match(ours[name], theirs[name], by)) for name in names]


def _compare(name: str, matched: Matched) -> Comparison:
    if not matched.pairs:
        raise InputError(
            f"{name}: no item in both runs ({matched.only_ours} in run only, {matched.only_theirs} in other only, "
            f"{matched.other_content} with one id but other content); match=id compares the latter all the same"
        )
    rated = any(one.score.verdict for one, _ in matched.pairs)
    return _compare_ratings(name, matched) if rated else _compare_choices(name, matched)


def _compare_choices(name: str, matched: Matched) -> Comparison:
    ours = [bool(one.score.correct) for one, _ in matched.pairs]
    theirs = [bool(other.score.correct) for _, other in matched.pairs]
    gained = sum(one and not other for one, other in zip(ours, theirs, strict=True))
    lost = sum(other and not one for one, other in zip(ours, theirs, strict=True))
    num, discordance = len(ours), (gained + lost) / len(ours)
    return Comparison(
        benchmark=name,
        metric="accuracy",
        num=num,
        only_run=matched.only_ours,
        only_other=matched.only_theirs,
        other_content=matched.other_content,
        unscored=sum(one.score.answer is None or other.score.answer is None for one, other in matched.pairs),
        run=fmean(ours),
        other=fmean(theirs),
        difference=proportion_difference(ours, theirs, shared_content([one for one, _ in matched.pairs])),
        detectable=detectable_paired(num, discordance) if num > 1 and 0 < discordance < 1 else None,
        run_only_right=gained,
        other_only_right=lost,
    )


def _compare_ratings(name: str, matched: Matched) -> Comparison:
    rated = [
        (one, other, mine, yours)
        for one, other in matched.pairs
        if (mine := rating_of(one)) is not None and (yours := rating_of(other)) is not None
    ]
    if not rated:
        raise InputError(
            f"{name}: no dialogue is rated in both runs; see unscored_reason in their predictions"
        )
    ours, theirs = [mine for *_, mine, _ in rated], [yours for *_, yours in rated]
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    verdicts = [prediction.score.verdict for row in rated for prediction in row[:2]]
    return Comparison(
        benchmark=name,
        metric="overall",
        num=len(rated),
        only_run=matched.only_ours,
        only_other=matched.only_theirs,
        other_content=matched.other_content,
        unscored=len(matched.pairs) - len(rated),
        run=fmean(ours),
        other=fmean(theirs),
        difference=mean_difference(ours, theirs, shared_content([one for one, *_ in rated])),
        detectable=detectable_rating(len(rated), stdev(differences), paired=True) if len(rated) > 1 else None,
        equal_length=length_controlled(
            differences, [answer_words(one) - answer_words(other) for one, other, *_ in rated]
        ),
        judges=tuple(sorted({verdict.judge for verdict in verdicts if verdict})),
    )


def comparison_table(comparisons: Sequence[Comparison], run: str, other: str) -> Table:
    """For a terminal: a column for each benchmark."""
    notes = "\n".join([NOTE, *_notes(comparisons)])
    table = Table(show_lines=True, caption=notes, caption_justify="left", min_width=76)
    table.add_column(overflow="fold")
    columns = [_cells(comparison) for comparison in comparisons]
    for comparison in comparisons:
        unit = "accuracy, %" if comparison.metric == "accuracy" else "1 to 10"
        table.add_column(f"{title_of(comparison.benchmark)}\n{unit}")
    titles = {"run": run, "other": other}
    for name in [row for row in ROWS if any(row in column for column in columns)]:
        # Text and not markup, because an interval and a run's name hold brackets.
        table.add_row(Text(titles.get(name, name)), *(Text(column.get(name, "")) for column in columns))
    return table


def _cells(comparison: Comparison) -> dict[str, str]:
    """The column of one benchmark, by row."""
    places, scale = (1, 100) if comparison.metric == "accuracy" else (2, 1)

    def signed(value: float, interval: Interval) -> str:
        shown = f"{scale * value:+.{places}f}"
        if interval.low is None or interval.high is None:
            return shown
        return f"{shown}\n[{scale * interval.low:+.{places}f}, {scale * interval.high:+.{places}f}]"

    def mean(value: float, alone: int | None) -> str:
        return f"{scale * value:.{places}f}" + ("" if alone is None else f"\n{alone} alone right")

    difference, control = comparison.difference, comparison.equal_length
    cells = {
        "items": "\n".join(_counts(comparison)),
        "run": mean(comparison.run, comparison.run_only_right),
        "other": mean(comparison.other, comparison.other_only_right),
        "difference": signed(difference.value, difference.interval),
        "test": f"{p_value_text(difference.p_value)}\n{difference.test}",
    }
    if difference.clustered_p_value is not None:
        cells["test"] += f"\n{p_value_text(difference.clustered_p_value)}\ncluster-robust t"
    if control:
        cells["at equal length"] = (
            f"{signed(control.value, control.interval)}\n{p_value_text(control.p_value)}"
        )
    detectable = comparison.detectable
    cells["detectable"] = "unknown" if detectable is None else f"{scale * detectable:.{places}f}"
    return cells


def _counts(comparison: Comparison) -> list[str]:
    counts = {
        "in run only": comparison.only_run,
        "in other only": comparison.only_other,
        "of other content": comparison.other_content,
        "unscored": comparison.unscored,
    }
    return [f"n={comparison.num}", *(f"{count} {what}" for what, count in counts.items() if count)]


def p_value_text(value: float) -> str:
    """
    >>> p_value_text(0.0312), p_value_text(0.00002)
    ('p=0.031', 'p<0.001')
    """
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"


def _notes(comparisons: Sequence[Comparison]) -> list[str]:
    notes = []
    if any(comparison.difference.clustered_p_value is not None for comparison in comparisons):
        notes.append(
            "Some items share a sentence or a picture: the intervals allow for it, and so does the cluster-robust test."
        )
    notes += [
        f"{title_of(comparison.benchmark)}: rated by different judges ({', '.join(comparison.judges)})."
        for comparison in comparisons
        if len(comparison.judges) > 1
    ]
    return notes
