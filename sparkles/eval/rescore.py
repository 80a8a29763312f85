"""Metrics, intervals and the report once more, from predictions alone: no model, no judge, no key."""

from pathlib import Path

from sparkles.eval.files import read_json, write_json, write_text
from sparkles.eval.metrics import metrics_of
from sparkles.eval.nlvr2 import consistency
from sparkles.eval.predictions import read_run
from sparkles.eval.report import render_report


def rescore(
    path: Path,
    out: Path | None = None,
    *,
    images: Path | None = None,
    judge: str | None = None,
    reparse: bool = False,
) -> Path:
    """Write `metrics.json` and `report.html`, and return their folder.

    Args:
        path: a run folder, one `<benchmark>.jsonl`, or a result file of the original.
        out: where to; None for the run folder itself, or for a file and for answers read again `runs/rescored/<name>`.
        images, judge, reparse: see `read_run`.

    Raises:
        RunFolderError, AnnotationError: see `read_run`.
    """
    runs = read_run(path, images=images, judge=judge, reparse=reparse)
    in_place = path.is_dir() and not reparse
    out = out or (path if in_place else Path("runs/rescored") / path.resolve().stem)
    metrics = read_json((path if path.is_dir() else out) / "metrics.json")
    released = path.suffix == ".json"
    for name, predictions in runs.items():
        words = metrics.get(f"{name}/reference_words")
        found = metrics_of(predictions, reference_words=words) | consistency(predictions)
        if released and "first_try_accuracy" in found:  # what was drawn before is not in these files
            found["first_try_accuracy"] = None
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
        if out != path:
            lines = "".join(f"{prediction.to_json()}\n" for prediction in predictions)
            write_text(out / "predictions" / f"{name}.jsonl", lines)
    write_json(out / "metrics.json", metrics)
    render_report(out)
    return out
