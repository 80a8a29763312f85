import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.eval.benchmark import Prediction
from sparkles.eval.files import read_json, write_json
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
