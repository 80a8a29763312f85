"""Where the spread of scores comes from: the items, the training seed, or the judge.

y[item, seed, repeat] = mean + item + seed + (item x seed) + judge's noise, every part random; the variances come
from the mean squares of the crossed design (Searle, Casella and McCulloch 1992, chapter 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import harmonic_mean

import numpy as np
from rich.table import Table

from sparkles.eval.benchmark import Prediction
from sparkles.eval.matching import content_key, dialogue_key
from sparkles.eval.metrics import overall_rating, ratings_by_judge
from sparkles.eval.table import title_of
from sparkles.types import InputError

Scores = dict[tuple[str, str], float]
"""By item id and content."""

PART_TITLES = {
    "item": "between items",
    "seed": "between seeds",
    "item_by_seed": "item x seed",
    "judge": "between verdicts",
}
UNKNOWN_NOTE = "A part that is unknown is contained in those above it."


@dataclass(frozen=True, kw_only=True)
class VarianceSplit:
    """Variances of one score, None where the runs cannot tell: a seed needs two of them, a judge two verdicts."""

    benchmark: str
    num_items: int
    """Items that have a score in every run."""
    dropped: int
    """Items that some run lacks or has no score for."""
    num_seeds: int
    num_repeats: tuple[int, ...]
    """Judge repeats of each seed."""
    mean: float
    item: float
    seed: float | None
    item_by_seed: float | None
    """How much the seeds differ in what they find hard; with one seed it is part of `item`."""
    judge: float | None
    """Between verdicts on the same answers; where it is None it is part of what stands above."""

    @property
    def contributions(self) -> dict[str, float | None]:
        """What each part adds to the variance of the mean."""
        answers = self.num_items * self.num_seeds
        repeats = harmonic_mean(self.num_repeats)
        parts = {
            "item": (self.item, self.num_items),
            "seed": (self.seed, self.num_seeds),
            "item_by_seed": (self.item_by_seed, answers),
            "judge": (self.judge, answers * repeats),
        }
        return {name: None if value is None else value / count for name, (value, count) in parts.items()}

    @property
    def standard_error(self) -> float:
        """Of the mean over items, seeds and verdicts like these."""
        return sqrt(sum(part for part in self.contributions.values() if part is not None))


def split_variance(benchmark: str, runs: Sequence[Sequence[Prediction]]) -> VarianceSplit:
    """Runs whose answers are the same word by word are repeats of the judge; the others differ by their seed.

    The members of an ensemble of judges are repeats as well.

    Raises:
        InputError: items have one score only, or fewer than two have all of them.
    """
    scored = [(run, scores) for run in runs for scores in _scores(run)]
    if len(scored) < 2:
        raise InputError(
            f"{benchmark}: one score for each item; expected several runs, or one rated by several judges"
        )
    common = dict.fromkeys(key for key in scored[0][1] if all(key in scores for _, scores in scored))
    dropped = len({_key(one) for run in runs for one in run}) - len(common)
    if len(common) < 2:
        raise InputError(
            f"{benchmark}: {len(common)} items are scored in all {len(runs)} runs, expected two or more"
        )
    seeds: dict[frozenset[tuple[str, ...]], list[list[float]]] = {}
    for run, found in scored:
        answers = frozenset((*_key(one), dialogue_key(one)) for one in run if _key(one) in common)
        seeds.setdefault(answers, []).append([found[key] for key in common])
    return _split(benchmark, [np.array(repeats) for repeats in seeds.values()], dropped)


def _split(benchmark: str, cells: Sequence[np.ndarray], dropped: int) -> VarianceSplit:
    """`cells`: float[repeats, items] for each seed."""
    means = np.array([cell.mean(axis=0) for cell in cells])  # [seeds, items]
    (num_seeds, num_items), repeats = means.shape, tuple(len(cell) for cell in cells)

    freedom = num_items * sum(count - 1 for count in repeats)
    squares = sum(float(((cell - cell.mean(axis=0)) ** 2).sum()) for cell in cells)
    judge = squares / freedom if freedom else None
    # What the judge's noise leaves in the mean of a cell.
    noise = 0.0 if judge is None else judge / harmonic_mean(repeats)

    over_items = means.mean(axis=0).var(ddof=1)  # of the items' means
    if num_seeds == 1:
        item, seed, item_by_seed = over_items - noise, None, None
    else:
        over_seeds = means.mean(axis=1).var(ddof=1)
        rest = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
        interaction = (rest**2).sum() / ((num_seeds - 1) * (num_items - 1))
        item = over_items - interaction / num_seeds
        seed = max(0.0, float(over_seeds - interaction / num_items))
        item_by_seed = max(0.0, float(interaction - noise))
    return VarianceSplit(
        benchmark=benchmark,
        num_items=num_items,
        dropped=dropped,
        num_seeds=num_seeds,
        num_repeats=repeats,
        mean=float(means.mean()),
        item=max(0.0, float(item)),
        seed=seed,
        item_by_seed=item_by_seed,
        judge=judge,
    )


def variance_table(splits: Sequence[VarianceSplit]) -> Table:
    """For a terminal: a column for each benchmark."""
    note = "Variances; behind each what it adds to the standard error of the mean. " + UNKNOWN_NOTE
    table = Table(show_lines=True, caption=note, caption_justify="left", min_width=76)
    table.add_column()
    for split in splits:
        table.add_column(title_of(split.benchmark))
    table.add_row("items", *(_item_counts(split) for split in splits))
    table.add_row("training seeds", *(str(split.num_seeds) for split in splits))
    table.add_row("verdicts of each", *(", ".join(map(str, split.num_repeats)) for split in splits))
    table.add_row("mean", *(f"{split.mean:.3g} ± {split.standard_error:.2g}" for split in splits))
    for name, title in PART_TITLES.items():
        table.add_row(title, *(_part(getattr(split, name), split.contributions[name]) for split in splits))
    return table


def _item_counts(split: VarianceSplit) -> str:
    return str(split.num_items) + (f", {split.dropped} not in all runs" if split.dropped else "")


def _part(variance: float | None, contribution: float | None) -> str:
    if variance is None or contribution is None:
        return "unknown"
    return f"{variance:.3g}, ± {sqrt(contribution):.2g}"


def _scores(run: Sequence[Prediction]) -> list[Scores]:
    """Of each judge the overall ratings, or once 1 for right and 0 for wrong; what was not rated is missing."""
    if not any(prediction.score.verdict for prediction in run):
        return [{_key(prediction): float(bool(prediction.score.correct)) for prediction in run}]
    judges: dict[str, Scores] = {}
    for prediction in run:
        for judge, scores in ratings_by_judge(prediction).items():
            judges.setdefault(judge, {})[_key(prediction)] = overall_rating(scores)
    return list(judges.values())


def _key(prediction: Prediction) -> tuple[str, str]:
    return prediction.item_id, content_key(prediction)
