"""Every test runs offline and on one thread per process."""

import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}

import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from unittest import mock

import pytest
import torch

from sparkles.nano.dataset import Sizes, ensure

torch.set_num_threads(1)
SHARED_DIR = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of recorded numbers and real data beside the repository."""
    return _existing(SHARED_DIR)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Numbers recorded from the original code; SPARKLES_GOLDEN_DIR names another place for them."""
    return _existing(Path(os.environ.get("SPARKLES_GOLDEN_DIR", SHARED_DIR / "golden")))


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets of the scenes world, as small as they can be. Not to be changed."""
    return ensure(tmp_path_factory.mktemp("data") / "scenes", sizes=TINY_SIZES)


TINY_SIZES = Sizes(
    cc_dialogues=6,
    vg_dialogues=6,
    single_images=4,
    captions=4,
    validation_dialogues=3,
    benchmark_items=4,
)


@pytest.fixture(scope="session")
def tiny_run() -> list[str]:
    """Overrides that make a run of train.py a matter of seconds. `data_root` and `run_dir` are still to be given."""
    return [
        "+data.prepare.sizes._target_=sparkles.nano.dataset.Sizes",
        *(f"+data.prepare.sizes.{name}={value}" for name, value in asdict(TINY_SIZES).items()),
        "data.steps=3",
        "data.batch_size=4",
        "module.scheduler.warmup_steps=1",
        "trainer.accelerator=cpu",
        "callbacks=[checkpoint,benchmarks]",
        "+callbacks.benchmarks.progress=false",
        "callbacks.benchmarks.generation.max_new_tokens=24",
        "benchmark.num=4",
    ]


@pytest.fixture(scope="session")
def run_main() -> Callable[..., None]:
    """Runs the `main` of a command in this process as its command line would, and undoes what it sets up."""

    def run(main: Callable[[], None], *arguments: str) -> None:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            with mock.patch.object(sys, "argv", ["train.py", *arguments]), mock.patch.dict(os.environ):
                main()
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)
            torch.use_deterministic_algorithms(False)

    return run
