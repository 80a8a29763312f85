"""Pictures of evaluation sets are found by id and by look, and named."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sparkles.gen.leakage import (
    MAX_DISTANCE,
    EvaluationSet,
    Leakage,
    perceptual_hash,
    read_coco_ids,
)
from sparkles.prompt_format import image_reference
from sparkles.types import Dialogue, Image, InputError, Message

BISON = EvaluationSet(name="BISON", ids=frozenset({500}), collection="coco")
SPARKLES_EVAL = EvaluationSet(name="SparklesEval", ids=frozenset({20}), collection="vg")
COCO_IDS = {10: 500, 20: 600}


def images(*image_ids: int | str) -> tuple[Image, ...]:
    return tuple(Image(image_id=image_id) for image_id in image_ids)


def showing(*image_ids: int | str) -> Dialogue:
    return Dialogue(
        messages=(
            Message(
                role="user",
                content=" ".join(map(image_reference, image_ids)),
                images=images(*image_ids),
            ),
        )
    )


def test_pictures_of_visual_genome_are_found_by_their_own_id_and_by_coco_s() -> None:
    records = [showing(1, 10), showing(20), showing(2)]
    report = Leakage(evaluation_sets=[BISON, SPARKLES_EVAL], coco_ids=COCO_IDS).look(
        images(1, 10, 20, 2), "vg"
    )
    assert [report.objection(record) for record in records] == [
        "image 10 is in BISON: coco id 500",
        "image 20 is in SparklesEval: coco id 600",
        "",
    ]
    assert report.record() == {
        "images": 4,
        "hashed_images": 0,
        "evaluation_sets": {
            "BISON": {"compared": "id", "images": 1},
            "SparklesEval": {"compared": "id", "images": 1},
        },
        "found": {"10": {"BISON": "coco id 500"}, "20": {"SparklesEval": "coco id 600"}},
    }
    assert str(report) == "2 of 4 pictures are in evaluation sets (BISON: 1, id; SparklesEval: 1, id)"


def test_pictures_of_coco_are_found_in_sets_of_visual_genome() -> None:
    leakage = Leakage(evaluation_sets=[BISON, SPARKLES_EVAL], coco_ids=COCO_IDS)
    report = leakage.look(images("000000000600", 20), "coco")
    assert dict(report.found) == {"000000000600": {"SparklesEval": "coco id 600"}}


def test_without_the_map_ids_of_different_collections_are_not_compared_and_that_is_said() -> None:
    report = Leakage(evaluation_sets=[BISON, SPARKLES_EVAL]).look(images(500, 20), "vg")
    assert dict(report.found) == {20: {"SparklesEval": "vg id 20"}}
    assert report.compared == {"BISON": "not compared", "SparklesEval": "id"}
    assert not Leakage(evaluation_sets=[BISON]).look(images(500), "other").found


def test_copies_are_found_by_their_look(photos: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "99.jpg"
    with PIL.Image.open(photos[0]) as picture:
        picture.convert("RGB").resize((200, 160)).save(copy, quality=40)
    shown = [Image(image_id=99, path=copy), Image(image_id=1, path=photos[1]), Image(image_id=5)]
    nlvr2 = EvaluationSet(name="NLVR2", files=[photos[0], photos[2]])
    report = Leakage(evaluation_sets=[nlvr2]).look(shown)
    assert list(report.found) == [99]
    assert report.found[99]["NLVR2"].startswith(f"looks like {photos[0].name}: hashes differ in ")
    assert (report.num_images, report.num_hashed, report.compared) == (3, 2, {"NLVR2": "hash"})


def test_hashes_of_copies_are_near_and_those_of_other_photographs_far(
    photos: list[Path], tmp_path: Path
) -> None:
    copies = []
    for path in photos:
        with PIL.Image.open(path) as picture:
            small = picture.convert("RGB").resize((picture.width // 3, picture.height // 3))
        small.save(tmp_path / path.name, quality=30)
        copies.append(tmp_path / path.name)
    originals, copied = ([perceptual_hash(path) for path in paths] for paths in (photos, copies))
    distances = np.array([[(one ^ other).bit_count() for other in copied] for one in originals])
    assert distances.diagonal().max() <= MAX_DISTANCE
    assert distances[~np.eye(len(photos), dtype=bool)].min() > 2 * MAX_DISTANCE


def test_ids_of_an_unknown_collection_are_refused() -> None:
    with pytest.raises(InputError, match="ids=flickr; expected one of vg, coco, other"):
        Leakage(evaluation_sets=[BISON]).look(images(500), "flickr")  # type: ignore[arg-type]


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    path.write_text("no picture")
    with pytest.raises(InputError, match=r"cannot read .*broken.jpg as a picture"):
        perceptual_hash(path)


def test_image_data_gives_coco_ids_of_those_that_have_one(tmp_path: Path) -> None:
    path = tmp_path / "image_data.json"
    path.write_text(json.dumps([{"image_id": 1, "coco_id": None}, {"image_id": 10, "coco_id": 500}]))
    assert read_coco_ids(path) == {10: 500}
    path.write_text('{"image_id": 1}')
    with pytest.raises(InputError, match=r"expected image_data\.json of Visual Genome, a list of objects"):
        read_coco_ids(path)


@pytest.fixture
def photos(shared_dir: Path) -> list[Path]:
    return sorted((shared_dir / "data" / "photos").glob("*.jpg"))
