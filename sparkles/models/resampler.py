"""What may stand in the Q-Former's place behind any vision encoder: a transformer to be trained, or plain averages.

Both return Q vectors per image, whatever the number of image tokens, and have the attributes of a `QFormer`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sparkles.models.checkpoints import load_part
from sparkles.types import InputError


class Resampler(nn.Module):
    """Learned queries that look at each other and at the image tokens in every layer, as in Perceiver and DETR.

    Args:
        vision_hidden_size: D_v, the width of the image tokens.
        hidden_size: D_q, the width of the queries.
        num_query_tokens: Q, the number of vectors per image.
        checkpoint: file with the weights of this module, or several that hold them together.
        trainable: whether SparklesChat trains it together with the projector: nobody publishes weights for it.
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
        checkpoint: str | Path | Sequence[str | Path] | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_query_tokens = num_query_tokens
        self.trainable = trainable
        self.read = nn.Sequential(nn.Linear(vision_hidden_size, hidden_size), nn.LayerNorm(hidden_size))
        layer = nn.TransformerDecoderLayer(
            hidden_size,
            num_attention_heads,
            intermediate_size,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, num_hidden_layers, norm=nn.LayerNorm(hidden_size))
        for weight in self.parameters():
            if (
                weight.ndim > 1
            ):  # the decoder's layers are copies of one; `nn.Transformer` draws them anew in this way
                nn.init.xavier_uniform_(weight)
        self.query_tokens = nn.Parameter(torch.empty(1, num_query_tokens, hidden_size))
        nn.init.normal_(self.query_tokens, std=0.02)
        if checkpoint is not None:
            load_part(self, checkpoint)

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """float[N, P, D_v] of any dtype -> float[N, Q, D_q]"""
        memory = self.read(image_tokens.to(self.query_tokens.dtype))  # [N, P, D_q]
        return self.layers(self.query_tokens.expand(len(memory), -1, -1), memory)


class PatchPooling(nn.Module):
    """Averages over neighbouring patches. It has no weights, so the projector alone learns.

    Args:
        vision_hidden_size: D_v, the width of the image tokens and of the result.
        num_query_tokens: Q, the number of vectors per image, a square number.
    """

    trainable = False

    def __init__(self, *, vision_hidden_size: int, num_query_tokens: int) -> None:
        super().__init__()
        self.hidden_size = vision_hidden_size
        self.num_query_tokens = num_query_tokens
        self.side = math.isqrt(num_query_tokens)
        if self.side**2 != num_query_tokens:
            raise InputError(
                f"model.qformer.num_query_tokens={num_query_tokens}: patches are averaged in a square grid; "
                f"expected a square number such as {self.side**2} or {(self.side + 1) ** 2}"
            )

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """float[N, P, D_v] -> float[N, Q, D_v]; P is a square number"""
        side = math.isqrt(image_tokens.shape[1])
        if side**2 != image_tokens.shape[1]:
            raise InputError(
                f"{image_tokens.shape[1]} image tokens are no square grid of patches; "
                "set model.vision.patch_tokens_only=true to leave out class and register tokens"
            )
        grid = image_tokens.transpose(1, 2).unflatten(2, (side, side))  # [N, D_v, side, side]
        return F.adaptive_avg_pool2d(grid, self.side).flatten(2).transpose(1, 2)
