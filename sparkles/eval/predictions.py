"""Predictions as they lie on disk: of a run folder, of one `.jsonl`, or of a result file that the original wrote."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sparkles.eval.benchmark import Prediction
from sparkles.eval.released import read_results
from sparkles.eval.table import RunFolderError

Predictions = dict[str, list[Prediction]]
"""By the name of the benchmark."""


def read_run(path: Path, *, images: Path | None = None, judge: str | None = None) -> Predictions:
    """Everything that was predicted in a run.

    Args:
        path: a run folder with `predictions/<benchmark>.jsonl`, one such file, or a released `.json`.
        images: the folder of a released file's pictures; its own folder for None. They need not be there.
        judge: whose verdicts of a released file are meant, where it has several.

    Raises:
        RunFolderError: there are no predictions at `path`, or a line of them cannot be read.
        AnnotationError: a released file is not as it should be.
    """
    if path.suffix == ".json" and path.is_file():
        predictions = read_results(path, images=images or path.parent, judge=judge)
        return {released_benchmark(predictions): predictions}
    files = sorted((path / "predictions").glob("*.jsonl")) if path.is_dir() else [path]
    found = {file.stem: read_predictions(file) for file in files if file.is_file()}
    if not any(found.values()):
        raise RunFolderError(
            f"{path}: no predictions; expected a run folder with predictions/<benchmark>.jsonl, one such file, or a "
            "result file of the original (.json)"
        )
    return found


def read_predictions(path: Path) -> list[Prediction]:
    """The finished lines; the one that a running or killed evaluation was writing has no line end yet.

    Raises:
        RunFolderError: names the line that is no prediction.
    """
    # Not splitlines, which also breaks at the line separators that a response may hold.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    predictions = []
    for number, line in enumerate(lines, start=1):
        try:
            predictions.append(Prediction.from_json(line))
        except (ValueError, TypeError, KeyError) as error:
            raise RunFolderError(
                f"{path}, line {number}: not a prediction ({error}); delete the line and evaluate again"
            ) from error
    return predictions


def released_benchmark(predictions: Sequence[Prediction]) -> str:
    """Which benchmark a released file is of, by its labels; only SparklesEval has none."""
    labels = Counter(prediction.label for prediction in predictions)
    if None in labels:
        return "sparkles_eval"
    return "nlvr2" if labels.keys() <= {"TRUE", "FALSE"} else "bison"
