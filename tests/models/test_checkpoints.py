from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sparkles.models.checkpoints import (
    CheckpointError,
    load_part,
    load_projection,
    save_projection,
    state_hash,
)
from sparkles.models.sparkles_chat import SparklesChat

MakeModel = Callable[..., SparklesChat]


def assert_same_projection(one: SparklesChat, other: SparklesChat) -> None:
    torch.testing.assert_close(one.projector.state_dict(), other.projector.state_dict(), rtol=0, atol=0)


def test_hash_sees_values_names_and_dtypes_only() -> None:
    layer, changed, renamed = nn.Linear(2, 2), nn.Linear(2, 2), nn.Module()
    changed.load_state_dict({"bias": layer.bias.data, "weight": layer.weight.data})
    assert state_hash(layer) == state_hash(changed)
    changed.bias.data[0] += 1e-6
    renamed.weight, renamed.shift = layer.weight, layer.bias
    hashes = {state_hash(module) for module in (layer, changed, renamed)}
    assert len(hashes | {state_hash(layer.bfloat16())}) == 4


def test_hash_is_of_the_values_whatever_the_memory_layout() -> None:
    layer = nn.Linear(3, 2)
    before = state_hash(layer)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    assert state_hash(layer) == before


def test_saved_projection_comes_back_with_its_metadata(make_model: MakeModel, tmp_path: Path) -> None:
    trained, other = make_model(seed=0), make_model(seed=1)
    path = tmp_path / "new" / "projection.safetensors"
    save_projection(trained, path, {"run": "table2"})
    load_projection(other, path)
    assert_same_projection(trained, other)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"run": "table2"}
        assert set(file.keys()) == {"projector.layers.0.weight", "projector.layers.0.bias"}


def test_projection_of_the_original_is_read(make_model: MakeModel, tmp_path: Path) -> None:
    trained, other = make_model(seed=0), make_model(seed=1)
    linear = trained.projector.layers[0].state_dict(prefix="llama_proj.")
    torch.save({"model": linear, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "original.pth")
    load_projection(other, tmp_path / "original.pth")
    assert_same_projection(trained, other)


def test_one_error_lists_everything_that_does_not_fit(make_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "projection.safetensors"
    save_file({"projector.layers.0.weight": torch.zeros(32, 99), "projector.scale": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_projection(make_model(), path)
    message = str(caught.value)
    assert str(path) in message
    assert "missing: layers.0.bias (32,)" in message
    assert "unexpected: scale (1,)" in message
    assert "shape of layers.0.weight: got (32, 99), expected (32, 16)" in message


def test_long_list_of_problems_is_cut(make_model: MakeModel, tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "part.safetensors"
    save_file({"other": torch.zeros(1)}, path)
    problems = len(model.vision.state_dict()) + 1
    with pytest.raises(CheckpointError, match=rf"does not fit VisionEncoder(?s:.*)and {problems - 8} more"):
        load_part(model.vision, path)


def test_missing_file_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file; expected weights as"):
        load_projection(make_model(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_broken_file_is_named(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match=rf"{name}: not readable as weights"):
        load_projection(make_model(), tmp_path / name)


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (Path.touch, (Path("ran"),))  # type: ignore[return-value]


def test_checkpoint_cannot_run_code(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": RunsCode()}, "evil.pth")
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_projection(make_model(), "evil.pth")
    assert not Path("ran").exists()
