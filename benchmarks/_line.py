"""How a benchmark tells a figure: as one line of JSON, with the machine that it was measured on."""

import json
import platform
import statistics
from collections.abc import Sequence
from typing import Any


def print_line(what: str, config: str, **told: Any) -> None:
    """`told` is the figure, its unit, and whatever else belongs to it."""
    device = platform.processor() or platform.machine()
    print(json.dumps({"what": what, "config": config, **told, "device": device}))


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
