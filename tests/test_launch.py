"""What a run does around its training."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from sparkles.data.features import FeatureCache
from sparkles.data.files import _umask
from sparkles.launch import RunRecord, WholeCheckpoints, _keep_features, _tracking_ends


def test_each_run_of_a_process_is_one_of_wandb_offline_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs sparkles[wandb]")
    from lightning.pytorch.loggers import WandbLogger

    def track(row: str) -> None:
        tracker = WandbLogger(save_dir=tmp_path, project="sparkles", group="table4", name=row)
        tracker.log_metrics({"bison/accuracy": 0.5})
        begun.append((wandb.run.group, wandb.run.name))

    def fail(row: str) -> None:
        with _tracking_ends():
            track(row)
            raise RuntimeError("a bug")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    begun: list[tuple[str, str]] = []
    with _tracking_ends():
        track("cc_only")
    with pytest.raises(RuntimeError, match="a bug"):
        fail("broken")
    with _tracking_ends():
        track("vg_only")
    assert begun == [("table4", "cc_only"), ("table4", "broken"), ("table4", "vg_only")]
    assert wandb.run is None
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 3


def test_what_is_set_aside_never_meets_what_was_before(tmp_path: Path) -> None:
    record = RunRecord(OmegaConf.create(), tmp_path)

    def set_aside(content: str) -> None:
        (tmp_path / "metrics.json").write_text(content)
        record._set_aside("metrics.json")

    set_aside("first")
    set_aside("second")
    shutil.rmtree(tmp_path / "superseded/1")  # to save space
    set_aside("third")
    found = {path.parent.name: path.read_text() for path in tmp_path.glob("superseded/*/metrics.json")}
    assert found == {"2": "second", "3": "third"}


def test_kept_features_are_of_one_way_to_compute_them(tmp_path: Path) -> None:
    class Module:
        encoder_hash = "abc"
        model = SimpleNamespace(qformer=SimpleNamespace(num_query_tokens=2, hidden_size=4))

    class Data:
        def use_features(self, cache: FeatureCache) -> None:
            keys.append(cache.key("a picture"))

    keys: list[bytes] = []
    plain: dict[str, Any] = {
        "model": {"vision": {"num_heads": 4, "checkpoint": "a.safetensors"}, "qformer": {"hidden_size": 4}},
        "trainer": {"precision": "32-true"},
    }
    for key, value in (
        ("trainer.devices", 1),
        ("model.vision.checkpoint", "elsewhere/a.safetensors"),
        ("model.vision.num_heads", 2),
        ("trainer.precision", "bf16-mixed"),
    ):
        cfg = OmegaConf.create(plain)
        OmegaConf.update(cfg, key, value)
        _keep_features(cfg, Module(), Data(), tmp_path)  # type: ignore[arg-type]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    write = WholeCheckpoints()
    write.save_checkpoint({"step": 1}, path)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fdopen", full)
        with pytest.raises(OSError, match="no space left"):
            write.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
