"""Tables whose runs exist, with the answers that a test asks for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.metrics import metrics_of
from sparkles.eval.table import PAPER_COLUMNS
from sparkles.tables.runs import RowRun
from sparkles.tables.spec import Row, Size, TableSpec
from sparkles.types import CRITERIA, Verdict

Scores = Sequence[bool | float | None]
"""Of the items of a run: right or wrong, a rating, or None for what could not be scored."""
State = str
"""`failed` or `missing`, in place of the scores of a run."""


def answered(
    folder: Path,
    rows: Mapping[str, Sequence[Mapping[str, Scores] | State]],
    *,
    paper: Sequence[str] = (),
    pictures: bool = False,
    **changes: Any,
) -> tuple[TableSpec, list[RowRun]]:
    """The table and its runs.

    Args:
        rows: by name, for each seed the scores by benchmark, or how the run ended instead.
        paper: lines of paper.csv.
        pictures: whether the items show one.
        changes: fields of the spec.
    """
    if paper:
        (folder / "paper.csv").write_text("\n".join([",".join(PAPER_COLUMNS), *paper]) + "\n")
    spec = make_spec(folder, {name: len(runs) for name, runs in rows.items()}, **changes)
    picture = folder / "picture.png"
    if pictures:
        PIL.Image.new("RGB", (8, 8), "red").save(picture)
    found = [
        _run(folder, row, seed, given, picture if pictures else None)
        for row in spec.rows
        for seed, given in zip(row.seeds, rows[row.name], strict=True)
    ]
    return spec, found


def make_spec(folder: Path, rows: Mapping[str, int], *, size: Size = "nano", **changes: Any) -> TableSpec:
    """A table without overrides; `rows` are numbers of seeds by name, the label of row `a` is `Row a`."""
    most = max(rows.values())
    fields = {
        "reference": next(iter(rows)),
        "benchmarks": ("bison",),
        "num": 150,
        "columns": None,
        "title": "Table 9: <b>rows</b>",
    }
    return TableSpec(
        name="table9",
        question="Which is best?",
        size=size,
        rows=tuple(
            Row(name=name, label=f"Row {name}", overrides=(), seeds=tuple(range(count)))
            for name, count in rows.items()
        ),
        seeds=tuple(range(most)),
        paper=folder / "paper.csv",
        **(fields | changes),
    )


def _run(
    folder: Path, row: Row, seed: int, given: Mapping[str, Scores] | State, picture: Path | None
) -> RowRun:
    run_dir = folder / f"{row.name}_seed{seed}"
    run_dir.mkdir()
    log = run_dir / "train.log"
    if isinstance(given, str):
        log.write_text("it went wrong\n")
        return RowRun(
            row=row, seed=seed, run_dir=run_dir, state="failed" if given == "failed" else "missing",
            log=log if given == "failed" else None, seconds=None,
        )  # fmt: skip
    metrics = {}
    for benchmark, scores in given.items():
        predictions = [_prediction(str(at), score, picture, row.name) for at, score in enumerate(scores)]
        path = run_dir / "predictions" / f"{benchmark}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{prediction.to_json()}\n" for prediction in predictions))
        metrics |= {f"{benchmark}/{key}": value for key, value in metrics_of(predictions).items()}
    (run_dir / "metrics.json").write_text(json.dumps(metrics))
    (run_dir / "report.html").touch()
    return RowRun(row=row, seed=seed, run_dir=run_dir, state="finished", log=None, seconds=60.0 + seed)


def _prediction(item: str, score: bool | float | None, picture: Path | None, who: str) -> Prediction:
    """Even items are of kind `even`; a rated dialogue has the rating twice as high in its second turn."""
    rated = isinstance(score, float)
    images = [{"image_id": 1, "caption": "red", "path": str(picture), "box": None}] if picture else []
    shown = " IMAGE#1<Img><ImageHere></Img>" if picture else ""
    dialogue = [
        {"role": "user", "content": f"question {item}{shown}", "images": images},
        {"role": "assistant", "content": f"{who} says <i>{score}</i>", "images": []},
    ]
    verdict = None
    if isinstance(score, float):
        ratings = {"A1": score - 1, "A2": score + 1}
        verdict = Verdict(
            scores={answer: dict.fromkeys(CRITERIA, rating) for answer, rating in ratings.items()}, judge="j"
        )
    answer = None if score is None else "TRUE" if score else "FALSE"
    return Prediction(
        item_id=item,
        kind="even" if int(item) % 2 == 0 else "odd",
        prompt=f"question {item}",
        image_ids=[image["image_id"] for image in images],
        dialogue=dialogue,
        tries=[{"turn": 1, "response": "", "seconds": 0.0, "truncated": False}],
        key="",
        label=None if rated else "TRUE",
        score=Score(verdict=verdict) if rated else Score(answer=answer, correct=bool(score)),
    )
