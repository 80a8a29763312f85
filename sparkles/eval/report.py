"""A run folder as one self-contained page: `report.html`.

Numbers with their intervals against chance, bars per kind of item, and a dozen items of each benchmark with
their pictures where the text refers to them. Everything is read from the run folder; only the pictures lie
where `predictions/*.jsonl` says. All text is escaped and the page may load nothing from outside, because
models and users wrote what it shows.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparkles.data.images import ImageError, load_image
from sparkles.eval.benchmark import Metrics, Prediction
from sparkles.eval.files import read_json, write_text
from sparkles.eval.metrics import overall_rating
from sparkles.eval.predictions import read_predictions
from sparkles.eval.table import Headline, RunFolderError, benchmarks_of, read_metrics, title_of
from sparkles.prompt_format import IMAGE_TAG, image_mention
from sparkles.types import Image, Verdict

EXAMPLES_PER_BENCHMARK = 12
THUMBNAIL_PIXELS = 224
"""Longest side: twice the size on the page, for dense screens."""
CRITERION_TITLES = {
    "C1": "Image understanding and reasoning",
    "C2": "Coherence across images and turns",
    "C3": "Relevance and completeness",
}
GOOD_RATING = 5.5
"""Middle of the scale from 1 to 10; used only to show good and poor dialogues side by side."""

Outcome = Literal["right", "wrong", "unscored"]


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture at its place in a sentence."""

    mention: str
    caption: str
    uri: str
    """The pixels as a data URI; empty when the file cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Rating:
    criterion: str
    score: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    question: tuple[str | Thumbnail, ...]
    response: str
    drawn_before: tuple[str, ...] = ()
    """Responses that were drawn again because no answer could be read from them."""
    ratings: tuple[Rating, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item as the page shows it."""

    item_id: str
    kind: str
    outcome: Outcome
    verdict: str
    turns: tuple[Turn, ...]

    @property
    def captions(self) -> dict[str, str]:
        """Ground truth by mention, for the reader only."""
        pictures = (part for turn in self.turns for part in turn.question if isinstance(part, Thumbnail))
        return {picture.mention: picture.caption for picture in pictures if picture.caption}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart."""

    title: str
    headline: Headline


@dataclass(frozen=True, kw_only=True)
class Section:
    """One benchmark: its headline number, what it is made of, and examples."""

    name: str
    title: str
    headline: Headline
    chance: float | None
    """What guessing evenly among the labels would score; None for ratings."""
    facts: tuple[str, ...]
    charts: Mapping[str, tuple[Bar, ...]]
    examples: tuple[Example, ...]
    num_predictions: int

    @property
    def against_chance(self) -> str:
        low, high = self.headline.low, self.headline.high
        if self.chance is None or low is None or high is None:
            return ""
        if low <= self.chance <= high:
            return "not distinguishable from chance"
        return "above chance" if low > self.chance else "below chance"


def render_report(run_dir: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises:
        RunFolderError: the folder has no metrics yet, or a line of its predictions cannot be read.
    """
    metrics = read_metrics(run_dir)
    sections = [_section(name, metrics, run_dir) for name in benchmarks_of(metrics)]
    if not sections:
        raise RunFolderError(
            f"{run_dir}: no metrics.json with a benchmark in it; finish a benchmark before the report"
        )
    environment = Environment(
        loader=PackageLoader("sparkles.eval"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["thumbnail"] = lambda part: isinstance(part, Thumbnail)
    page = environment.get_template("report.html.j2").render(
        run_name=run_dir.resolve().name,
        sections=sections,
        metrics=dict(sorted(metrics.items())),
        criterion_titles=CRITERION_TITLES,
        environment=dict(_flatten(read_json(run_dir / "environment.json"))),
        config=_read_optional(run_dir / "config.yaml"),
    )
    report = run_dir / "report.html"
    write_text(report, page)
    return report


def pick_examples(predictions: Sequence[Prediction], count: int = EXAMPLES_PER_BENCHMARK) -> list[Prediction]:
    """Take in turns from each (kind, outcome), so that a good run still shows its failures."""
    groups: dict[tuple[str, Outcome], list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        groups[prediction.kind, outcome_of(prediction)].append(prediction)
    rounds = zip_longest(*(groups[key] for key in sorted(groups)))
    return list(islice((found for found in chain.from_iterable(rounds) if found is not None), count))


def outcome_of(prediction: Prediction) -> Outcome:
    """Right, wrong or unscored; a dialogue is right when its ratings lie in the upper half of the scale."""
    score = prediction.score
    if score.verdict:
        if not score.verdict.scores:
            return "unscored"
        return "right" if overall_rating(score.verdict.scores) >= GOOD_RATING else "wrong"
    if score.answer is None:
        return "unscored"
    return "right" if score.correct else "wrong"


def interleave(text: str, images: Sequence[Mapping[str, Any]]) -> tuple[str | Thumbnail, ...]:
    """The text with each image tag, and the mention in front of it, replaced by the picture.

    A run with more tags than images is still shown: such a tag stays in the text.
    """
    parts: list[str | Thumbnail] = []
    segments = text.split(IMAGE_TAG)
    for segment, image in zip_longest(segments[:-1], images[: len(segments) - 1]):
        if image is None:
            parts.append(segment + IMAGE_TAG)
            continue
        mention = image_mention(image["image_id"])
        parts += [segment.removesuffix(mention), _thumbnail(image, mention)]
    return (*parts, segments[-1])


def _section(name: str, metrics: Metrics, run_dir: Path) -> Section:
    headline = Headline.read(metrics, name)
    assert headline is not None, f"{name} comes from benchmarks_of(metrics)"
    path = run_dir / "predictions" / f"{name}.jsonl"
    predictions = read_predictions(path) if path.exists() else []
    labels = {prediction.label for prediction in predictions if prediction.label is not None}
    first_try = metrics.get(f"{name}/first_try_accuracy")
    facts = [headline.counts or "n unknown"]
    if isinstance(first_try, float) and first_try != headline.value:
        facts.append(f"{100 * first_try:.1f} % on the first try")
    if judge := metrics.get(f"{name}/judge"):
        facts.append(f"judge: {judge}")
    return Section(
        name=name,
        title=title_of(name),
        headline=headline,
        chance=1 / len(labels) if len(labels) > 1 else None,
        facts=tuple(facts),
        charts=_charts(name, headline, metrics),
        examples=tuple(_example(prediction) for prediction in pick_examples(predictions)),
        num_predictions=len(predictions),
    )


def _charts(name: str, headline: Headline, metrics: Metrics) -> dict[str, tuple[Bar, ...]]:
    """Bars by kind of item and, for rated dialogues, by turn and criterion; empty charts are left out."""
    prefix, suffix = f"{name}/kind/", f"/{headline.metric}"
    kinds = [
        key[len(prefix) : -len(suffix)] for key in metrics if key.startswith(prefix) and key.endswith(suffix)
    ]
    by_kind = _bars((kind, Headline.read(metrics, prefix + kind)) for kind in kinds)
    charts = {
        "By kind of item": tuple(sorted(by_kind, key=lambda bar: -(bar.headline.value or 0))),
        "Turn 1": _bars(
            (title, _rating(metrics, f"{name}/A1/{key}")) for key, title in CRITERION_TITLES.items()
        ),
        "Turn 2": _bars(
            (title, _rating(metrics, f"{name}/A2/{key}")) for key, title in CRITERION_TITLES.items()
        ),
    }
    return {title: bars for title, bars in charts.items() if bars}


def _bars(headlines: Iterable[tuple[str, Headline | None]]) -> tuple[Bar, ...]:
    return tuple(Bar(title=title, headline=headline) for title, headline in headlines if headline)


def _rating(metrics: Metrics, key: str) -> Headline | None:
    """A mean rating, which stands under its own name and has no interval."""
    value = metrics.get(key)
    return Headline(metric="overall", value=value) if isinstance(value, float | int) else None


def _example(prediction: Prediction) -> Example:
    return Example(
        item_id=prediction.item_id,
        kind=prediction.kind,
        outcome=outcome_of(prediction),
        verdict=_verdict_text(prediction),
        turns=tuple(_turns(prediction)),
    )


def _turns(prediction: Prediction) -> Iterator[Turn]:
    verdict, messages = prediction.score.verdict, prediction.dialogue
    for number, (question, answer) in enumerate(zip(messages[::2], messages[1::2], strict=True), start=1):
        responses = [attempt["response"] for attempt in prediction.tries if attempt["turn"] == number]
        yield Turn(
            question=interleave(question["content"], question["images"]),
            response=answer["content"],
            drawn_before=tuple(responses[:-1]),
            ratings=tuple(_ratings(verdict, f"A{number}")) if verdict else (),
        )


def _ratings(verdict: Verdict, answer: str) -> Iterator[Rating]:
    reasons = verdict.reasons.get(answer, {})
    for criterion, score in (verdict.scores or {}).get(answer, {}).items():
        yield Rating(criterion=criterion, score=score, reason=reasons.get(criterion, ""))


def _verdict_text(prediction: Prediction) -> str:
    score, label = prediction.score, prediction.label
    if score.verdict:
        if not score.verdict.scores:
            return f"not rated: {score.verdict.unscored_reason}"
        return f"{overall_rating(score.verdict.scores):.1f} of 10"
    if score.answer is None:
        return f"? no answer could be read, the label is {label}"
    return (
        f"✓ answered {score.answer}" if score.correct else f"✗ answered {score.answer}, the label is {label}"
    )


def _thumbnail(image: Mapping[str, Any], mention: str) -> Thumbnail:
    path, box = image["path"] and Path(image["path"]), image["box"] and tuple(image["box"])
    uri = _data_uri(Image(image_id=image["image_id"], path=path, box=box))
    return Thumbnail(mention=mention, caption=image["caption"], uri=uri)


def _data_uri(image: Image) -> str:
    """The picture, scaled down; empty when unreadable, because a moved data set must not cost the page."""
    try:
        picture = load_image(image)
    except ImageError:
        return ""
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _read_optional(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """
    >>> dict(_flatten({"seed": 1, "versions": {"torch": "2.15"}}))
    {'seed': '1', 'versions.torch': '2.15'}
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
