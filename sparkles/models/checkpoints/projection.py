"""The only part that is trained, on disk: written alone, read from whatever holds it."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from sparkles.models.checkpoints.files import check_fit, read_tensors


def save_projection(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write `model.projector` alone as safetensors; `metadata` (hashes, run) becomes its header."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = model.get_submodule("projector").state_dict(prefix="projector.")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, dict(metadata))


def load_projection(model: nn.Module, path: str | Path) -> None:
    """Fill `model.projector` from a file of `save_projection`, a run's `.ckpt`, or the original's `.pth`.

    The frozen parts are not compared: this is how stage 1 hands over to stage 2. Resuming a run goes through
    Lightning and `SparklesModule.on_load_checkpoint`, which compares their hashes.

    Raises:
        CheckpointError: the file cannot be read, holds no projection, or one of another shape.
    """
    tensors = {}
    for name, tensor in read_tensors(path).items():
        name = name.removeprefix("model.").replace("llama_proj.", "projector.layers.0.")
        if name.startswith("projector."):
            tensors[name.removeprefix("projector.")] = tensor
    projector = model.get_submodule("projector")
    check_fit(tensors, projector.state_dict(), f"{path} does not hold this model's projection")
    projector.load_state_dict(tensors)
