"""One GPU for each process of a sweep: leases by file locks, of GPUs that have the memory free.

The GPUs are asked for through `nvidia-smi`, since asking through CUDA would bind the process to one. A lease is a lock
on a file, which the operating system frees when its process ends, however that happens.
"""

import getpass
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback

from sparkles.types import InputError

logger = logging.getLogger(__name__)

_held: list[FileLock] = []
"""The lease of this process, which CUDA makes good for as long as it lives."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that this process may use."""

    name: str
    """As CUDA_VISIBLE_DEVICES takes it."""
    free: float
    """Memory in GiB that nobody uses now."""
    total: float
    """Memory in GiB."""


Inventory = Callable[[], Sequence[Gpu]]


def visible_gpus() -> list[Gpu]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves; none where there is no nvidia-smi.

    Raises:
        InputError: nvidia-smi fails.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total", "--format=csv,noheader,nounits"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise InputError(
            f"nvidia-smi cannot say which GPUs there are: {(asked.stderr or asked.stdout).strip()}"
        )
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if allowed is None else [name.strip() for name in allowed.split(",")]
    found = []
    for line in asked.stdout.splitlines():
        index, uuid, free, total = (field.strip() for field in line.split(","))
        if names is None or index in names or any(name and uuid.startswith(name) for name in names):
            found.append(Gpu(name=uuid, free=float(free) / 1024, total=float(total) / 1024))
    return found


def lease(
    gigabytes: float,
    *,
    per_gpu: int = 1,
    inventory: Inventory = visible_gpus,
    folder: Path | None = None,
    seconds: float = 10,
) -> tuple[Gpu, FileLock] | None:
    """Wait for a GPU with so much memory free, and lock it; None where there are no GPUs.

    Args:
        gigabytes: GiB that the run needs.
        per_gpu: runs that may share a GPU, as far as they fit into its memory together.
        folder: of the lock files; the same for all processes of a machine.
        seconds: between two looks.

    Raises:
        InputError: no GPU here is large enough.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"sparkles-gpus-{getpass.getuser()}"
    folder.mkdir(parents=True, exist_ok=True)
    said = False
    while True:
        gpus = sorted(inventory(), key=lambda gpu: -gpu.free)
        if not gpus:
            return None
        if all(gpu.total < gigabytes for gpu in gpus):
            raise InputError(
                f"a run is to have {gigabytes:g} GiB of GPU memory, and the largest GPU here has "
                f"{max(gpu.total for gpu in gpus):.0f}; set gpu_memory=... if it needs less"
            )
        for gpu in gpus:
            slots = min(per_gpu, int(gpu.total // gigabytes)) if gpu.free >= gigabytes else 0
            for slot in range(slots):
                lock = FileLock(folder / f"{gpu.name}.{slot}.lock", timeout=0)
                try:
                    lock.acquire()
                except Timeout:
                    continue
                return gpu, lock
        if not said:
            said = True
            logger.warning("waiting for a GPU with %g GiB free, among %d", gigabytes, len(gpus))
        time.sleep(seconds)


def hold_gpu(gigabytes: float, *, per_gpu: int = 1, inventory: Inventory = visible_gpus) -> None:
    """Lease a GPU for the rest of this process, and let CUDA see that one alone; a process holds only one."""
    if not _held and (leased := lease(gigabytes, per_gpu=per_gpu, inventory=inventory)) is not None:
        gpu, lock = leased
        _held.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu.name


class GpuForEachProcess(Callback):
    """The same for `python train.py -m`: see conf/hydra/callbacks/leases.yaml."""

    def __init__(self, *, gigabytes: float, per_gpu: int = 1) -> None:
        self.settings = {"gigabytes": gigabytes, "per_gpu": per_gpu}

    def on_job_start(self, config: Any, **_: Any) -> None:
        hold_gpu(**self.settings)  # type: ignore[arg-type]
