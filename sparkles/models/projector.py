"""The bridge, in the paper the only part that learns: from Q-Former vectors to the language model's embeddings."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class Projector(nn.Module):
    """One linear layer as in the paper, or an MLP with GELU when `hidden_features` are given."""

    def __init__(self, *, in_features: int, out_features: int, hidden_features: Sequence[int] = ()) -> None:
        super().__init__()
        widths = (in_features, *hidden_features, out_features)
        first, *rest = (nn.Linear(before, after) for before, after in pairwise(widths))
        self.layers = nn.Sequential(first, *(module for linear in rest for module in (nn.GELU(), linear)))

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """float[..., D_q] of any dtype -> float[..., D_lm]"""
        return self.layers(queries.to(next(self.parameters()).dtype))
