"""How a benchmark tells a figure: as one line of JSON, with all that is needed to judge it and to measure it again."""

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers")


def print_line(what: str, config: str, **told: Any) -> None:
    """`told` is the figure, its unit, and whatever else belongs to it; `device` where it is not the processor."""
    script = Path(sys.argv[0]).name
    line = {
        "what": what,
        "config": config,
        "device": processor(),
        **told,
        "versions": _versions(),
        "date": date.today().isoformat(),
        "script": script,
        "command": shlex.join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
    }
    print(json.dumps(line), flush=True)


def speed(times: Sequence[float], slowest: float, *, amount: float, unit: str) -> dict[str, Any]:
    """The figure of repeated measurements.

    Args:
        times: seconds that each repetition took.
        slowest: median seconds of the way that all are compared with.
        amount: how much of `unit` a repetition does.
    """
    median = statistics.median(times)
    return {
        "figure": round(amount / median, 1),
        "unit": f"{unit}/s",
        "ratio": round(slowest / median, 2),
        "spread_s": [round(min(times), 3), round(max(times), 3)],
    }


def processor() -> str:
    """The name of this machine's processor, and how many of its cores this process may use."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, "") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a machine that has only what one of the scripts needs
            continue
    return found
