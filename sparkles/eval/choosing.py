"""How the tokens of an answer are chosen, and where it ends.

B rows, S tokens of the longest answer so far, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sparkles.data.encoding import Tokenizer
from sparkles.types import InputError

SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 0.9}
"""How answers are drawn where `generation` does not say: as in the original."""

WARPERS: Mapping[str, Callable[[Any], LogitsProcessor]] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}
"""In the order in which transformers applies them."""


class StopStrings(StoppingCriteria):
    """Ends each row at the first of some strings, however tokens divide it.

    The `stop_strings` of transformers do the same for its own tokenizers only.
    """

    def __init__(self, strings: Sequence[str], tokenizer: Tokenizer) -> None:
        self.strings = tuple(strings)
        self.tokenizer = tokenizer
        # A token may be as little as a byte, and the first that is decoded may lose its leading space.
        self.num_tokens = 1 + max((len(string.encode()) for string in strings), default=0)
        self._may_end = cache(self._holds_an_end)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """int64[B, S] -> bool[B]"""
        rows = input_ids[:, -self.num_tokens :].tolist()
        return torch.tensor([self.end(row) for row in rows], device=input_ids.device)

    def end(self, token_ids: list[int]) -> bool:
        """Whether one of the strings ends in the last of these tokens."""
        return self._may_end(token_ids[-1]) and self._has_ended(token_ids[-self.num_tokens :])

    def _has_ended(self, token_ids: list[int]) -> bool:
        ending = self.tokenizer.decode(token_ids)
        return any(string in ending for string in self.strings)

    def _holds_an_end(self, token_id: int) -> bool:
        """Whether a string may end in this token, which by itself may be part of a character, or a space left out."""
        text = self.tokenizer.decode([token_id])
        unclear = not text or "\N{REPLACEMENT CHARACTER}" in text
        return unclear or any(string[-1] in text for string in self.strings)


class SeededNoise(LogitsProcessor):
    """Makes the token with the largest score a draw from the softmax of the scores, by adding Gumbel noise.

    Each row draws from a generator of its own, so neither the other rows nor the device change what it draws.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """float[B, V] -> float32[B, V]"""
        rows = [
            torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators
        ]
        return scores.float() - torch.stack(rows).log().to(scores.device)


def warpers(generation: Mapping[str, Any]) -> list[LogitsProcessor]:
    """What transformers would do to the scores before it draws.

    Raises:
        InputError: it cannot be done with a generator for each row, or with such a value.
    """
    others = {"num_beams", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"} & generation.keys()
    if generation["do_sample"] and others:
        raise InputError(
            f"generation: {', '.join(sorted(others))} cannot be combined with do_sample=true here, where each item "
            f"draws by its own seed; it takes {', '.join(WARPERS)}"
        )
    settings = SAMPLING | dict(generation)
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    try:
        return [
            warper(settings[name])
            for name, warper in WARPERS.items()
            if settings.get(name) is not None and settings[name] != off.get(name)
        ]
    except ValueError as error:
        raise InputError(f"generation: {error}") from error
