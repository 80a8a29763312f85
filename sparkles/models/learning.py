"""Other ways through the layers of a frozen language model, taken while gradients are computed and only then."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from sparkles.types import InputError

Forward = Callable[..., Any]


def recompute_activations(language: nn.Module) -> None:
    """Keep the input of each layer alone, and compute what is within again for its gradient.

    The switch of `transformers` needs layers in training mode, in which those of some models drop activations.

    Raises:
        InputError: the model's layers are not known.
    """
    # A frozen layer in eval mode draws no random numbers whose state would have to be restored.
    _while_learning(
        language, lambda forward: partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    )


def compile_layers(language: nn.Module, backend: str) -> None:
    """Let `torch.compile` make kernels of a layer; one compilation serves all, as they are alike.

    Raises:
        InputError: torch does not know the backend, or the model's layers are not known.
    """
    check_backend("compile_backend", backend)
    _while_learning(language, lambda forward: torch.compile(forward, backend=backend))


def check_backend(setting: str, backend: str) -> None:
    """Raise InputError unless torch knows it."""
    known = [*torch.compiler.list_backends(exclude_tags=None)]
    if backend not in known:
        raise InputError(f"model.{setting}={backend!r}: torch knows {', '.join(sorted(known))}, or null")


def _while_learning(language: nn.Module, change: Callable[[Forward], Forward]) -> None:
    for layer in _layers(language):
        layer.forward = partial(_choose, layer.forward, change(layer.forward))


def _choose(plain: Forward, changed: Forward, *args: Any, **kwargs: Any) -> Any:
    # Generation keeps keys and values, which must not be computed twice, and comes in more shapes than are compiled.
    return (changed if torch.is_grad_enabled() else plain)(*args, **kwargs)


def _layers(language: nn.Module) -> Iterator[nn.Module]:
    layers = [layer for layer in language.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"{type(language).__name__} does not say which of its parts are layers; "
            "set model.gradient_checkpointing=false and model.compile_backend=null"
        )
    return iter(layers)
