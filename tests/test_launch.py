"""What a run does around its training."""

from pathlib import Path

import pytest

from sparkles.launch import _tracking_ends


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
