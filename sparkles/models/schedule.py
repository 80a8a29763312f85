"""The paper's learning rate: a linear warm-up, then a cosine down to a floor."""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sparkles.types import InputError

CountedFrom = Literal["warmup_end", "start"]


def warmup_cosine(
    step: int,
    *,
    peak_lr: float,
    min_lr: float,
    warmup_lr: float,
    warmup_steps: int,
    total_steps: int,
    counted_from: CountedFrom = "warmup_end",
    warmup_restart: int | None = None,
) -> float:
    """Learning rate of optimizer step `step`, the first being 0.

    Args:
        warmup_lr: of step 0, when there is a warm-up; it reaches `peak_lr` after `warmup_steps`.
        counted_from: where the cosine begins. `start` is the original's: its cosine runs from step 0 on, so
            the rate drops (3e-5 to 2.81e-5 in the paper's configuration) where the warm-up ends.
        warmup_restart: steps after which an unfinished warm-up falls back to `warmup_lr`; None: it never does.

    >>> rates = {"peak_lr": 3.0, "min_lr": 1.0, "warmup_lr": 0.0}
    >>> [round(warmup_cosine(step, **rates, warmup_steps=3, total_steps=7), 2) for step in range(8)]
    [0.0, 1.0, 2.0, 3.0, 2.71, 2.0, 1.29, 1.0]
    """
    if step < warmup_steps:
        warm = step % warmup_restart if warmup_restart else step
        return warmup_lr + (peak_lr - warmup_lr) * warm / warmup_steps
    begin = warmup_steps if counted_from == "warmup_end" else 0
    progress = min((step - begin) / (total_steps - begin), 1.0)
    return min_lr + (peak_lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


def linear_warmup_cosine(
    optimizer: Optimizer,
    *,
    min_lr: float,
    warmup_lr: float,
    warmup_steps: int,
    epoch_steps: int,
    epochs: int = 1,
    counted_from: CountedFrom = "warmup_end",
    warmup_restarts: bool = False,
    batches_per_step: int = 1,
) -> LambdaLR:
    """`warmup_cosine` over `epochs` of `epoch_steps` optimizer steps, with the optimizer's own rate as the peak.

    Args:
        counted_from: see `warmup_cosine`.
        warmup_restarts: the original's: a warm-up longer than an epoch begins again with each epoch.
        batches_per_step: the original's, for gradients accumulated over that many batches: `warmup_steps` and
            progress count batches, and a step takes the rate of its last batch.

    Raises:
        InputError: the warm-up takes all steps, or `counted_from` is unknown.
    """
    epoch_length = epoch_steps * batches_per_step
    total_steps = epoch_length * epochs
    if not 0 <= warmup_steps < total_steps:
        raise InputError(
            f"the learning rate warms up for {warmup_steps} of {total_steps} steps; expected fewer, from 0 up: "
            "set module.scheduler.warmup_steps, or train longer with data.steps"
        )
    if counted_from not in ("warmup_end", "start"):
        raise ValueError(f"counted_from: expected 'warmup_end' or 'start', got {counted_from!r}")
    peak_lr = optimizer.defaults["lr"]

    def factor(step: int) -> float:
        rate = warmup_cosine(
            (step + 1) * batches_per_step - 1,
            peak_lr=peak_lr,
            min_lr=min_lr,
            warmup_lr=warmup_lr,
            warmup_steps=warmup_steps,
            total_steps=total_steps,
            counted_from=counted_from,
            warmup_restart=epoch_length if warmup_restarts else None,
        )
        return rate / peak_lr

    return LambdaLR(optimizer, factor)
