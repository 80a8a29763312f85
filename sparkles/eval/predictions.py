"""Predictions as they lie on disk: of a run folder, of one `.jsonl`, or of a result file that the original wrote."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sparkles.eval.answers import parse_choice
from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.released import read_results
from sparkles.eval.table import RunFolderError
from sparkles.prompt_format import image_mention

Predictions = dict[str, list[Prediction]]
"""By the name of the benchmark."""


def read_run(
    path: Path, *, images: Path | None = None, judge: str | None = None, reparse: bool = False
) -> Predictions:
    """Everything that was predicted in a run.

    Args:
        path: a run folder with `predictions/<benchmark>.jsonl`, one such file, or a released `.json`.
        images: the folder of a released file's pictures; its own folder for None. They need not be there.
        judge: whose verdicts of a released file are meant, where it has several.
        reparse: read answers, and the verdicts of a released file, out of the replies again.

    Raises:
        RunFolderError: there are no predictions at `path`, or a line of them cannot be read.
        AnnotationError: a released file is not as it should be.
    """
    if path.suffix == ".json" and path.is_file():
        released = read_results(path, images=images or path.parent, judge=judge, reparse=reparse)
        return {released_benchmark(released): parse_again(released) if reparse else released}
    files = sorted((path / "predictions").glob("*.jsonl")) if path.is_dir() else [path]
    found = {file.stem: read_predictions(file) for file in files if file.is_file()}
    if not any(found.values()):
        raise RunFolderError(
            f"{path}: no predictions; expected a run folder with predictions/<benchmark>.jsonl, one such file, or a "
            "result file of the original (.json)"
        )
    return {name: parse_again(predictions) for name, predictions in found.items()} if reparse else found


def parse_again(predictions: Sequence[Prediction]) -> list[Prediction]:
    """With each choice read out of its responses again: that of the first try that has any. Ratings stay.

    The options are the item's pictures where its label is one of them, or else what the file has as labels and answers.
    """
    named = {name for one in predictions for name in (one.label, one.score.answer) if name is not None}

    def parsed(prediction: Prediction) -> Prediction:
        if prediction.label is None:
            return prediction
        pictures = [image_mention(image_id) for image_id in prediction.image_ids]
        options = pictures if prediction.label in pictures else sorted(named)
        last_turn = max(one["turn"] for one in prediction.tries)
        said = [one["response"] for one in prediction.tries if one["turn"] == last_turn]
        answers = (parse_choice(response, options) for response in said)
        answer = next((answer for answer in answers if answer is not None), None)
        return replace(prediction, score=Score(answer=answer, correct=answer == prediction.label))

    return [parsed(prediction) for prediction in predictions]


def read_predictions(path: Path) -> list[Prediction]:
    """The finished lines; the one that a running or killed evaluation was writing has no line end yet.

    Raises:
        RunFolderError: names the line that is no prediction.
    """
    lines = path.read_bytes().split(b"\n")[:-1]  # bytes: a line may be cut within a character
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
