"""The Q-Former: a few learned queries read all image tokens and come back as a fixed number of vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from sparkles.models.checkpoints import load_part
from sparkles.models.checkpoints.layouts import QFORMER_LAYOUTS


class QFormer(nn.Module):
    """BLIP-2's Q-Former on image tokens alone (no text goes in).

    Args:
        vision_hidden_size: D_v, the width of the image tokens.
        hidden_size: D_q, the width of the queries.
        num_query_tokens: Q, the number of vectors per image.
        cross_attention_frequency: layers 0, f, 2f, ... look at the image.
        checkpoint: file or folder with the weights, or several that hold them together: of this module, or
            BLIP-2's of LAVIS or Hugging Face; None leaves them random.
        trainable: whether SparklesChat trains it together with the projector.
    """

    def __init__(
        self,
        *,
        vision_hidden_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        num_query_tokens: int,
        cross_attention_frequency: int = 2,
        checkpoint: str | Path | Sequence[str | Path] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_query_tokens = num_query_tokens
        self.trainable = trainable
        self.transformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                encoder_hidden_size=vision_hidden_size,
                hidden_size=hidden_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                intermediate_size=intermediate_size,
                cross_attention_frequency=cross_attention_frequency,
            )
        )
        self.query_tokens = nn.Parameter(torch.empty(1, num_query_tokens, hidden_size))
        nn.init.normal_(self.query_tokens, std=self.transformer.config.initializer_range)
        self.to(getattr(torch, dtype))
        if checkpoint is not None:
            load_part(self, checkpoint, QFORMER_LAYOUTS)

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """float[N, P, D_v] of any dtype -> float[N, Q, D_q]"""
        queries = self.query_tokens.expand(len(image_tokens), -1, -1)
        return self.transformer(query_embeds=queries, encoder_hidden_states=image_tokens).last_hidden_state
