import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from sparkles.models.schedule import linear_warmup_cosine, warmup_cosine


def rates(steps: int, *, lr: float = 3e-5, **options) -> list[float]:
    """The rate that each optimizer step is taken with."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = linear_warmup_cosine(optimizer, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


PAPER = {"min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_steps": 400, "total_steps": 2000}


# Not `warmup_longer_than_epoch` (the original warms up again in every epoch) nor `step_lr` (never used).
@pytest.mark.parametrize("name", ["paper", "no_warmup", "no_warmup_lr_given"])
def test_counted_from_start_gives_the_rates_of_the_original(golden: Path, name: str) -> None:
    recorded = json.loads((golden / "functions.json").read_text())["lr"][name]
    config = recorded["config"]
    per_epoch, total_steps = config["iters_per_epoch"], config["max_epoch"] * config["iters_per_epoch"]
    got = rates(
        total_steps,
        lr=config["init_lr"],
        min_lr=config["min_lr"],
        warmup_lr=config.get("warmup_start_lr", config["init_lr"]),
        warmup_steps=config.get("warmup_steps", 0),
        total_steps=total_steps,
        counted_from="start",
    )
    for value in recorded["values"]:
        step = value["epoch"] * per_epoch + value["step"]
        assert got[step] == pytest.approx(value["lr"], rel=1e-12), f"step {step}"


def test_default_reaches_the_peak_without_a_jump_and_ends_at_the_floor() -> None:
    got = rates(2001, **PAPER)
    assert got[0] == pytest.approx(1e-6)
    assert max(got) == got[400] == pytest.approx(3e-5)
    assert got[2000] == pytest.approx(1e-5)
    assert max(abs(after - before) for before, after in pairwise(got)) < 7.3e-8


def test_original_drops_where_the_warmup_ends() -> None:
    got = rates(401, **PAPER, counted_from="start")
    assert got[399] - got[400] > 1.8e-6


def test_rate_stays_at_the_floor_after_the_last_step() -> None:
    assert warmup_cosine(5000, peak_lr=3e-5, **PAPER) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 2000}, "warms up for 2000 of 2000 steps"),
        ({"counted_from": "end"}, "expected 'warmup_end' or 'start', got 'end'"),
    ],
)
def test_contradictory_schedule_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(1, **(PAPER | change))
