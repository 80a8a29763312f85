"""The device that a benchmark runs on: its name, its clock and its memory."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from _line import processor


def device_name(device: torch.device) -> str:
    """As results are filed under it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


@contextmanager
def timed(device: torch.device) -> Iterator[list[float]]:
    """A list that holds, afterwards, the seconds until the device had done what was asked of it within."""
    took: list[float] = []
    start = time.perf_counter()
    yield took
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    took.append(time.perf_counter() - start)


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_megabytes(device: torch.device) -> int | None:
    """Of the device's memory that torch held; None on a processor."""
    return round(torch.cuda.max_memory_allocated(device) / 1e6) if device.type == "cuda" else None
