import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.benchmark import BenchmarkError, Prediction
from sparkles.eval.files import read_rows
from sparkles.eval.nlvr2 import COLUMNS, NLVR2, consistency, image_names
from sparkles.eval.run import evaluate
from sparkles.eval.significance import proportion_interval
from sparkles.types import Prompt

Make = Callable[..., Prediction]

ROW = {"sentence": "There are 2 sailors for $5.", "label": "False", "identifier": "test1-7-3-0"}


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_left_and_right_picture_come_from_the_identifier(pictures: Path, tmp_path: Path) -> None:
    annotations = write(tmp_path / "nlvr2.json", ROW | {"kind": "count"})
    [item] = NLVR2(annotations=annotations, images=pictures).items()
    assert [image.path for image in item.images] == [
        pictures / "test1-7-3-img0.png",
        pictures / "test1-7-3-img1.png",
    ]
    assert (item.item_id, item.label, item.kind) == ("test1-7-3-0", "FALSE", "count")
    assert "'There are 2 sailors for $5.'" in item.questions[0].content


def test_names_and_labels_are_the_originals(golden: Path, pictures: Path, tmp_path: Path) -> None:
    recorded = json.loads((golden / "functions.json").read_text())["evaluation"]["nlvr2"]
    for item in recorded["items"]:
        for name in item["img_paths"]:
            PIL.Image.new("RGB", (4, 4)).save(pictures / name)
    annotations = tmp_path / "list.json"
    annotations.write_text(json.dumps(recorded["annotations"]))
    items = NLVR2(annotations=annotations, images=pictures).items()
    found = [(item.item_id, item.label, [i.path.name for i in item.images if i.path]) for item in items]
    assert found == [(str(i["evaluation_id"]), i["label"].upper(), i["img_paths"]) for i in recorded["items"]]


def test_the_public_test_split_parses(shared_dir: Path) -> None:
    path = shared_dir / "data" / "nlvr2" / "balanced_test1_first200.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    rows = read_rows(path, COLUMNS)
    assert len(rows) == 200
    assert {row["label"] for row in rows} == {"True", "False"}
    assert image_names(rows[0]["identifier"]) == ("test1-0-0-img0", "test1-0-0-img1")


def test_real_rows_become_items(shared_dir: Path, tmp_path: Path) -> None:
    path = shared_dir / "data" / "nlvr2" / "balanced_test1_first200.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    for row in read_rows(path, COLUMNS):
        for name in image_names(row["identifier"]):
            (tmp_path / f"{name}.png").touch()  # the photographs are not redistributable
    items = NLVR2(annotations=path, images=tmp_path, num=150, seed=1).items()
    assert len({item.item_id for item in items}) == 150
    assert items == NLVR2(annotations=path, images=tmp_path, num=150, seed=1).items()
    assert items != NLVR2(annotations=path, images=tmp_path, num=150, seed=2).items()


def test_an_unknown_label_is_refused(pictures: Path, tmp_path: Path) -> None:
    annotations = write(tmp_path / "nlvr2.json", ROW, ROW | {"label": "maybe"})
    with pytest.raises(
        AnnotationError, match=r"nlvr2\.json, record 1: label 'maybe', expected true or false"
    ):
        NLVR2(annotations=annotations, images=pictures).items()


def test_more_items_than_there_are_is_an_error(pictures: Path, tmp_path: Path) -> None:
    annotations = write(tmp_path / "nlvr2.json", ROW)
    with pytest.raises(BenchmarkError, match=r"cannot draw num=5 items from the 1 of .*num=null takes all"):
        NLVR2(annotations=annotations, images=pictures, num=5).items()


def judged(make: Make, identifier: str, sentence: str, correct: bool) -> Prediction:
    pictures = [f"/photos/{name}.png" for name in image_names(identifier)]
    return make(identifier, question=sentence, pictures=pictures, correct=correct)


def test_a_statement_is_consistent_if_all_its_pairs_are_judged_rightly(make_prediction: Make) -> None:
    predictions = [
        judged(make_prediction, "test1-0-0-0", "An empty glass.", True),
        judged(make_prediction, "test1-0-2-0", "An empty glass.", True),
        judged(make_prediction, "test1-0-0-1", "Three bottles.", True),
        judged(make_prediction, "test1-0-2-1", "Three bottles.", False),
        judged(make_prediction, "test1-9-0-0", "Three bottles.", True),  # of another set: another statement
    ]
    found = consistency(predictions)
    assert (found["consistency"], found["statements"]) == (pytest.approx(2 / 3), 3)
    assert found["consistency_interval"] == "Wilson, 3 overlapping items counted as 0"


def test_statements_about_different_sets_are_independent(make_prediction: Make) -> None:
    rights = [True, False, True, True]
    predictions = [
        judged(make_prediction, f"dev-{number}-0-0", "A dog.", right) for number, right in enumerate(rights)
    ]
    found, expected = consistency(predictions), proportion_interval(rights)
    assert (found["consistency_low"], found["consistency_high"]) == (expected.low, expected.high)


def test_other_pictures_and_no_items_have_no_consistency(make_prediction: Make) -> None:
    assert consistency([make_prediction("1", pictures=["/photos/7.jpg"])]) == {}
    assert consistency([make_prediction("1")]) == {}
    assert consistency([]) == {}


@pytest.mark.parametrize("numbered", [False, True])
def test_nlvr2s_own_scorer_gets_identifier_and_answer(
    pictures: Path, scripted_responder: Any, tmp_path: Path, numbered: bool
) -> None:
    """Also where the original has numbered its sample."""
    rows: list[dict[str, object]] = [
        ROW | {"identifier": f"test1-7-3-{number}", "sentence": f"Sentence {number}"} for number in range(3)
    ]
    if numbered:
        rows = [row | {"evaluation_id": number} for number, row in enumerate(rows, start=1)]
    answers = {"Sentence 0": "TRUE", "Sentence 1": "FALSE", "Sentence 2": "unclear"}

    def answer(prompt: Prompt) -> str:
        [said] = [said for sentence, said in answers.items() if sentence in prompt.messages[0].content]
        return f"Therefore, the answer is {said}."

    benchmark = NLVR2(annotations=write(tmp_path / "nlvr2.json", *rows), images=pictures)
    metrics = evaluate([benchmark], scripted_responder(answer), None, tmp_path / "run", progress=False)
    assert (metrics["nlvr2/accuracy"], metrics["nlvr2/consistency"]) == pytest.approx((1 / 3, 1 / 3))
    lines = (tmp_path / "run" / "predictions" / "nlvr2.csv").read_text().splitlines()
    assert lines == ["test1-7-3-0,True", "test1-7-3-1,False", "test1-7-3-2,"]


def test_real_statements_are_grouped_as_nlvr2_numbers_them(shared_dir: Path, make_prediction: Make) -> None:
    path = shared_dir / "data" / "nlvr2" / "balanced_test1_first200.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    rows = read_rows(path, COLUMNS)
    predictions = [
        judged(make_prediction, row["identifier"], row["sentence"], row["label"] == "True") for row in rows
    ]
    without_pair = {tuple(row["identifier"].split("-")[i] for i in (0, 1, 3)) for row in rows}
    assert consistency(predictions)["statements"] == len(without_pair)
