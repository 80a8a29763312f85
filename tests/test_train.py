"""The main job from the command line, on a world of a few pictures: what it writes, and that it can go on."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import train
from sparkles.eval.__main__ import main as eval_main
from sparkles.models.lightning_module import SparklesModule

RunMain = Callable[..., None]
CHOICE_METRICS = {
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_interval"),
    *("num", "unscored", "first_try_accuracy", "majority_rate"),
}
CONSISTENCY_METRICS = {
    "consistency",
    *(f"consistency_{end}" for end in ("low", "high", "interval")),
    "statements",
}
RATING_METRICS = {
    *(f"{answer}/{score}" for answer in ("A1", "A2") for score in ("C1", "C2", "C3", "mean")),
    *("overall", "overall_low", "overall_high", "overall_interval", "num", "unscored", "judge"),
    *("words", "reference_words"),
    *(f"overall_length_controlled{end}" for end in ("", "_low", "_high")),
}


@pytest.fixture(scope="module")
def overrides(tiny_run: list[str], tiny_world: Path) -> list[str]:
    return [*tiny_run, f"data_root={tiny_world}"]


@pytest.fixture(scope="module")
def demo(
    overrides: list[str], run_main: RunMain, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of a multirun as `make demo` starts it, and what the terminal showed."""
    folder = tmp_path_factory.mktemp("runs")
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        run_main(
            train.main,
            "-m",
            "experiment=sparkleschat,minigpt4,blanked",
            f"run_dir={folder}",
            "hydra.sweep.subdir=${hydra:runtime.choices.experiment}",
            *overrides,
        )
    return folder, output.getvalue()


@pytest.fixture(scope="module")
def trained(demo: tuple[Path, str]) -> Path:
    return demo[0] / "sparkleschat"


def predictions(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """What a run answered, benchmark by benchmark, without the time that it took."""
    answers = {}
    for path in sorted((run_dir / "predictions").glob("*.jsonl")):
        answers[path.stem] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for prediction in answers[path.stem]:
            for attempt in prediction["tries"]:
                del attempt["seconds"]
    return answers


def metrics(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "metrics.json").read_text(encoding="utf-8")))


def projection(run_dir: Path) -> dict[str, Tensor]:
    checkpoint = torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)
    return dict(checkpoint["state_dict"])


def test_a_run_leaves_the_files_of_the_contract(trained: Path) -> None:
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(".hydra/")} == {
        "config.yaml",
        "environment.json",
        "metrics.json",
        "report.html",
        "predictions/bison.jsonl",
        "predictions/nlvr2.jsonl",
        "predictions/nlvr2.csv",
        "predictions/sparkles_eval.jsonl",
        "checkpoints/last.ckpt",
        "logs/version_0/metrics.csv",
        "train.log",
    }


def test_metrics_are_those_of_the_contract(trained: Path) -> None:
    keys = {key for key in metrics(trained) if "/kind/" not in key}
    assert keys == {
        *(f"{name}/{metric}" for name in ("bison", "nlvr2") for metric in CHOICE_METRICS),
        *(f"nlvr2/{metric}" for metric in CONSISTENCY_METRICS),
        *(f"sparkles_eval/{metric}" for metric in RATING_METRICS),
    }
    assert {metrics(trained)[f"{name}/num"] for name in ("bison", "nlvr2", "sparkles_eval")} == {4}


def test_predictions_can_be_scored_again(trained: Path) -> None:
    by_benchmark = predictions(trained)
    common = {"item_id", "kind", "prompt", "image_ids", "tries", "dialogue", "key"}
    for name, lines in by_benchmark.items():
        assert len(lines) == 4
        for line in lines:
            scored = {"verdict"} if name == "sparkles_eval" else {"label", "answer", "correct"}
            assert line.keys() == common | scored
            assert all(isinstance(attempt["response"], str) for attempt in line["tries"])
            assert line["image_ids"]


def test_the_config_is_written_resolved(trained: Path) -> None:
    text = (trained / "config.yaml").read_text(encoding="utf-8")
    assert "${" not in text
    config = OmegaConf.create(text)
    assert (config.seed, config.name, config.data.steps) == (0, "SparklesChat", 3)


def test_the_environment_names_seed_revision_and_hashes(trained: Path) -> None:
    environment = json.loads((trained / "environment.json").read_text(encoding="utf-8"))
    assert environment["seed"] == 0
    assert {"versions", "git", "devices"} <= environment.keys()
    hashes = environment["hashes"]
    assert {"vision", "qformer", "language"} <= hashes.keys()
    data = {key.split("/")[1] for key in hashes if key.startswith("data/")}
    assert data == {"cc_turn2", "vg_turn2", "validation"}
    benchmarks = {key for key in hashes if not key.startswith("data/") and "/" in key}
    assert benchmarks == {
        *("bison/annotations", "bison/prompt", "nlvr2/annotations", "nlvr2/prompt"),
        "sparkles_eval/annotations",
    }
    assert all(len(value) == 64 for value in hashes.values())


def test_the_checkpoint_is_small_and_holds_no_frozen_weights(trained: Path) -> None:
    path = trained / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 3
    assert checkpoint["state_dict"].keys() == {
        "model.projector.layers.0.weight",
        "model.projector.layers.0.bias",
    }
    assert checkpoint["frozen_hashes"].keys() == {"vision", "qformer", "language"}
    weights = sum(tensor.nbytes for tensor in checkpoint["state_dict"].values())
    assert path.stat().st_size < 3 * weights + 50_000  # AdamW keeps two numbers for each weight


def test_the_report_shows_the_pictures(trained: Path) -> None:
    assert "url(data:image/webp;base64," in (trained / "report.html").read_text(encoding="utf-8")


