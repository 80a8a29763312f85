"""What the engine is asked, what it answers, and why it may not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from sparkles.data.encoding import Encoded
from sparkles.serve.answer_text import TokenScore
from sparkles.types import InputError

FinishReason = Literal["stop", "length", "content_filter"]
SMALLEST_TEMPERATURE = 0.01
"""Below, the likeliest token is taken."""
SEEDS = 2**63


class FullError(RuntimeError):
    """All places are taken, those to wait in too."""


class LateError(RuntimeError):
    """The time for an answer was over before its first token."""


class EngineError(RuntimeError):
    """The model failed while it wrote this answer (the cause is in the log), or will write no more."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when an answer ends.

    Raises:
        InputError: beams are to be drawn, or to tell the probabilities of their tokens; the seed is none.
    """

    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    """Of the first choice, counted up for the others; None draws one."""
    stop: tuple[str, ...] = ()
    """Besides those of the prompt format."""
    top_log_probs: int | None = None
    """How many of the likeliest tokens to tell beside each; None tells no probabilities."""
    beams: int = 1
    """More search for the likeliest answer rather than token, which is then known at its end only."""

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise InputError(f"beams must be at least 1, got {self.beams}")
        if self.seed is not None and not -SEEDS <= self.seed < SEEDS:
            raise InputError(f"seed must be at least -2**63 and less than 2**63, got {self.seed}")
        if self.beams > 1 and (self.temperature >= SMALLEST_TEMPERATURE or self.top_log_probs is not None):
            raise InputError(
                f"more than one beam needs temperature 0, and tells no probabilities; got {self.beams} beams at "
                f"temperature {self.temperature:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt as the model reads it."""

    encoded: Encoded
    pixel_values: Sequence[Tensor]
    """float32[3, H, W] of each of `encoded.images`."""
    sampling: Sampling
    choices: int = 1
    """Answers to it, each a row of the batch."""
    in_pieces: bool = True
    """Tell each answer as it comes; else whole, at its end, which costs the server less."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one of the answers goes on with."""

    choice: int
    text: str
    scores: list[TokenScore]
    num_tokens: int
    """Of the answer so far."""
    finish_reason: FinishReason | None = None
    """Set in the last piece of a choice."""
