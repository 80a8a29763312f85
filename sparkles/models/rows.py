"""How the rows of a training batch go through the language model: padded in groups of about one length, or packed.

B rows of T tokens, D their width; b rows of t tokens go together, S tokens can be seen in all rows.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rows(NamedTuple):
    """Rows that go through the language model in one call."""

    inputs_embeds: Tensor
    """float[b, t, D]"""
    targets: Tensor
    """int64[b, t], of each token the one behind it."""
    weights: Tensor
    """float32[b, t], of the loss on each target."""
    visible: dict[str, Any]
    """Arguments that say which tokens see each other."""


def in_groups(rows: Rows, attention_mask: Tensor, num_groups: int) -> Iterator[Rows]:
    """Groups of rows of about one length, without the columns in which all of a group is padding."""
    by_length = attention_mask.sum(1).argsort()
    for chosen in by_length.chunk(num_groups):
        mask = attention_mask[chosen]
        used = mask.any(dim=0)  # [T], columns in a row
        start, length = int(used.int().argmax()), int(used.sum())
        mask = mask.narrow(1, start, length)
        embeds, targets, weights = (
            tensor.index_select(0, chosen).narrow(1, start, length) for tensor in rows[:3]
        )
        # Padding behind everything is seen by none that counts; without a mask attention is faster.
        visible = {} if mask[:, 0].all() else {"attention_mask": mask}
        yield Rows(embeds, targets, weights, visible)


def pack(rows: Rows, attention_mask: Tensor) -> Rows:
    """All rows one behind the other without any padding, each of which sees itself alone: one row of S tokens.

    `transformers` takes positions that start anew for another row (block-diagonal attention); flash attention is
    told the ends of the rows besides, which it would otherwise look for in each layer.
    """
    mask = attention_mask.bool()
    lengths = mask.sum(1)  # [B]
    positions = mask.cumsum(1) - 1  # [B, T]
    ends = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)  # [B + 1]
    longest = int(lengths.max())
    embeds, targets, weights, positions = (
        tensor[mask].unsqueeze(0) for tensor in (*rows[:3], positions)
    )  # each of S tokens
    visible = {
        "position_ids": positions,
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }
    return Rows(embeds, targets, weights, visible)
