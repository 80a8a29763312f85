import json
from pathlib import Path
from typing import Any

import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.benchmark import Prediction
from sparkles.eval.metrics import choice_metrics, rating_metrics
from sparkles.eval.released import read_results


def choice(**fields: object) -> dict[str, Any]:
    return {
        "evaluation_id": 4,
        "sentence": "A kettle.",
        "prompt": "IMAGE#1<Img><ImageHere></Img> or IMAGE#2<Img><ImageHere></Img>?",
        "img_paths": ["/somewhere/else/a.jpg", "/somewhere/else/b.jpg"],
        "label": "IMAGE#1",
        "predict": "image#1",
        "response": "Therefore, the answer is IMAGE#1.",
    } | fields


def rated(**fields: object) -> dict[str, Any]:
    images = [{"image_id": 7, "caption": "A pier."}]
    turn = [
        {"role": "user", "content": "IMAGE#7<Img><ImageHere></Img>?", "images": images},
        {"role": "assistant", "content": "A pier."},
    ]
    verdict = {
        "A1_C123_scores": [8.0, 8.0, 7.0, 9.0],
        "A2_C123_scores": [6.5, 6.0, 6.5, 7.0],
        "response": "...",
    }
    return {"evaluation_id": 9, "dialogue": turn + turn, "gpt-4": verdict} | fields


def write(folder: Path, *records: object) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(records))
    return path


def test_choices_are_scored_as_they_were(tmp_path: Path) -> None:
    wrong = choice(evaluation_id=5, label="True", predict="false")
    right, other = read_results(write(tmp_path, choice(), wrong), images=tmp_path)
    assert (right.item_id, right.label, right.score.answer, right.score.correct) == (
        "4",
        "IMAGE#1",
        "IMAGE#1",
        True,
    )
    assert (other.label, other.score.answer, other.score.correct) == ("TRUE", "FALSE", False)
    assert [image["path"] for image in right.dialogue[0]["images"]] == [
        f"{tmp_path}/a.jpg",
        f"{tmp_path}/b.jpg",
    ]
    assert right.tries[0]["response"] == "Therefore, the answer is IMAGE#1."
    assert choice_metrics([right, other])["accuracy"] == 0.5


def test_predictions_of_a_released_file_survive_their_own_format(tmp_path: Path) -> None:
    for record in (choice(), rated()):
        (prediction,) = read_results(write(tmp_path, record), images=tmp_path)
        assert Prediction.from_json(prediction.to_json()) == prediction


def test_the_recorded_verdicts_are_read(golden: Path, tmp_path: Path) -> None:
    recorded = json.loads((golden / "functions.json").read_text())["evaluation"]["llm_as_judge"]["result"]
    predictions = read_results(write(tmp_path, *recorded), images=tmp_path)
    for prediction, record in zip(predictions, recorded, strict=True):
        assert prediction.item_id == str(record["evaluation_id"])
        assert [message["content"] for message in prediction.dialogue] == [
            message["content"] for message in record["dialogue"]
        ]
        (judge,) = record.keys() - {"dialogue", "evaluation_id"}
        verdict = prediction.score.verdict
        assert verdict is not None
        assert verdict.judge == judge
        assert verdict.scores is not None
        for answer, scores in verdict.scores.items():
            assert list(scores.values()) == record[judge][f"{answer}_C123_scores"][1:]
    means = [
        sum(record[judge][f"{answer}_C123_scores"][1:]) / 3 for record in recorded for answer in ("A1", "A2")
    ]
    assert rating_metrics(predictions)["overall"] == pytest.approx(sum(means) / len(means))


def test_verdicts_are_read_out_of_the_replies_again(tmp_path: Path) -> None:
    criteria = "".join(f'(C{n}) Explanation: "..." Rating: [[{n + 3}]]\n' for n in (1, 2, 3))
    record = rated()
    record["gpt-4"]["response"] = f"* Evaluating A1\n{criteria}* Evaluating A2\n{criteria}"
    silent = rated(evaluation_id=10)
    read, unread = read_results(write(tmp_path, record, silent), images=tmp_path, reparse=True)
    assert read.score.verdict is not None
    assert read.score.verdict.scores == {answer: {"C1": 4.0, "C2": 5.0, "C3": 6.0} for answer in ("A1", "A2")}
    assert unread.score.verdict is not None
    assert unread.score.verdict.unscored_reason == "the reply evaluates neither A1 nor A2"


def test_one_of_several_judges_is_chosen_by_name(tmp_path: Path) -> None:
    record = rated()
    path = write(tmp_path, record | {"gpt-3.5-turbo": record["gpt-4"] | {"A1_C123_scores": [1.0] * 4}})
    with pytest.raises(AnnotationError, match=r"verdicts of gpt-4, gpt-3.5-turbo, expected those of one"):
        read_results(path, images=tmp_path)
    (prediction,) = read_results(path, images=tmp_path, judge="gpt-3.5-turbo")
    assert prediction.score.verdict is not None
    assert prediction.score.verdict.scores is not None
    assert prediction.score.verdict.scores["A1"]["C1"] == 1.0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (choice(predict=None), "record 1: 'predict' is None, expected str"),
        (rated(), "record 1: no 'img_paths'"),
    ],
)
def test_a_record_of_another_form_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_results(write(tmp_path, choice(), record), images=tmp_path)


def test_a_dialogue_without_a_verdict_is_named(tmp_path: Path) -> None:
    record = rated()
    del record["gpt-4"]
    with pytest.raises(AnnotationError, match=r"results.json, record 1: no 'gpt-4'"):
        read_results(write(tmp_path, rated(), record), images=tmp_path)
    with pytest.raises(AnnotationError, match="verdicts of no judge"):
        read_results(write(tmp_path, record), images=tmp_path)
