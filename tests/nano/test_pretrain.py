import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from sparkles.nano import pretrain
from sparkles.nano.muon import BatchedMuon
from sparkles.nano.pretrain import GateError, check_gate

STEPS = 7


def train(checkpoint: Path, *, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """A short training as a new process would start it; Ctrl-C arrives in step `stop_at`. Its final weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [BatchedMuon(matrices, lr=0.1), torch.optim.AdamW(others, lr=0.1)]
    # A DataLoader draws from the generator that the loss draws its noise from.
    batches = DataLoader(torch.linspace(-1, 1, 6 * STEPS).view(STEPS, 6), batch_size=1)
    calls = 0

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return (model(batch + 0.1 * torch.randn(batch.shape)) - batch.sum()).pow(2).mean()

    run(model, optimizers, batches, loss_of, checkpoint)
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batches: Iterable[Any],
    loss_of: Callable[..., torch.Tensor],
    checkpoint: Path,
) -> None:
    pretrain._train(
        "test", model, optimizers, batches, loss_of, steps=STEPS, constant_until=0.5, checkpoint=checkpoint
    )


@pytest.mark.parametrize("stop_at", [4, 5, 7])
def test_a_resumed_run_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(pretrain, "SAVE_EVERY", 3)
    unbroken = train(tmp_path / "unbroken.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken.pt", stop_at=stop_at)
    resumed = train(tmp_path / "broken.pt")
    assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.pt", "unbroken.pt"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    finished = train(tmp_path / "run.pt")
    again = train(tmp_path / "run.pt", stop_at=1)
    assert all(torch.equal(again[name], value) for name, value in finished.items())


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], Path]:
    """Hold the gate with these accuracies; the folder of the weights."""
    for name in ("AutoTokenizer", "load_language_model", "TextReference"):
        monkeypatch.setattr(pretrain, name, _Anything())

    def hold(accuracies: dict[str, float]) -> Path:
        monkeypatch.setattr(pretrain, "accuracy_by_kind", lambda reference, *, num, seed: accuracies)
        check_gate(OmegaConf.create({"seed": 0, "gate": {"num": 50, "required": 97.0}}), tmp_path)
        return tmp_path

    return hold


class _Anything:
    def __call__(self, *_: object) -> None: ...

    def from_pretrained(self, _: object) -> None: ...


def test_the_gate_lets_weights_pass_that_know_every_kind(gate: Callable[[dict[str, float]], Path]) -> None:
    record = json.loads((gate({"color": 97.0, "more": 100.0}) / "gate.json").read_text())
    assert record == {"num": 50, "accuracy": {"color": 97.0, "more": 100.0}}


def test_the_gate_names_the_kinds_that_are_not_known(gate: Callable[[dict[str, float]], Path]) -> None:
    with pytest.raises(GateError, match=r"shape, relation; train longer \(language.rounds\)"):
        gate({"color": 97.0, "shape": 96.9, "relation": 58.0})


# --- what the machine has


class _Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(5)


@pytest.mark.parametrize(("cores", "workers"), [(2, 0), (3, 1)])
def test_batches_are_made_by_another_process_only_on_a_core_of_its_own(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    batches = pretrain._batches(_Numbers(), threads=2)
    assert batches.num_workers == workers
    assert [*batches] == [*range(5)]


def test_without_a_compiler_weights_are_made_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain._working(None) is None
    assert pretrain._working("eager") == "eager"

    def compile(function: object, backend: str) -> object:
        raise RuntimeError("no C++ compiler\n(many lines)")

    monkeypatch.setattr("torch.compile", compile)
    assert pretrain._working("inductor") is None
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "language.compile_backend=inductor does not work here (RuntimeError: no C++ compiler); going on"
        in said
    )
