"""The original's result files, read as predictions: to score them again, and to compare with them item by item.

BISON and NLVR2 (`BISON_models_..._acc0.567.json`): a list of `{"evaluation_id", "sentence", "prompt", "img_paths",
"label", "predict", "response"}`. A response that could not be read was drawn again and is not in the file, so that
`first_try_accuracy` cannot be known from it.

SparklesEval (`SparklesEval_models_....json`): a dialogue file with the model's answers, where each record has the
verdict under the name of the judge's model: `{"A1_C123_scores", "A2_C123_scores", "prompt", "response"}`.
"""

from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sparkles.data.annotations import AnnotationError, get_field
from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.files import read_rows
from sparkles.eval.judges import ANSWERS, parse_verdict, released_verdict

VERDICT = tuple(f"{answer}_C123_scores" for answer in ANSWERS)

Record = dict[str, Any]


def read_results(
    path: str | Path, *, images: str | Path, judge: str | None = None, reparse: bool = False
) -> list[Prediction]:
    """Predictions of a result file of BISON, NLVR2 or SparklesEval.

    Args:
        images: the folder of their pictures, which need not be there.
        judge: whose verdicts are meant; None where the file has one judge.
        reparse: read the ratings out of the judge's replies, in place of those that the published code read.

    Raises:
        AnnotationError: names the file and the first record that is not as it should be.
    """
    path, images = Path(path), Path(images)
    rows = read_rows(path, ("evaluation_id",))
    if "dialogue" in rows[0]:
        read = partial(_rating, images=images, judge=judge or _only_judge(path, rows[0]), reparse=reparse)
    else:
        read = partial(_choice, images=images)
    predictions = []
    for number, row in enumerate(rows):
        try:
            predictions.append(read(row))
        except ValueError as error:
            raise AnnotationError(f"{path}, record {number}: {error}") from error
    return predictions


def _choice(row: Record, images: Path) -> Prediction:
    names = [PurePosixPath(name).name for name in get_field(row, "img_paths", kind=list)]
    pictures = [_picture(position, images / name) for position, name in enumerate(names, start=1)]
    answer, label = get_field(row, "predict").upper(), get_field(row, "label").upper()
    return _prediction(
        row,
        dialogue=[
            {"role": "user", "content": get_field(row, "prompt"), "images": pictures},
            {"role": "assistant", "content": get_field(row, "response"), "images": []},
        ],
        label=label,
        score=Score(answer=answer, correct=answer == label),
    )


def _rating(row: Record, images: Path, judge: str, reparse: bool) -> Prediction:
    dialogue = [
        {
            "role": get_field(message, "role"),
            "content": get_field(message, "content"),
            "images": [
                _picture(image_id, images / f"{image_id}.jpg", get_field(image, "caption"))
                for image in message.get("images", [])
                for image_id in [get_field(image, "image_id", kind=(int, str))]
            ],
        }
        for message in get_field(row, "dialogue", kind=list)
    ]
    found = get_field(row, judge, kind=dict)
    if reparse:
        verdict = parse_verdict(get_field(found, "response"), judge=judge)
    else:
        verdict = released_verdict({name: get_field(found, name, kind=list) for name in VERDICT}, judge=judge)
    return _prediction(row, dialogue=dialogue, score=Score(verdict=verdict))


def _prediction(row: Record, *, dialogue: list[Record], score: Score, label: str | None = None) -> Prediction:
    said = {
        role: [one["content"] for one in dialogue if one["role"] == role] for role in ("user", "assistant")
    }
    return Prediction(
        item_id=str(row["evaluation_id"]),
        kind="",
        prompt="\n\n".join(said["user"]),
        image_ids=[image["image_id"] for message in dialogue for image in message["images"]],
        dialogue=dialogue,
        tries=[
            {"turn": turn, "response": text, "seconds": None, "truncated": None}
            for turn, text in enumerate(said["assistant"], start=1)
        ],
        key="",  # matches no item, so that a run never takes it up as its own
        label=label,
        score=score,
    )


def _picture(image_id: int | str, path: Path, caption: str = "") -> Record:
    return {"image_id": image_id, "caption": caption, "path": str(path), "box": None}


def _only_judge(path: Path, row: Record) -> str:
    judges = [key for key, value in row.items() if isinstance(value, dict) and VERDICT[0] in value]
    if len(judges) != 1:
        raise AnnotationError(
            f"{path}: verdicts of {', '.join(judges) or 'no judge'}, expected those of one; name it as judge=..."
        )
    return judges[0]
