"""GPUs are leased by who needs them: one process each, with the memory free."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

from sparkles.tables import leases
from sparkles.tables.leases import Gpu, hold_gpu, lease, visible_gpus
from sparkles.types import InputError

SMALL, LARGE = Gpu(name="GPU-small", free=10, total=16), Gpu(name="GPU-large", free=70, total=80)


def leased(folder: Path, gigabytes: float, gpus: Sequence[Gpu], per_gpu: int = 1) -> tuple[str, FileLock]:
    found = lease(gigabytes, per_gpu=per_gpu, inventory=lambda: gpus, folder=folder, seconds=0.01)
    assert found is not None
    return found[0].name, found[1]


def test_each_lease_is_of_another_gpu_the_freest_first(tmp_path: Path) -> None:
    first, held = leased(tmp_path, 4, [SMALL, LARGE])
    second, _ = leased(tmp_path, 4, [SMALL, LARGE])
    assert (first, second) == ("GPU-large", "GPU-small")
    held.release()
    assert leased(tmp_path, 4, [SMALL, LARGE])[0] == "GPU-large"


def test_runs_share_a_gpu_as_far_as_they_fit_into_it(tmp_path: Path) -> None:
    held = [leased(tmp_path, 30, [LARGE], per_gpu=4) for _ in range(2)]
    asked = []

    def inventory() -> list[Gpu]:
        asked.append(1)
        if len(asked) == 3:
            held.pop()[1].release()
        return [LARGE]

    assert lease(30, per_gpu=4, inventory=inventory, folder=tmp_path, seconds=0.01) is not None
    assert len(asked) == 3


def test_a_gpu_whose_memory_others_use_is_waited_for(tmp_path: Path) -> None:
    states = iter([[Gpu(name="GPU-0", free=1, total=16)], [Gpu(name="GPU-0", free=15, total=16)]])
    found = lease(12, inventory=lambda: next(states), folder=tmp_path, seconds=0.01)
    assert found is not None
    assert next(states, None) is None


def test_a_run_that_is_too_large_for_every_gpu_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to have 100 GiB of GPU memory, and the largest GPU here has 80"):
        lease(100, inventory=lambda: [SMALL, LARGE], folder=tmp_path)


def test_where_there_are_no_gpus_there_is_nothing_to_lease(tmp_path: Path) -> None:
    assert lease(4, inventory=lambda: [], folder=tmp_path) is None


def test_a_process_holds_one_gpu_and_sees_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(leases, "_held", [])
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    for _ in range(2):
        hold_gpu(4, inventory=lambda: [SMALL, LARGE])
    assert len(leases._held) == 1
    assert leases.os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-large"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["GPU-a1", "GPU-b2"]), ("1", ["GPU-b2"]), ("GPU-a", ["GPU-a1"]), ("", []), ("MIG-a1", [])],
)
def test_visible_gpus_are_those_that_the_environment_leaves(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
) -> None:
    said = "0, GPU-a1, 1024, 16384\n1, GPU-b2, 2048, 16384\n"
    monkeypatch.setattr("shutil.which", lambda _: "nvidia-smi")
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], returncode=0, stdout=said, stderr=""),
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = visible_gpus()
    assert [gpu.name for gpu in found] == expected
    assert all(gpu.total == 16 and gpu.free in (1, 2) for gpu in found)


def test_a_broken_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "nvidia-smi")
    broken = subprocess.CompletedProcess([], returncode=9, stdout="Driver mismatch", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    with pytest.raises(InputError, match="nvidia-smi cannot say which GPUs there are: Driver mismatch"):
        visible_gpus()
