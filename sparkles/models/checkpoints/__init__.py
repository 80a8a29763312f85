"""Weights on disk: the trained projection, the frozen parts, and the hashes that tie one to the other.

Nothing here runs code from a file: torch files are read with `weights_only=True`.
"""

from sparkles.models.checkpoints.files import CheckpointError, check_fit, load_part, state_hash
from sparkles.models.checkpoints.projection import load_projection, save_projection

__all__ = ["CheckpointError", "check_fit", "load_part", "load_projection", "save_projection", "state_hash"]