def test_the_terminal_shows_mixture_and_results_and_nothing_twice(demo: tuple[Path, str]) -> None:
    _, output = demo
    assert "training mixture, drawn per sample, seed 0" in output
    assert "cc_turn2" in output
    assert "loss on bold green" in output
    assert "SparklesChat:\n  BISON" in output
    assert f"{demo[0]}/minigpt4/report.html" in output.replace("\n", "")
    assert output.count("GPU available") == 3  # once in each run
    for noise in ("litlogger", "LeafSpec", "in eval mode", "is not empty"):
        assert noise not in output
    assert logging.getLogger("lightning").handlers == []


def test_blank_images_are_another_responder(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    seeing, blank = predictions(folder / "sparkleschat"), predictions(folder / "blanked")
    for name in seeing:
        pairs = zip(seeing[name], blank[name], strict=True)
        assert all(a["item_id"] == b["item_id"] and a["key"] != b["key"] for a, b in pairs)


def test_the_baseline_is_measured_without_training(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    assert not (folder / "minigpt4/checkpoints").exists()
    assert metrics(folder / "minigpt4").keys() == metrics(folder / "sparkleschat").keys()


def test_a_checkpoint_measured_again_gives_the_same_predictions(
    trained: Path, overrides: list[str], run_main: RunMain, tmp_path: Path
) -> None:
    run_main(
        eval_main, f"checkpoint={trained}/checkpoints/last.ckpt", f"run_dir={tmp_path / 'again'}", *overrides
    )
    assert predictions(tmp_path / "again") == predictions(trained)
    assert metrics(tmp_path / "again") == metrics(trained)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    trained: Path,
    overrides: list[str],
    run_main: RunMain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resumable = [*overrides, "callbacks=[checkpoint]", "callbacks.checkpoint.every_n_train_steps=1"]
    resumable.remove("+callbacks.benchmarks.progress=false")
    resumable.remove("callbacks.benchmarks.generation.max_new_tokens=24")
    learn = SparklesModule.training_step

    def learn_until_the_power_fails(self: SparklesModule, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == 2:
            raise RuntimeError("power cut")
        return learn(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SparklesModule, "training_step", learn_until_the_power_fails)
        with pytest.raises(SystemExit):
            run_main(train.main, f"run_dir={tmp_path}", *resumable)
    assert "RuntimeError: power cut" in capsys.readouterr().err
    assert any(
        not torch.equal(projection(tmp_path)[name], projection(trained)[name]) for name in projection(trained)
    )

    run_main(train.main, f"run_dir={tmp_path}", f"resume_from={tmp_path}/checkpoints/last.ckpt", *resumable)
    torch.testing.assert_close(projection(tmp_path), projection(trained), rtol=0, atol=0)


def test_the_last_checkpoint_is_of_the_last_step(trained: Path, demo: tuple[Path, str]) -> None:
    config = OmegaConf.load(trained / "config.yaml")
    assert config.data.steps % config.callbacks.checkpoint.every_n_train_steps != 0
    assert (
        torch.load(trained / "checkpoints/last.ckpt", weights_only=True)["global_step"] == config.data.steps
    )


def test_an_mlp_is_a_matter_of_configuration(overrides: list[str], run_main: RunMain, tmp_path: Path) -> None:
    mlp = ["checkpoint=null", "model.projector.hidden_features=[32]"]
    run_main(train.main, f"run_dir={tmp_path}", *mlp, *overrides, "benchmark=[bison]")
    shapes = {name: tuple(tensor.shape) for name, tensor in projection(tmp_path).items()}
    assert shapes == {
        "model.projector.layers.0.weight": (32, 96),
        "model.projector.layers.0.bias": (32,),
        "model.projector.layers.2.weight": (128, 32),
        "model.projector.layers.2.bias": (128,),
    }
    assert "bison/accuracy" in metrics(tmp_path)


@pytest.mark.parametrize(
    ("experiment", "subsets"),
    [
        ("stage1", {"captions"}),
        ("minigpt4_star", {"descriptions", "captions"}),
        ("descriptions", {"descriptions"}),
        ("reasoning", {"reasoning"}),
    ],
)
def test_a_baseline_trains_on_its_own_data(
    experiment: str, subsets: set[str], overrides: list[str], run_main: RunMain, tmp_path: Path
) -> None:
    once = ["+trainer.fast_dev_run=true", "benchmark=[bison]"]
    run_main(train.main, f"experiment={experiment}", f"run_dir={tmp_path}", *overrides, *once)
    environment = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))
    data = {key.split("/")[1] for key in environment["hashes"] if key.startswith("data/")}
    assert data == {*subsets, "validation"}
    assert "bison/accuracy" in metrics(tmp_path)


@pytest.mark.slow
def test_two_processes_measure_the_same_as_one(trained: Path, overrides: list[str], tmp_path: Path) -> None:
    command = [
        *(sys.executable, "train.py", f"run_dir={tmp_path}", *overrides),
        *("fit=false", f"checkpoint={trained}/checkpoints/last.ckpt"),
        *("trainer.devices=2", "trainer.strategy=ddp"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # In a session of its own: where one process fails, Lightning ends the whole group.
    subprocess.run(
        command, cwd=Path(train.__file__).parent, env=environment, check=True, start_new_session=True
    )
    assert predictions(tmp_path) == predictions(trained)
    assert metrics(tmp_path) == metrics(trained)


def test_help_is_answered_before_torch_is_loaded() -> None:
    program = (
        "import sys, train; sys.argv = ['train.py', '--help']; train.main(); sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(train.__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python train.py experiment=minigpt4" in result.stdout
    assert "experiment: blanked, descriptions, descriptions_7b, minigpt4" in result.stdout
