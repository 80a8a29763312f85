import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.eval.benchmark import Prediction
from sparkles.eval.predictions import read_run
from sparkles.eval.table import RunFolderError


def test_a_run_folder_and_its_files_are_read(
    make_prediction: Callable[..., Prediction], write_run: Callable[..., Path]
) -> None:
    bison, nlvr2 = [make_prediction("1"), make_prediction("2")], [make_prediction("3")]
    folder = write_run("run", bison=bison, nlvr2=nlvr2)
    assert read_run(folder) == {"bison": bison, "nlvr2": nlvr2}
    assert read_run(folder / "predictions/nlvr2.jsonl") == {"nlvr2": nlvr2}


def test_a_line_that_is_being_written_is_not_read(
    make_prediction: Callable[..., Prediction], write_run: Callable[..., Path]
) -> None:
    folder = write_run("run", bison=[make_prediction("1")])
    with (folder / "predictions/bison.jsonl").open("ab") as file:
        file.write('{"item_id": "2", "kind": "ö'.encode()[:-1])  # cut within a character
    assert [one.item_id for one in read_run(folder)["bison"]] == ["1"]


@pytest.mark.parametrize(
    ("label", "benchmark"), [("IMAGE#1", "bison"), ("TRUE", "nlvr2"), ("false", "nlvr2")]
)
def test_a_file_of_the_original_is_known_by_its_labels(tmp_path: Path, label: str, benchmark: str) -> None:
    record = {
        "evaluation_id": 4,
        "sentence": "A kettle.",
        "prompt": "IMAGE#1<Img><ImageHere></Img> or IMAGE#2<Img><ImageHere></Img>?",
        "img_paths": ["a.jpg", "b.jpg"],
        "label": label,
        "predict": label,
        "response": "",
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps([record]))
    assert list(read_run(path)) == [benchmark]


def test_a_folder_without_predictions_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere.jsonl"):
        with pytest.raises(RunFolderError, match=rf"{path}: no predictions; expected a run folder"):
            read_run(path)


def test_a_line_of_another_form_is_named(
    make_prediction: Callable[..., Prediction], write_run: Callable[..., Path]
) -> None:
    path = write_run("run", bison=[make_prediction("1")]) / "predictions/bison.jsonl"
    path.write_text(path.read_text() + "[]\n")
    with pytest.raises(RunFolderError, match=r"bison\.jsonl, line 2: not a prediction"):
        read_run(path)
