"""Every test runs offline and on one thread per process."""

import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}

import pytest
import torch

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
def golden_dir() -> Path:
    """Numbers recorded from the original code; SPARKLES_GOLDEN_DIR names another place for them."""
    return _existing(Path(os.environ.get("SPARKLES_GOLDEN_DIR", SHARED_DIR / "golden")))


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder
