"""A user's mistake ends a command with what, where, expected and the next step; no traceback, nothing lost."""

import json
import shutil
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import train
from sparkles.eval.__main__ import main as eval_main
from sparkles.models.lightning_module import SparklesModule

VG_TURN2 = "SparklesDialogueVG/annotations/SparklesDialogueVG_turn2_3img.json"
BISON = "evaluation/BISON/annotations/sparkles_evaluation_bison_annotations.json"
RATIOS = [f"data.subsets.{source}_turn{turn}.ratio" for source in ("cc", "vg") for turn in (1, 2)]

Fail = Callable[..., str]


@pytest.fixture
def world(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of the data that may be spoilt."""
    return Path(shutil.copytree(tiny_world, tmp_path / "scenes"))


@pytest.fixture
def fail(
    run_main: Callable[..., None],
    tiny_run: list[str],
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Fail:
    """Runs a command that has to fail; what it says on standard error."""

    def run(*arguments: str, main: Callable[[], None] = train.main) -> str:
        with pytest.raises(SystemExit) as exit_:
            run_main(main, *tiny_run, f"data_root={world}", f"run_dir={tmp_path / 'run'}", *arguments)
        said = capsys.readouterr().err
        assert exit_.value.code == 1
        assert "Traceback" not in said
        return said

    return run


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Spoil the first record."""
    records = json.loads(path.read_text(encoding="utf-8"))
    change(records[0])
    path.write_text(json.dumps(records), encoding="utf-8")


def test_a_missing_annotation_file(fail: Fail, world: Path) -> None:
    said = fail("data.subsets.cc_turn2.annotations=nowhere.json", "data.subsets.vg_turn2.images=no/where")
    assert "subset 'cc_turn2': no annotation file nowhere.json" in said
    assert "subset 'vg_turn2': no image folder no/where" in said
    assert "make the data first, or correct data.subsets.<name>" in said


def test_a_missing_column(fail: Fail, world: Path) -> None:
    edit(world / VG_TURN2, lambda record: record.pop("answer"))
    said = fail()
    assert (
        f"{world / VG_TURN2}, record 0: no 'fix_answer' or 'answer'; the record has 'uniform_question'"
        in said
    )


def test_more_images_than_tags(fail: Fail, world: Path) -> None:
    edit(world / VG_TURN2, lambda record: record["tgt_imgs"].append(record["tgt_imgs"][0]))
    said = fail()
    assert f"{world / VG_TURN2}, record 0: prompt: 3 image tags in the text but 4 images" in said
    assert "expected one <Img><ImageHere></Img> for each image, in order" in said


def test_a_missing_image(fail: Fail, world: Path) -> None:
    image_id = json.loads((world / VG_TURN2).read_text(encoding="utf-8"))[0]["tgt_imgs"][0]["image_id"]
    (world / f"SparklesDialogueVG/images/{image_id}.png").unlink()
    said = fail()
    assert (
        f"{world / VG_TURN2}, record 0: image {image_id} not found in {world}/SparklesDialogueVG/images"
        in said
    )
    assert (
        f"tried {image_id}.jpg, {image_id}.png, {image_id}.jpeg: add the file or correct the folder" in said
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image(fail: Fail, world: Path, num_workers: int) -> None:
    for path in (world / "validation/images").iterdir():
        path.write_text("no picture")
    said = fail(f"data.num_workers={num_workers}")
    assert f"cannot read {world}/validation/images/" in said
    assert (
        "expected a picture that Pillow opens: replace the file, or leave out the records that show it"
        in said
    )
    assert "in sample 0 of subset 'validation'" in said


def test_an_empty_mixture(fail: Fail) -> None:
    said = fail(*(f"{ratio}=0" for ratio in RATIOS))
    assert "the mixture is empty: none of cc_turn1, cc_turn2, vg_turn1, vg_turn2 has a ratio above 0" in said
    assert "set data.subsets.<name>.ratio" in said


def test_a_ratio_below_zero(fail: Fail) -> None:
    said = fail("data.subsets.cc_turn1.ratio=-1")
    assert "ratio of subset 'cc_turn1': expected 0 (leaves it out) or more, got -1" in said
    assert "set data.subsets.cc_turn1.ratio" in said


def test_an_unknown_override(fail: Fail) -> None:
    said = fail("data.batchsize=3")
    assert "unknown override 'data.batchsize'" in said
    assert "did you mean data.batch_size" in said


def test_a_value_of_the_wrong_type(fail: Fail) -> None:
    assert "data.batch_size: expected int, got 'many'" in fail("data.batch_size=many")


def test_a_warm_up_longer_than_the_run(fail: Fail) -> None:
    said = fail("module.scheduler.warmup_steps=40")
    assert "the learning rate warms up for 40 of 3 steps" in said
    assert "set module.scheduler.warmup_steps, or train longer with data.steps" in said


def test_a_missing_checkpoint(fail: Fail) -> None:
    said = fail("checkpoint=no/last.ckpt", main=eval_main)
    assert "no/last.ckpt: no such file; expected weights as .safetensors, .ckpt, .pth" in said


def test_a_missing_run_to_resume(fail: Fail) -> None:
    assert "no/last.ckpt" in fail("resume_from=no/last.ckpt")


def test_a_benchmark_without_its_files_is_noticed_before_the_training(
    fail: Fail, world: Path, tmp_path: Path
) -> None:
    (world / BISON).unlink()
    assert f"{world / BISON}: no such file; expected records with" in fail()
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_benchmark_with_a_wrong_column(fail: Fail, world: Path) -> None:
    edit(world / BISON, lambda record: record.pop("caption"))
    assert f"{world / BISON}, record 0: no caption, and caption_id None is not among" in fail()


def test_more_items_than_there_are(fail: Fail) -> None:
    assert "cannot draw num=5 items from the 4 of" in fail("benchmark.num=5")


def test_a_setting_without_a_default(fail: Fail) -> None:
    said = fail("benchmark=nlvr", main=eval_main)
    assert "benchmark.root: no value yet; set benchmark.root=..." in said


def test_a_folder_of_something_else_is_not_overwritten(fail: Fail, world: Path) -> None:
    (world / "scenes.json").unlink()
    assert f"{world} was not written by the scenes world" in fail()
    assert (world / VG_TURN2).is_file()


def stop_at_the_second_step(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = SparklesModule.training_step

    def learn_once(self: SparklesModule, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise error
        return learn(self, batch, batch_idx)

    monkeypatch.setattr(SparklesModule, "training_step", learn_once)


def test_a_bug_keeps_its_traceback(
    run_main: Callable[..., None],
    tiny_run: list[str],
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(SparklesModule, "__init__", broken)  # where `instantiate` would hide it
    with pytest.raises(SystemExit):
        run_main(train.main, *tiny_run, f"data_root={world}", f"run_dir={tmp_path / 'run'}")
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "in broken" in said
    assert "IndexError: list index out of range" in said


def test_ctrl_c_ends_with_one_line(
    run_main: Callable[..., None],
    tiny_run: list[str],
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_at_the_second_step(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        run_main(train.main, *tiny_run, f"data_root={world}", f"run_dir={tmp_path / 'run'}")
    assert str(exit_.value.code).strip() == "stopped; what was finished is in the run directory"
    assert "Traceback" not in capsys.readouterr().err


def test_sigterm_ends_like_ctrl_c(
    run_main: Callable[..., None],
    tiny_run: list[str],
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn = SparklesModule.training_step

    def terminated(self: SparklesModule, batch: Any, batch_idx: int) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return learn(self, batch, batch_idx)

    monkeypatch.setattr(SparklesModule, "training_step", terminated)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        run_main(train.main, *tiny_run, f"data_root={world}", f"run_dir={tmp_path / 'run'}")
    assert str(exit_.value.code).strip() == "stopped; what was finished is in the run directory"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed=-1, expected at least 0"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches=0, expected 1 or more"),
        ("model.length_groups=0", "length_groups=0, expected 1 or more"),
        ("data.batch_size=0", "batch_size=0, expected 1 or more"),
    ],
)
def test_numbers_that_libraries_take_ill(fail: Fail, override: str, message: str) -> None:
    assert message in fail(override)


def test_without_samples_to_validate_on_nothing_is_trained(fail: Fail, tmp_path: Path) -> None:
    assert "nothing to validate on" in fail("+data.val_subsets.validation.ratio=0")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.fixture
def finished(
    run_main: Callable[..., None], tiny_run: list[str], world: Path, tmp_path: Path
) -> dict[Path, str]:
    """A run that ended well: its files with their hashes."""
    run_main(train.main, *tiny_run, f"data_root={world}", f"run_dir={tmp_path / 'run'}", "benchmark=[bison]")
    return hashes(tmp_path / "run")


def hashes(run_dir: Path) -> dict[Path, str]:
    """Of every result and record; logs and Hydra's own notes are not among them."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {
        path.relative_to(run_dir): sha256(path.read_bytes()).hexdigest()
        for path in files
        if ".hydra" not in path.parts
    }


def test_a_run_that_cannot_start_changes_nothing_of_the_run_before_it(
    finished: dict[Path, str], fail: Fail, world: Path, tmp_path: Path
) -> None:
    for arguments in (["data.subsets.vg_turn2.images=nowhere"], ["module.scheduler.warmup_steps=40"]):
        fail("seed=1", *arguments)
        assert hashes(tmp_path / "run").items() >= finished.items()


def test_a_run_that_fails_half_way_loses_nothing_of_the_run_before_it(
    finished: dict[Path, str], fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_the_second_step(OSError("no space left on device"), monkeypatch)
    assert "no space left on device" in fail("seed=1", "callbacks.checkpoint.every_n_train_steps=1")
    now = hashes(tmp_path / "run")
    for path, content in finished.items():
        assert content in (now.get(path), now.get("superseded/1" / path)), path
    assert finished[Path("metrics.json")] == now[Path("superseded/1/metrics.json")]


def test_measuring_more_in_a_finished_run_keeps_what_it_has(
    finished: dict[Path, str], run_main: Callable[..., None], tiny_run: list[str], world: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    checkpoint = f"checkpoint={run}/checkpoints/last.ckpt"
    run_main(eval_main, *tiny_run, f"data_root={world}", f"run_dir={run}", checkpoint, "benchmark=[nlvr2]")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    assert {"bison/accuracy", "nlvr2/accuracy"} <= metrics.keys()
    now = hashes(run)
    assert now[Path("superseded/1/config.yaml")] == finished[Path("config.yaml")]
    for path in ("checkpoints/last.ckpt", "predictions/bison.jsonl", "logs/version_0/metrics.csv"):
        assert now[Path(path)] == finished[Path(path)]
