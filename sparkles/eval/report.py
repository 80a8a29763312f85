"""A run folder as one self-contained page: `report.html`.

Numbers with their intervals against chance, bars per kind of item, and every item with its pictures, tries and
verdict. Everything is read from the run folder; only the pictures lie where `predictions/*.jsonl` says.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparkles.eval.benchmark import Metrics, Prediction
from sparkles.eval.files import read_json, write_text
from sparkles.eval.judges import ANSWERS
from sparkles.eval.metrics import overall_rating, rating_of
from sparkles.eval.predictions import read_predictions
from sparkles.eval.table import Headline, RunFolderError, benchmarks_of, read_metrics, title_of
from sparkles.pages.page import Album, Item, Outcome, Rating, Speech, Try, Turn, draw, render
from sparkles.types import Image, Message, images_of

MOST_ITEMS = 2_000
"""Of one benchmark on the page; of larger ones so many are drawn."""
CRITERION_TITLES = {
    "C1": "Image understanding and reasoning",
    "C2": "Coherence across images and turns",
    "C3": "Relevance and completeness",
}
GOOD_RATING = 5.5
"""Middle of the scale from 1 to 10; used only to tell good and poor dialogues apart by colour and filter."""
_IN_ITS_UNIT = {
    "first_try_accuracy": "{} on the first try",
    "overall_length_controlled": "{} at equal answer length",
    "majority_rate": "the most frequent label {}",
    "grounding_gap": "grounding gap {}",
}
"""Metrics in the unit of the headline that are told beside it, where they differ from it."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric, under its name in `metrics.json`."""

    name: str
    shown: str
    interval: str
    method: str
    """How the interval was computed; empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of a bar chart."""

    title: str
    headline: Headline


@dataclass(frozen=True, kw_only=True)
class Section:
    """One benchmark: its headline number, what it is made of, and its items."""

    title: str
    headline: Headline
    chance: float | None
    """What guessing evenly among the labels would score; None for ratings."""
    facts: tuple[str, ...]
    charts: Mapping[str, tuple[Bar, ...]]
    measures: tuple[Measure, ...]
    items: tuple[Item, ...]
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
    names = benchmarks_of(metrics)
    if not names:
        raise RunFolderError(
            f"{run_dir}: no metrics.json with a benchmark in it; finish a benchmark before the report"
        )
    predictions = {name: _read(run_dir / "predictions" / f"{name}.jsonl") for name in names}
    shown = {name: draw(found, MOST_ITEMS) for name, found in predictions.items()}
    speech = {name: [messages_of(one) for one in found] for name, found in shown.items()}
    album = Album(image for found in speech.values() for messages in found for image in images_of(messages))
    sections = [
        _section(
            name,
            metrics,
            predictions[name],
            [_item(one, Speech(said, album)) for one, said in zip(shown[name], speech[name], strict=True)],
        )
        for name in names
    ]
    page = render(
        "report.html.j2",
        album=album,
        run_name=run_dir.resolve().name,
        sections=sections,
        criteria=CRITERION_TITLES,
        other_metrics={key: value for key, value in metrics.items() if key.partition("/")[0] not in names},
        environment=dict(_flatten(read_json(run_dir / "environment.json"))),
        config=_read_optional(run_dir / "config.yaml"),
    )
    report = run_dir / "report.html"
    write_text(report, page)
    return report


def outcome_of(prediction: Prediction) -> Outcome:
    """Right, wrong or unscored; a dialogue is right when its ratings lie in the upper half of the scale."""
    score = prediction.score
    if score.verdict:
        rating = rating_of(prediction)
        if rating is None:
            return "unscored"
        return "right" if rating >= GOOD_RATING else "wrong"
    if score.answer is None:
        return "unscored"
    return "right" if score.correct else "wrong"


def verdict_of(prediction: Prediction) -> tuple[str, str]:
    """What came of an item in a word or two, and what is to be said besides."""
    score, label = prediction.score, prediction.label
    if score.verdict:
        if not score.verdict.scores:
            return "not rated", score.verdict.unscored_reason
        return f"{overall_rating(score.verdict.scores):.1f} of 10", ""
    if score.answer is None:
        return "? no answer could be read", f"the label is {label}"
    return (f"✓ {score.answer}", "") if score.correct else (f"✗ {score.answer}", f"the label is {label}")


def messages_of(prediction: Prediction) -> tuple[Message, ...]:
    """The dialogue of a prediction, as its line has it."""
    return tuple(
        Message(
            role=message["role"],
            content=message["content"],
            images=tuple(_image(record) for record in message["images"]),
        )
        for message in prediction.dialogue
    )


def _read(path: Path) -> list[Prediction]:
    return read_predictions(path) if path.exists() else []


def _image(record: Mapping[str, Any]) -> Image:
    path, box = record["path"], record["box"]
    return Image(
        image_id=record["image_id"],
        caption=record["caption"],
        path=path and Path(path),
        box=box and tuple(box),
    )


def _section(
    name: str, metrics: Metrics, predictions: Sequence[Prediction], items: Sequence[Item]
) -> Section:
    headline = Headline.read(metrics, name)
    assert headline is not None, f"{name} comes from benchmarks_of(metrics)"
    labels = {prediction.label for prediction in predictions if prediction.label is not None}
    return Section(
        title=title_of(name),
        headline=headline,
        chance=1 / len(labels) if len(labels) > 1 else None,
        facts=tuple(_facts(name, headline, metrics)),
        charts=_charts(name, headline, metrics),
        measures=tuple(_measures(name, metrics)),
        items=tuple(items),
        num_predictions=len(predictions),
    )


