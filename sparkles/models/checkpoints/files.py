"""Files of weights: reading them without running code, comparing them with the module they are for, hashing them."""

import hashlib
import json
import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from sparkles.models.checkpoints.layouts import Layout
from sparkles.types import InputError

_SHOWN = 8
"""Problems of a kind spelled out in one error; a wrong vision encoder would otherwise list hundreds of keys."""
_IN_A_FOLDER = (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME)


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


def load_part(
    module: nn.Module,
    paths: str | Path | Sequence[str | Path],
    layouts: Sequence[Layout] = (),
    adapt: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> None:
    """Fill `module` with the weights of one file, or of several that hold them together.

    Args:
        paths: what `read_tensors` takes, once or several times.
        layouts: other people's names for the weights of this module; a file that has the sign of none of them
            must have ours.
        adapt: what is left to do to the tensors once they have our names.

    Raises:
        CheckpointError: a file cannot be read, two hold the same weights, or any key is missing, unexpected or of
            another shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    sources = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        found = read_tensors(path)
        layout = next((layout for layout in layouts if layout.is_that_of(found)), None)
        named = {name: found[key] for key in found if (name := layout.our_name(key) if layout else key)}
        sources.append(f"{path} (read as {layout.name})" if layout else str(path))
        if twice := named.keys() & tensors.keys():
            raise CheckpointError(
                f"{' and '.join(sources)}: both hold {min(twice)}; expected each weight in one of the files"
            )
        tensors |= named
    if adapt is not None:
        tensors = adapt(tensors)
    verb = "does" if len(sources) == 1 else "do"
    check_fit(tensors, module.state_dict(), f"{' and '.join(sources)} {verb} not fit {type(module).__name__}")
    module.load_state_dict(tensors)


def check_fit(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], complaint: str
) -> None:
    """Raise one CheckpointError that lists every missing, unexpected and misshaped tensor."""
    refuse(
        complaint,
        {
            "missing: ": [
                f"{name} {tuple(expected[name].shape)}" for name in expected if name not in tensors
            ],
            "unexpected: ": [
                f"{name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected
            ],
            "shape of ": [
                f"{name}: got {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
                for name in expected
                if name in tensors and tensors[name].shape != expected[name].shape
            ],
        },
    )


def refuse(complaint: str, problems: Mapping[str, Collection[str]]) -> None:
    """Raise one CheckpointError that lists the problems of each kind, if there is any."""
    lines = []
    for kind, found in problems.items():
        lines += [f"{kind}{problem}" for problem in islice(found, _SHOWN)]
        lines += [f"{kind}... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    if lines:
        advice = "check the path, and that the model's configuration is the one that the file was made with"
        raise CheckpointError("\n  ".join([f"{complaint}:", *lines, advice]))


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors by name of a file, of a folder as transformers saves it, or of the shards that an index lists.

    Those of a run's or of the original's checkpoint lie one level down. Safetensors are mapped, not read: what is
    never used costs no memory.

    Raises:
        CheckpointError: it does not exist, or holds anything but tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        path = next(
            (path / name for name in _IN_A_FOLDER if (path / name).is_file()), path / SAFE_WEIGHTS_NAME
        )
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; expected weights as .safetensors, .ckpt, .pth, .pt or .bin, their .index.json, "
            "or a folder with model.safetensors"
        )
    content = _read(path)
    if path.suffix == ".json":
        shards = [path.parent / name for name in sorted(set(content.get("weight_map", {}).values()))]
        return {name: tensor for shard in shards for name, tensor in read_tensors(shard).items()}
    content = content.get("state_dict", content.get("model", content))
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, nothing with names")
        return content
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as weights ({error}); "
            "expected a safetensors file, or a torch file that holds tensors and plain values only"
        ) from error
