"""Files of weights: reading them without running code, comparing them with the module they are for, hashing them."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sparkles.types import InputError

_SHOWN = 8
"""Problems spelled out in one error; a wrong vision encoder would otherwise list hundreds of keys."""


class CheckpointError(InputError):
    """A file of weights is missing, unreadable, or does not fit the model that is to use it."""


def state_hash(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of the module's state, whatever its device or key order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Seen as bytes because numpy, which hands the memory over without a copy, knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_part(module: nn.Module, path: str | Path) -> None:
    """Fill `module` from a safetensors or torch file that holds exactly its weights.

    Raises:
        CheckpointError: the file cannot be read, or any key is missing, unexpected or of another shape.
    """
    tensors = read_tensors(path)
    check_fit(tensors, module.state_dict(), f"{path} does not fit {type(module).__name__}")
    module.load_state_dict(tensors)


def check_fit(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], complaint: str
) -> None:
    """Raise one CheckpointError that lists every missing, unexpected and misshaped tensor."""
    problems = [
        *(f"missing: {name} {tuple(expected[name].shape)}" for name in expected if name not in tensors),
        *(f"unexpected: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected),
        *(
            f"shape of {name}: got {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
            for name in expected
            if name in tensors and tensors[name].shape != expected[name].shape
        ),
    ]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        advice = "check the path, and that the model's configuration is the one that the file was made with"
        raise CheckpointError("\n  ".join([f"{complaint}:", *problems[:_SHOWN], *more, advice]))


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name; those of a run's or of the original's checkpoint lie one level down."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights as .safetensors, .ckpt, .pth or .pt")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not readable as weights ({error}); "
            "expected a safetensors file, or a torch file that holds tensors and plain values only"
        ) from error
    content = content.get("state_dict", content.get("model", content))
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
