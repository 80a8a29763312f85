import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparkles.eval.benchmark import Prediction
from sparkles.eval.files import read_json, write_json
from sparkles.eval.predictions import read_run
from sparkles.eval.rescore import rescore

Make = Callable[..., Prediction]


def test_a_run_gets_its_metrics_and_report_back(
    make_prediction: Make, write_run: Callable[..., Path]
) -> None:
    items = [make_prediction(str(n), correct=n < 3) for n in range(4)]
    rated = [make_prediction(str(n), answers=["a", "b"], rating=4.0 + n) for n in range(3)]
    run = write_run("run", bison=items, sparkles_eval=rated)
    write_json(run / "metrics.json", {"bison/accuracy": 0.0, "bison/unanswered": 2, "nlvr2/accuracy": 0.5})
    assert rescore(run) == run
    metrics = read_json(run / "metrics.json")
    assert (metrics["bison/accuracy"], metrics["bison/num"], metrics["sparkles_eval/overall"]) == (
        0.75,
        4,
        5.0,
    )
    assert (metrics["bison/unanswered"], metrics["nlvr2/accuracy"]) == (2, 0.5)  # not for predictions to tell
    assert "BISON" in (run / "report.html").read_text()


def test_a_single_file_goes_to_another_folder(
    make_prediction: Make, write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run("run", bison=[make_prediction("1")])
    out = rescore(run / "predictions/bison.jsonl")
    assert out == Path("runs/rescored/bison")
    assert (out / "predictions/bison.jsonl").read_text() == (run / "predictions/bison.jsonl").read_text()
    assert not (run / "metrics.json").exists()


def test_the_length_of_the_reference_is_taken_from_the_run(
    make_prediction: Make, write_run: Callable[..., Path]
) -> None:
    rated = [make_prediction(str(n), answers=["w " * n, "x"], rating=1.0 + n / 4) for n in range(30)]
    run = write_run("run", sparkles_eval=rated)
    write_json(run / "metrics.json", {"sparkles_eval/reference_words": 10.0})
    metrics = read_json(rescore(run) / "metrics.json")
    assert metrics["sparkles_eval/overall_length_controlled"] < metrics["sparkles_eval/overall"]


def test_a_file_of_the_original_is_scored(tmp_path: Path) -> None:
    record = {
        "prompt": "IMAGE#1<Img><ImageHere></Img> or IMAGE#2<Img><ImageHere></Img>?",
        "img_paths": ["a.jpg", "b.jpg"],
        "label": "IMAGE#1",
        "response": "...",
    }
    rows = [record | {"evaluation_id": n, "predict": f"image#{1 + n % 2}"} for n in range(4)]
    path = tmp_path / "BISON_models_x_acc0.500.json"
    path.write_text(json.dumps(rows))
    metrics = read_json(rescore(path, tmp_path / "out") / "metrics.json")
    assert (metrics["bison/accuracy"], metrics["bison/num"]) == (0.5, 4)
    assert metrics["bison/first_try_accuracy"] is None


def test_answers_are_read_again_into_another_folder(
    make_prediction: Make, write_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second item was unread although its reply decides; the first try of the third one does not."""
    monkeypatch.chdir(tmp_path)
    said = [["TRUE"], ["not TRUE"], ["either", "FALSE"]]
    read = ["TRUE", None, "FALSE"]
    items = [
        replace(
            make_prediction(str(number), answer=answer),
            tries=[{"turn": 1, "response": f"Therefore, the answer is {one}."} for one in tries],
        )
        for number, (tries, answer) in enumerate(zip(said, read, strict=True))
    ]
    run = write_run("run", nlvr2=items)
    assert read_json(rescore(run) / "metrics.json")["nlvr2/unscored"] == 1
    out = rescore(run, reparse=True)
    assert out == Path("runs/rescored/run")
    metrics = read_json(out / "metrics.json")
    assert (metrics["nlvr2/accuracy"], metrics["nlvr2/unscored"]) == (pytest.approx(1 / 3), 0)
    answers = [[one.score.answer for one in read_run(folder)["nlvr2"]] for folder in (run, out)]
    assert answers == [read, ["TRUE", "FALSE", "FALSE"]]


def test_pictures_are_options_of_their_own_item(
    make_prediction: Make, write_run: Callable[..., Path]
) -> None:
    one = replace(
        make_prediction("1", pictures=["a.png", "b.png"], answer="IMAGE#1"),
        label="IMAGE#1",
        tries=[{"turn": 1, "response": "Therefore, the answer is image 2."}],
    )
    run = write_run("run", bison=[one])
    out = rescore(run, run.with_name("again"), reparse=True)
    assert [found.score.answer for found in read_run(out)["bison"]] == ["IMAGE#2"]


def test_consistency_is_measured_again(make_prediction: Make, write_run: Callable[..., Path]) -> None:
    items = [
        make_prediction(
            str(pair), question="A dog.", pictures=[f"/x/dev-3-{pair}-img0.png"], correct=pair == 0
        )
        for pair in range(2)
    ]
    metrics = read_json(rescore(write_run("run", nlvr2=items)) / "metrics.json")
    assert (metrics["nlvr2/consistency"], metrics["nlvr2/statements"]) == (0.0, 1)