def _facts(name: str, headline: Headline, metrics: Metrics) -> Iterator[str]:
    yield headline.counts or "n unknown"
    if unanswered := metrics.get(f"{name}/unanswered"):
        yield f"{unanswered} unanswered"
    for key, spelled in _IN_ITS_UNIT.items():
        value = metrics.get(f"{name}/{key}")
        if isinstance(value, float) and value != headline.value:
            yield spelled.format(headline.show(value))
    consistency = metrics.get(f"{name}/swap_consistency")
    if isinstance(consistency, float):
        yield f"{100 * consistency:.1f} % the same when the images are swapped"
    if method := metrics.get(f"{name}/{headline.metric}_interval"):
        yield f"interval: {method}"
    if judge := metrics.get(f"{name}/judge"):
        yield f"judge: {judge}"


def _measures(name: str, metrics: Metrics) -> Iterator[Measure]:
    """The benchmark's metrics, each with its interval, but for those that the charts tell."""
    own = {
        key.removeprefix(f"{name}/"): value for key, value in metrics.items() if key.startswith(f"{name}/")
    }
    told = {f"{key}_{bound}" for key in own for bound in ("low", "high", "interval")}
    told |= {f"{answer}/{criterion}" for answer in ANSWERS for criterion in CRITERION_TITLES}
    for key, value in sorted(own.items(), key=lambda entry: "/" in entry[0]):  # of the whole dialogue first
        if key in told or key.startswith("kind/"):
            continue
        low, high = own.get(f"{key}_low"), own.get(f"{key}_high")
        yield Measure(
            name=key,
            shown=_show(value),
            interval="" if low is None or high is None else f"[{_show(low)}, {_show(high)}]",
            method=str(own.get(f"{key}_interval", "")),
        )


def _show(value: float | str | None) -> str:
    """
    >>> _show(2 / 3), _show(150), _show(None), _show("rubric-1")
    ('0.6667', '150', 'not measured', 'rubric-1')
    """
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _charts(name: str, headline: Headline, metrics: Metrics) -> dict[str, tuple[Bar, ...]]:
    """Bars by kind of item and, for rated dialogues, by turn and criterion; empty charts are left out."""
    prefix, suffix = f"{name}/kind/", f"/{headline.metric}"
    kinds = [
        key[len(prefix) : -len(suffix)] for key in metrics if key.startswith(prefix) and key.endswith(suffix)
    ]
    by_kind = _bars((kind, Headline.read(metrics, prefix + kind)) for kind in kinds)
    charts = {"By kind of item": tuple(sorted(by_kind, key=lambda bar: -(bar.headline.value or 0)))}
    for turn, answer in enumerate(ANSWERS, start=1):
        charts[f"Turn {turn}"] = _bars(
            (title, _rating(metrics, f"{name}/{answer}/{key}")) for key, title in CRITERION_TITLES.items()
        )
    return {title: bars for title, bars in charts.items() if bars}


def _bars(headlines: Iterable[tuple[str, Headline | None]]) -> tuple[Bar, ...]:
    return tuple(Bar(title=title, headline=headline) for title, headline in headlines if headline)


def _rating(metrics: Metrics, key: str) -> Headline | None:
    """A mean rating, which stands under its own name and has no interval."""
    value = metrics.get(key)
    return Headline(metric="overall", value=value) if isinstance(value, float | int) else None


def _item(prediction: Prediction, speech: Speech) -> Item:
    verdict, note = verdict_of(prediction)
    return Item(
        item_id=prediction.item_id,
        kind=prediction.kind,
        outcome=outcome_of(prediction),
        verdict=verdict,
        note=note,
        score=rating_of(prediction),
        turns=tuple(
            _told(turn, number, prediction, speech) for number, turn in enumerate(speech.turns(), start=1)
        ),
    )


def _told(turn: Turn, number: int, prediction: Prediction, speech: Speech) -> Turn:
    """The turn with its tries and ratings."""
    tries = [
        Try(response=speech.parts(attempt["response"]), facts=_try_facts(attempt))
        for attempt in prediction.tries
        if attempt["turn"] == number
    ]
    return replace(
        turn,
        facts=tries[-1].facts if tries else "",
        earlier=tuple(tries[:-1]),
        ratings=tuple(_ratings(prediction, f"A{number}", speech)),
    )


def _try_facts(attempt: Mapping[str, Any]) -> str:
    """What else is known of a try: its time, whether it was cut off, and whatever an answer mode adds.

    >>> _try_facts({"turn": 1, "response": "Yes.", "seconds": 0.25, "truncated": True})
    '0.25 s, cut off at the limit'
    """
    facts = [] if attempt.get("seconds") is None else [f"{attempt['seconds']:.3g} s"]
    facts += ["cut off at the limit"] if attempt.get("truncated") else []
    others = {
        key: value
        for key, value in attempt.items()
        if key not in ("turn", "response", "seconds", "truncated") and value not in (None, "")
    }
    return ", ".join(facts + [f"{key}: {value}" for key, value in _flatten(others)])


def _ratings(prediction: Prediction, answer: str, speech: Speech) -> Iterator[Rating]:
    verdict = prediction.score.verdict
    if verdict is None or not verdict.scores:
        return
    reasons = verdict.reasons.get(answer, {})
    for criterion, score in verdict.scores.get(answer, {}).items():
        yield Rating(
            criterion=criterion,
            score=score,
            reason=speech.parts(reasons.get(criterion, "")),
            members={
                name: scores[answer][criterion]
                for name, scores in verdict.members.items()
                if criterion in scores.get(answer, {})
            },
        )


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
