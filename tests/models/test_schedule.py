from itertools import pairwise

import pytest
import torch

from sparkles.models.schedule import linear_warmup_cosine


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


PAPER = {"min_lr": 1e-5, "warmup_lr": 1e-6, "warmup_steps": 400, "epoch_steps": 2000}


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
    assert rates(2500, **PAPER)[-1] == pytest.approx(1e-5)


def test_epochs_share_one_schedule() -> None:
    assert rates(2000, **PAPER | {"epoch_steps": 400}, epochs=5) == rates(2000, **PAPER)


def test_a_warmup_longer_than_an_epoch_goes_on_in_the_next() -> None:
    long = PAPER | {"warmup_steps": 8, "epoch_steps": 5}
    ours = rates(10, **long, epochs=4)
    assert ours[:9] == sorted(ours[:9])
    original = rates(10, **long, epochs=4, warmup_restarts=True)
    assert original[5] == original[0] == pytest.approx(1e-6)


def test_the_warmup_counts_optimizer_steps_however_many_batches_they_take() -> None:
    short = PAPER | {"warmup_steps": 8, "epoch_steps": 20}
    assert rates(9, **short)[8] == pytest.approx(3e-5)
    assert rates(4, **short, batches_per_step=2)[3] == rates(8, **short)[7]


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
