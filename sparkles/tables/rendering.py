"""A table's results as text: what stands in its cells and below it, and the files it is written to."""

from collections.abc import Iterator
from pathlib import Path

from sparkles.eval.compare import p_value_text
from sparkles.eval.files import write_json, write_text
from sparkles.eval.rendering import Cell, Comparison, Raw, csv_text, latex, markdown, records
from sparkles.eval.table import PAPER_NOTE, Headline
from sparkles.tables.results import Measured, Result, Results
from sparkles.tables.verdicts import explain

UNSURE = "†"


def comparison_of(results: Results) -> Comparison:
    """The table, ready for any of the renderings of `sparkles.eval.rendering`."""
    return Comparison(
        title=results.spec.title,
        columns=tuple(column.heading for column in results.columns),
        rows=tuple(
            (row.label, tuple(_cell(result, results) for result in cells))
            for row, cells in zip(results.spec.rows, results.rows, strict=True)
        ),
        notes=tuple(notes_of(results)),
    )


def write_files(results: Results, folder: Path) -> list[Path]:
    """Write `table.md`, `.tex`, `.csv` and `.json`, which has what the others have and the rows' run folders."""
    comparison = comparison_of(results)
    texts = {"md": markdown(comparison) + "\n", "tex": latex(comparison), "csv": csv_text(comparison)}
    for suffix, text in texts.items():
        write_text(folder / f"table.{suffix}", text)
    spec = results.spec
    write_json(
        folder / "table.json",
        {
            "table": spec.name,
            "title": spec.title,
            "question": spec.question,
            "size": spec.size,
            "reference": spec.reference,
            "complete": results.complete,
            "cells": list(records(comparison)),
            "runs": [
                {
                    "row": run.row.name,
                    "seed": run.seed,
                    "run_dir": str(run.run_dir),
                    "state": run.state,
                    "seconds": run.seconds,
                }
                for run in results.runs
            ],
            "notes": list(comparison.notes),
        },
    )
    return [folder / f"table.{suffix}" for suffix in (*texts, "json")]


def notes_of(results: Results) -> Iterator[str]:
    """What the numbers, marks and words of a table mean, as far as it has such."""
    cells = [result for row in results.rows for result in row]
    counts = {
        len(one.measured.seeds) for one in cells if one.measured and one.measured.interval.low is not None
    }
    over = "items and seeds" if max(counts, default=1) > 1 else "items"
    alone = "; of a row with one seed, over items alone" if 1 in counts and over != "items" else ""
    if counts:
        yield f"In brackets the 95 % interval over {over}{alone}. n: items of each seed."
    if any(one.best for one in cells):
        yield "Bold: the best of its column, if the 95 % interval of its difference to the second excludes 0."
    if results.reference and any(one.difference for one in cells):
        yield (
            f"p: two-sided, of the difference to {results.reference.label} item by item, over {over}, corrected by "
            "Holm's method for the rows of the column."
        )
    if results.spec.size == "nano" and any(paper_text(one, "nano") for one in cells):
        yield PAPER_NOTE
    verdicts = [one.verdict for one in cells if one.verdict]
    if verdicts:
        yield explain(results.spec.size, results.reference.label if results.reference else "")
    if any(verdict.paper_unsure for verdict in verdicts):
        yield f"{UNSURE} the paper's own difference lies within the noise of its items."


def headline_of(result: Result, measured: Measured) -> Headline:
    """The value with its interval and counts, as it is shown everywhere in the house."""
    return Headline(
        metric=result.column.metric,
        value=measured.value,
        low=measured.interval.low,
        high=measured.interval.high,
        num=measured.num,
        unscored=measured.unscored,
    )


def difference_text(result: Result) -> str:
    """The difference to the reference row with its interval, in the unit of the column; "" where there is none."""
    if result.difference is None:
        return ""
    estimate, headline = result.difference.estimate, Headline(metric=result.column.metric, value=None)
    half = estimate.half_width()

    def signed(value: float) -> str:
        return ("+" if value >= 0 else "−") + headline.show(abs(value))

    return f"{signed(estimate.value)} [{signed(estimate.value - half)}, {signed(estimate.value + half)}]"


def paper_text(result: Result, size: str) -> str:
    """The published value as it was published, with a mark where it is on another scale."""
    if result.paper is None or not result.paper.value:
        return ""
    return result.paper.value + ("*" if size == "nano" else "")


def verdict_text(result: Result) -> str:
    if result.verdict is None:
        return ""
    return result.verdict.word + (UNSURE if result.verdict.paper_unsure else "")


def _cell(result: Result, results: Results) -> Cell:
    measured, difference = result.measured, result.difference
    paper, verdict = paper_text(result, results.spec.size), verdict_text(result)
    if measured is None:
        return Cell(problem=result.problem, paper=paper, raw=_raw(result))
    headline = headline_of(result, measured)
    seeds = len(measured.seeds)
    return Cell(
        value=headline.shown,
        interval=headline.interval,
        facts=tuple(filter(None, [headline.counts, f"{seeds} seeds" if seeds > 1 else ""])),
        paper=paper,
        verdict=verdict,
        p_value=p_value_text(difference.corrected).lstrip("p=") if difference else "",
        best=result.best,
        problem=result.problem,
        raw=_raw(result),
    )


def _raw(result: Result) -> Raw:
    """The numbers of a cell, with the names of its row and column."""
    measured, difference, verdict, paper = (
        result.measured,
        result.difference,
        result.verdict,
        result.paper,
    )
    estimate = difference.estimate if difference else None
    return {
        "name": result.row.name,
        "key": result.column.key,
        "value": measured.value if measured else None,
        "low": measured.interval.low if measured else None,
        "high": measured.interval.high if measured else None,
        "num": measured.num if measured else None,
        "seeds": len(measured.seeds) if measured else 0,
        "unscored": measured.unscored if measured else None,
        "difference": estimate.value if estimate else None,
        "difference_low": estimate.interval.low if estimate else None,
        "difference_high": estimate.interval.high if estimate else None,
        "difference_num": difference.num if difference else None,
        "p": difference.p_value if difference else None,
        "p_holm": difference.corrected if difference else None,
        "best": result.best,
        "paper": paper.value if paper else "",
        "paper_num": paper.num if paper else None,
        "paper_source": paper.source if paper else "",
        "verdict": verdict.word if verdict else "",
        "paper_unsure": verdict.paper_unsure if verdict else None,
    }
