import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.benchmark import Benchmark
from sparkles.eval.bison import Bison
from sparkles.eval.run import evaluate
from sparkles.eval.scorer_files import write_scorer_file
from sparkles.types import Prompt

Scripted = Any
"""The scripted classes of conftest.py, which a test gets as fixtures."""


@pytest.fixture
def coco_bison(pictures: Path, tmp_path: Path) -> Callable[..., Bison]:
    """Two records about red.png (COCO's image 143) and green.png (369), each true once, in COCO-BISON's files."""
    candidates = [
        {"image_id": 143, "image_filename": "red.png"},
        {"image_id": 369, "image_filename": "green.png"},
    ]
    records = [
        {"bison_id": number, "caption_id": 11 + number, "true_image_id": true, "image_candidates": candidates}
        for number, true in enumerate([143, 369])
    ]
    annotations, captions = tmp_path / "bison_annotations.json", tmp_path / "captions.json"
    annotations.write_text(
        json.dumps({"info": {"source": "coco", "split": "val2014"}, "data": records}, indent=1)
    )
    texts = [{"id": 11 + number, "image_id": 1, "caption": f"Caption {number}. \n"} for number in range(2)]
    captions.write_text(json.dumps({"info": {}, "images": [], "annotations": texts}))

    def make(**settings: Any) -> Bison:
        return Bison(**{"annotations": annotations, "images": pictures, "captions": captions} | settings)

    return make


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


def test_coco_bison_is_read_with_cocos_captions(coco_bison: Callable[..., Bison]) -> None:
    benchmark = coco_bison()
    items = benchmark.items()
    assert [(item.item_id, item.label) for item in items] == [("0", "IMAGE#1"), ("1", "IMAGE#2")]
    assert "'Caption 1.'" in items[1].questions[0].content
    assert benchmark.hashes().keys() == {"annotations", "captions", "prompt"}


def test_a_caption_that_is_nowhere_is_asked_for(coco_bison: Callable[..., Bison]) -> None:
    with pytest.raises(AnnotationError, match=r"record 0: no caption, and caption_id 11 .*captions_val2014"):
        coco_bison(captions=None).items()


def test_a_record_without_an_id_is_refused(bison_file: Path, pictures: Path) -> None:
    bison_file.write_text(bison_file.read_text().replace('"evaluation_id": 3', '"number": 3'))
    with pytest.raises(AnnotationError, match="record 2: neither bison_id nor evaluation_id"):
        Bison(annotations=bison_file, images=pictures).items()


@pytest.mark.parametrize(
    ("answers", "chosen"), [(["IMAGE#1", "IMAGE#1"], [143, 143]), (["IMAGE#2", "none"], [369, None])]
)
def test_bisons_own_scorer_gets_the_chosen_pictures(
    coco_bison: Callable[..., Bison],
    scripted_responder: Scripted,
    tmp_path: Path,
    answers: list[str],
    chosen: list[int | None],
) -> None:
    def answer(prompt: Prompt) -> str:
        return f"Therefore, the answer is {answers[int(prompt.item_id)]}."

    benchmark, run_dir = coco_bison(), tmp_path / "run"
    evaluate([benchmark], scripted_responder(answer), None, run_dir, progress=False)
    path = run_dir / "predictions" / "bison.scorer.json"
    assert json.loads(path.read_text()) == [
        {"bison_id": number, "predicted_image_id": image} for number, image in enumerate(chosen)
    ]


def test_the_originals_sample_is_not_known_to_bisons_scorer(
    bison_file: Path, pictures: Path, scripted_responder: Scripted, tmp_path: Path
) -> None:
    benchmark = Bison(annotations=bison_file, images=pictures)
    evaluate([benchmark], scripted_responder(), None, tmp_path / "run", progress=False)
    assert not list((tmp_path / "run").rglob("*.scorer.json"))
    assert write_scorer_file(benchmark, [], tmp_path) is None
