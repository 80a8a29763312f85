"""What is trained, on disk: written alone with its origin, read from whatever holds it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparkles.models.checkpoints.files import check_fit, read_tensors
from sparkles.models.checkpoints.origin import Origin, check_origin

PROJECTION_FILE = "projection.safetensors"
"""In a folder of `save_pretrained`."""

_log = logging.getLogger(__name__)


class Projection(NamedTuple):
    """Trained weights by their names in the model, and what they belong to."""

    tensors: dict[str, Tensor]
    """`projector.layers.0.weight` float[D_lm, D_q] and so on; also those of other parts that were trained."""
    origin: Origin


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes, by name: the projector, and a resampler in the Q-Former's place."""
    return {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}


def read_projection(path: str | Path) -> Projection:
    """From our safetensors file or a folder that holds it, a run's `.ckpt`, or the original's `.pth`.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / PROJECTION_FILE
    tensors = {
        name.removeprefix("model.").replace("llama_proj.", "projector.layers.0."): tensor
        for name, tensor in read_tensors(path).items()
    }
    return Projection(tensors, _read_origin(path))


def save_projection(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write what is trainable in `model` as safetensors; `metadata` (see `Origin`) becomes its header."""
    write_safetensors(trainable_state(model), path, metadata)


def load_projection(
    model: nn.Module,
    path: str | Path,
    *,
    origin: Origin | None = None,
    allow_other_base_weights: bool = False,
    allow_other_prompt_format: bool = False,
) -> None:
    """Fill what is trainable in `model` from anything that `read_projection` reads.

    The original's files do not say what they were trained on: then nothing is compared, which the log says.

    Args:
        origin: the model's own, where it is known already; otherwise every frozen weight is read for it.
        allow_other_base_weights: take what was trained on other frozen weights, or with another tokenizer.
        allow_other_prompt_format: take what was trained with another prompt format.

    Raises:
        CheckpointError: the file cannot be read, does not hold exactly the weights that are trainable, or was
            trained with something else.
    """
    fill(
        model,
        read_projection(path),
        str(path),
        origin=origin,
        allow_other_base_weights=allow_other_base_weights,
        allow_other_prompt_format=allow_other_prompt_format,
    )


def fill(
    model: nn.Module,
    projection: Projection,
    where: str,
    *,
    origin: Origin | None = None,
    allow_other_base_weights: bool = False,
    allow_other_prompt_format: bool = False,
) -> None:
    """`load_projection` with what is read already; `where` names it in errors."""
    tensors, trained = projection
    check_fit(tensors, trainable_state(model), f"{where} does not hold this model's projection")
    if trained == Origin():
        _log.info("%s does not say which base weights it was trained on; nothing was compared", where)
    else:
        check_origin(
            trained,
            origin or Origin.of(model),
            where,
            allow_other_base_weights=allow_other_base_weights,
            allow_other_prompt_format=allow_other_prompt_format,
        )
    model.load_state_dict(tensors, strict=False)


def write_safetensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the file under another name first, so that a crash leaves the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft, dict(metadata))
    draft.replace(path)


def _read_origin(path: Path) -> Origin:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return Origin.from_metadata(file.metadata() or {})
    content = torch.load(path, map_location="cpu", weights_only=True)
    return Origin.from_checkpoint(content)
