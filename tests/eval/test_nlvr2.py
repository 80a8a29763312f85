import json
from pathlib import Path

import PIL.Image
import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.benchmark import BenchmarkError
from sparkles.eval.files import read_rows
from sparkles.eval.nlvr2 import COLUMNS, NLVR2, image_names

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
