"""The two figures that all others are held against."""

import json

import floor
import pytest
import torch


def test_both_are_told_and_returned_in_the_same_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(floor, "_SIDES", {"cpu": 64})
    monkeypatch.setattr(floor, "_COPIED_BYTES", {"cpu": 2**20})
    cpu = torch.device("cpu")
    flops, speed = floor.matrix_product(cpu, 0.01), floor.copy(cpu, 0.01)
    product, copied = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (product["unit"], copied["unit"]) == ("TFLOP/s", "GB/s")
    assert product["figure"] == pytest.approx(flops / 1e12, abs=1e-3)
    assert copied["figure"] == pytest.approx(speed / 1e9, abs=0.1)
    assert product["config"] == "matrix product 64 x 64 x 64, float32"
