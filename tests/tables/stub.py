"""What tests let a table do in place of a training: a moment's work, with the same files."""

import json
import zipfile
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sparkles.types import InputError

BROKEN = 13
"""So many steps are a mistake of the user's, one more a bug."""


def work(cfg: DictConfig) -> None:
    """Notes how it was called, and leaves a checkpoint and metrics."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    call = {"fit": cfg.fit, "checkpoint": cfg.checkpoint, "resume_from": cfg.resume_from, "seed": cfg.seed}
    with (run_dir / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(call) + "\n")
    print("hard at work")
    if cfg.data.steps == BROKEN:
        raise InputError("thirteen steps bring bad luck")
    if cfg.data.steps == BROKEN + 1:
        raise RuntimeError("a bug")
    if cfg.fit:
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        with zipfile.ZipFile(run_dir / "checkpoints/last.ckpt", "w") as checkpoint:
            checkpoint.writestr("weights", str(cfg.seed))
    (run_dir / "predictions").mkdir(exist_ok=True)
    (run_dir / "predictions/bison.jsonl").touch()
    (run_dir / "metrics.json").write_text('{"bison/accuracy": 0.5}')


def calls_of(run_dir: Path) -> list[dict[str, object]]:
    path = run_dir / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
