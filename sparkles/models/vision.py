"""The eyes: a frozen vision transformer that keeps every token, and the LayerNorm behind it."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from sparkles.models.checkpoints import load_part


class VisionEncoder(nn.Module):
    """Any vision transformer that `timm` builds (`VisionTransformer`, `Eva`), without head or pooling.

    Args:
        name: the name by which `timm` knows it, such as `eva_giant_patch14_224`.
        checkpoint: safetensors or torch file with the weights of this module; None leaves them random.
        timm_kwargs: overrides for `timm.create_model` (`img_size`, `depth`, ...). EVA as BLIP-2 uses it has
            `use_post_transformer_norm=False`: the file holds a final norm that must not be applied.
    """

    def __init__(self, *, name: str, checkpoint: str | Path | None = None, **timm_kwargs: Any) -> None:
        super().__init__()
        self.backbone: Any = timm.create_model(name, num_classes=0, global_pool="", **timm_kwargs)
        self.ln_vision = nn.LayerNorm(self.hidden_size)
        if checkpoint is not None:
            load_part(self, checkpoint)

    @property
    def hidden_size(self) -> int:
        return self.backbone.num_features

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.backbone.patch_embed.img_size[0]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float[N, 3, H, W] -> float[N, P, D_v]: the class token, if there is one, and all patch tokens."""
        return self.ln_vision(self.backbone.forward_features(pixel_values))
