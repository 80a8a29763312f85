"""The eyes: a frozen vision transformer that keeps every token, and the LayerNorm behind it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import nn

from sparkles.models.checkpoints import load_part
from sparkles.models.checkpoints.layouts import vision_layouts


class VisionEncoder(nn.Module):
    """Any vision transformer that `timm` builds (`VisionTransformer`, `Eva`), without head or pooling.

    Args:
        name: the name by which `timm` knows it, such as `eva_giant_patch14_224`.
        checkpoint: file or folder with the weights, or several that hold them together: of this module, of LAVIS
            (`eva_vit_g.pth` and a BLIP-2 file, which holds `ln_vision`), of Hugging Face's BLIP-2, or of timm for
            a transformer that it has. Position embeddings of another image size are resampled as in the original,
            without antialiasing. None leaves the weights random, or to timm (`pretrained: true`).
        dtype: of the transformer; `ln_vision` stays in float32.
        ln_vision: whether BLIP-2's LayerNorm follows. Its epsilon is the original's 1e-5, where Hugging Face's
            `post_layernorm`, the same weights, has 1e-6.
        patch_tokens_only: leave out class and register tokens.
        timm_kwargs: overrides for `timm.create_model` (`img_size`, `depth`, ...). EVA as BLIP-2 uses it has
            `use_post_transformer_norm=False`: the file holds a final norm that must not be applied.
    """

    def __init__(
        self,
        *,
        name: str,
        checkpoint: str | Path | Sequence[str | Path] | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        ln_vision: bool = True,
        patch_tokens_only: bool = False,
        **timm_kwargs: Any,
    ) -> None:
        super().__init__()
        backbone: Any = timm.create_model(name, num_classes=0, global_pool="", **timm_kwargs)
        self.backbone = backbone.to(getattr(torch, dtype))
        self.ln_vision = nn.LayerNorm(self.hidden_size) if ln_vision else None
        self.num_tokens_left_out = backbone.num_prefix_tokens if patch_tokens_only else 0
        if checkpoint is not None:
            load_part(self, checkpoint, vision_layouts(len(backbone.blocks)), self._adapt)

    @property
    def hidden_size(self) -> int:
        return self.backbone.num_features

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.backbone.patch_embed.img_size[0]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float[N, 3, H, W] -> float[N, P, D_v]: class and register tokens, if there are any, and all patch tokens."""
        tokens = self.backbone.forward_features(pixel_values.to(self.backbone.patch_embed.proj.weight.dtype))
        tokens = tokens[:, self.num_tokens_left_out :]
        return tokens if self.ln_vision is None else self.ln_vision(tokens.to(self.ln_vision.weight.dtype))

    def _adapt(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Separate the biases of queries and values, and resample positions, where this module needs them so."""
        own, adapted = self.state_dict().keys(), dict(tensors)
        for name in tensors.keys() - own:
            stem = name.removesuffix("qkv.bias")
            if name != stem and f"{stem}q_bias" in own:
                # Of the keys' bias nothing is lost: it adds the same to all scores of a query, and a softmax
                # does not see that.
                adapted[f"{stem}q_bias"], _, adapted[f"{stem}v_bias"] = adapted.pop(name).chunk(3)
        positions = adapted.get("backbone.pos_embed")
        if positions is not None and positions.ndim == 3:
            num_prefix = 0 if self.backbone.no_embed_class else self.backbone.num_prefix_tokens
            side = math.isqrt(positions.shape[1] - num_prefix)
            if side**2 + num_prefix == positions.shape[1]:  # any other number is refused as misshaped
                adapted["backbone.pos_embed"] = resample_abs_pos_embed(
                    positions,
                    self.backbone.patch_embed.grid_size,
                    num_prefix_tokens=num_prefix,
                    antialias=False,
                )
        return adapted
