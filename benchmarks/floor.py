"""What this device gives at best: a matrix product, and a copy. Other figures are held against these two.

    python benchmarks/floor.py [threads=2] [seconds=2]

Each line of output is a JSON object. On a CUDA device the product is of bfloat16 matrices, otherwise of float32.
"""

import sys

import torch
from _device import device_name
from _line import print_line
from torch.utils.benchmark import Timer

_SIDES = {"cuda": 8_192, "cpu": 2_048}
_COPIED_BYTES = {"cuda": 2**32, "cpu": 2**28}


def matrix_product(device: torch.device, seconds: float = 2.0) -> float:
    """Prints and returns the FLOP/s of a square product of random numbers, by the median of `seconds` of them."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    side = _SIDES[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * side**3 / _median_seconds(torch.mm, seconds, left, right)
    print_line(
        "floor",
        f"matrix product {side} x {side} x {side}, {str(dtype).removeprefix('torch.')}",
        figure=round(flops / 1e12, 3),
        unit="TFLOP/s",
        device=device_name(device),
    )
    return flops


def copy(device: torch.device, seconds: float = 2.0) -> float:
    """Prints and returns the bytes per second, read and written together, of a copy within the device's memory."""
    source = torch.randn(_COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    speed = 2 * source.nbytes / _median_seconds(target.copy_, seconds, source)
    print_line(
        "floor",
        f"copy of {source.nbytes / 2**20:,.0f} MiB, bytes read and written",
        figure=round(speed / 1e9, 1),
        unit="GB/s",
        device=device_name(device),
    )
    return speed


def _median_seconds(function: object, seconds: float, *arguments: torch.Tensor) -> float:
    timer = Timer(
        "function(*arguments)",
        globals={"function": function, "arguments": arguments},
        num_threads=torch.get_num_threads(),
    )
    return timer.blocked_autorange(min_run_time=seconds).median  # it waits for the device


def measure(threads: int = 2, seconds: float = 2.0) -> None:
    """Time both.

    Args:
        threads: of torch, where the processor is the device.
        seconds: that each is repeated for.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    matrix_product(device, seconds)
    copy(device, seconds)


if __name__ == "__main__":
    from sparkles.config import call  # needs Hydra, which the functions above do without

    call("floor.py", measure, sys.argv[1:])
