import json
from pathlib import Path

import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.benchmark import Benchmark
from sparkles.eval.bison import Bison


def test_the_label_is_the_place_of_the_true_picture(bison_file: Path, pictures: Path) -> None:
    benchmark: Benchmark = Bison(annotations=bison_file, images=pictures)
    items = benchmark.items()
    assert [(item.item_id, item.label, item.kind) for item in items] == [
        ("1", "IMAGE#1", "color"),
        ("2", "IMAGE#2", "color"),
        ("3", "IMAGE#1", "place"),
        ("4", "IMAGE#2", "place"),
    ]
    assert [image.path for image in items[1].images] == [pictures / "green.png", pictures / "red.png"]
    assert [image.image_id for image in items[1].images] == [1, 2]


def test_the_prompt_shows_both_pictures_and_the_caption(bison_file: Path, pictures: Path) -> None:
    [question] = Bison(annotations=bison_file, images=pictures).items()[2].questions
    assert question.content.index("IMAGE#1<Img>") < question.content.index("IMAGE#2<Img>")
    assert "something red, number 3" in question.content


def test_the_originals_records_are_read(golden: Path, pictures: Path, tmp_path: Path) -> None:
    recorded = json.loads((golden / "functions.json").read_text())["evaluation"]["bison"]
    for name in ("a5.jpg", "a6.jpg"):
        (pictures / name).write_bytes((pictures / "red.png").read_bytes())
    annotations = tmp_path / "original.json"
    annotations.write_text(json.dumps(recorded["annotations"]))
    items = Bison(annotations=annotations, images=pictures).items()
    expected = [(str(i["evaluation_id"]), i["label"], i["img_paths"]) for i in recorded["items"]]
    found = [(item.item_id, item.label, [i.path.name for i in item.images if i.path]) for item in items]
    assert found == expected


def test_a_missing_picture_is_named_with_its_record(bison_file: Path, pictures: Path) -> None:
    (pictures / "green.png").unlink()
    with pytest.raises(
        AnnotationError, match=r"bison\.json, record 0: image green\.png not found in .*pictures"
    ):
        Bison(annotations=bison_file, images=pictures).items()


def test_a_true_picture_that_is_no_candidate_is_refused(bison_file: Path, pictures: Path) -> None:
    bison_file.write_text(bison_file.read_text().replace('"true_image_id": 7', '"true_image_id": 9'))
    with pytest.raises(AnnotationError, match=r"record 0: true_image_id 9 among the candidates \[7, 8\]"):
        Bison(annotations=bison_file, images=pictures).items()


def test_a_picture_outside_of_the_folder_is_refused(bison_file: Path, pictures: Path) -> None:
    bison_file.write_text(bison_file.read_text().replace("red.png", "../bison.json"))
    with pytest.raises(AnnotationError, match="leads out of the image folder"):
        Bison(annotations=bison_file, images=pictures).items()
