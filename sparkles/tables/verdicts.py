"""How what we measured stands to what the paper published, in words.

*At full size* a row's value is held against the published one. The difference is uncertain by our items and seeds, by
the paper's items (p (1 - p) / n for an accuracy; for a rating the deviation of our own items, as the paper gives none)
and by the seed of its single training (as much as ours differ). Then

- `different`: the 95 % interval of the difference excludes 0;
- `compatible`: it holds 0, and its half width is at most `RESOLUTION`, so that a difference as large as the paper's
  main ones (10.7 points between SparklesChat and MiniGPT-4 on BISON) would have been seen;
- `cannot tell at this n`: it holds 0 and is wider.

*At nano size* levels are another scale: another model in another world. What can be held against the paper is what it
finds: the sign of the difference between a row and the reference row. Then

- `compatible`: our difference has the paper's sign, and its 95 % interval excludes 0;
- `different`: it has the other sign, and its interval excludes 0;
- `cannot tell at this n`: its interval holds 0.

The paper's own difference may lie within the noise of its items; `Verdict.paper_unsure` says so. Its rows answer the
same items, but how often they differ is not published, so they count as independent there.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

from scipy import stats

from sparkles.eval.crossed import Estimate, Part
from sparkles.eval.significance import CONFIDENCE
from sparkles.eval.table import Metric

Word = Literal["compatible", "different", "cannot tell at this n"]

RESOLUTION: dict[Metric, float] = {"accuracy": 0.10, "overall": 1.0}
"""Half width of the widest interval from which two values are called compatible."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One word, and the difference that it is about."""

    word: Word
    difference: Estimate
    """Full size: ours minus the published value. Nano: our row minus our reference row."""
    paper_unsure: bool = False
    """The published difference lies within the noise of its own items."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published value on our scale: an accuracy as a share."""

    value: float
    num: int
    """Items."""


def of_value(
    ours: Estimate,
    paper: Published,
    metric: Metric,
    *,
    deviation: float | None,
    seed_variance: float | None,
) -> Verdict | None:
    """Full size: ours against the published value; None where its noise cannot be told.

    Args:
        deviation: of the scores of our items.
        seed_variance: of our seeds' means, which is taken to be that of the paper's; None if there is one seed.
    """
    noise = _noise(paper, metric, deviation)
    if noise is None or metric not in RESOLUTION or not ours.parts:
        return None
    parts = [Part(variance=noise, freedom=paper.num - 1)]
    if seed_variance is not None:
        freedom = ours.parts[-1].freedom
        parts.append(Part(variance=seed_variance, freedom=freedom))
    difference = ours.minus(Estimate(value=paper.value, parts=tuple(parts)))
    half = difference.half_width()
    if abs(difference.value) > half:
        return Verdict(word="different", difference=difference)
    word: Word = "compatible" if half <= RESOLUTION[metric] else "cannot tell at this n"
    return Verdict(word=word, difference=difference)


def of_finding(
    ours: Estimate, row: Published, reference: Published, metric: Metric, *, deviation: float | None
) -> Verdict | None:
    """Nano: our difference to the reference row against the paper's; None where the paper has none.

    Args:
        ours: our row minus our reference row.
        deviation: of the scores of our items, for the noise of published ratings.
    """
    published = row.value - reference.value
    if published == 0 or not ours.parts:
        return None
    noises = [_noise(one, metric, deviation) for one in (row, reference)]
    known = [noise for noise in noises if noise is not None]
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * sqrt(sum(known))
    unsure = len(known) == len(noises) and abs(published) <= half
    if abs(ours.value) <= ours.half_width():
        word: Word = "cannot tell at this n"
    else:
        word = "compatible" if ours.value * published > 0 else "different"
    return Verdict(word=word, difference=ours, paper_unsure=unsure)


def explain(size: str, reference: str) -> str:
    """What the words mean, for the caption of a table at `size` whose reference row is labelled `reference`."""
    if size == "nano":
        return (
            f"Verdict on what the paper finds of a row against {reference}: compatible, our difference has the paper's "
            "sign and its 95 % interval excludes 0; different, it has the other sign and its interval excludes 0; "
            "cannot tell at this n, its interval holds 0."
        )
    return (
        "Verdict on ours minus the paper's value, whose noise is that of its items (for ratings with the deviation of "
        "ours) and of one seed like ours: different, its 95 % interval excludes 0; compatible, it holds 0 and is at "
        f"most ±{100 * RESOLUTION['accuracy']:g} points (ratings: ±{RESOLUTION['overall']:g}) wide; cannot tell at "
        "this n, it holds 0 and is wider."
    )


def _noise(paper: Published, metric: Metric, deviation: float | None) -> float | None:
    """Variance of a published value over items like its own; None where it cannot be told."""
    if metric == "accuracy":
        return paper.value * (1 - paper.value) / paper.num
    return None if deviation is None or metric == "other" else deviation**2 / paper.num
