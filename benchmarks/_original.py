"""The original's way to a loss, written plainly: what techniques are compared with.

B dialogues, T tokens, N images, Q query tokens, D_q their width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX


def images_one_dialogue_at_a_time(model: SparklesChat, pixel_values: Tensor, counts: Sequence[int]) -> Tensor:
    """float[N, 3, H, W] -> float[N, Q, D_q], of dialogues with so many images each."""
    return torch.cat([model.encode_images(pixels) for pixels in pixel_values.split(list(counts))])


def summed_loss(model: SparklesChat, batch: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Sum of the labelled tokens' cross-entropy; every token gets logits, and padding is masked: float32[].

    Args:
        features: float[N, Q, D_q] of the batch's images.
    """
    logits = model.language(
        inputs_embeds=model.embed(batch["input_ids"], batch["pixel_values"], features),
        attention_mask=batch["attention_mask"],
        use_cache=False,
    ).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
