"""Weights on disk: the trained projection, the frozen parts, and the hashes that tie one to the other.

Nothing here runs code from a file: torch files are read with `weights_only=True`.
The names below are looked up when they are first used, so that the commands can answer `--help` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkles.models.checkpoints.export import PretrainedSparkles, export_projection
    from sparkles.models.checkpoints.files import CheckpointError, check_fit, load_part, state_hash
    from sparkles.models.checkpoints.origin import Origin, check_origin
    from sparkles.models.checkpoints.projection import load_projection, save_projection
    from sparkles.models.checkpoints.separators import check_separator

__all__ = [
    "CheckpointError",
    "Origin",
    "PretrainedSparkles",
    "check_fit",
    "check_origin",
    "check_separator",
    "export_projection",
    "load_part",
    "load_projection",
    "save_projection",
    "state_hash",
]

_HOMES = {
    "export": {"PretrainedSparkles", "export_projection"},
    "files": {"CheckpointError", "check_fit", "load_part", "state_hash"},
    "origin": {"Origin", "check_origin"},
    "projection": {"load_projection", "save_projection"},
    "separators": {"check_separator"},
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
