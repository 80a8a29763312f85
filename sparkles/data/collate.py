"""Encoded dialogues of different lengths, with different numbers of images, as one batch.

B dialogues, N images in all of them, T tokens of the longest.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from sparkles.data.encoding import Encoded, EncodingError
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID


def pad_batch(
    encoded: Sequence[Encoded],
    pixel_values: Sequence[torch.Tensor | None],
    *,
    pad_token_id: int,
    side: Literal["left", "right"],
) -> dict[str, torch.Tensor]:
    """Pad to the longest dialogue: on the right to train, on the left to generate.

    Args:
        pixel_values: float32[3, H, W] of each image of the batch, flat, in order of use; None for an image whose
            features are known, which is left out.

    Returns:
        input_ids int64[B, T]; attention_mask int64[B, T], 0 at padding and what else is not visible;
        labels int64[B, T], `IGNORE_INDEX` at padding, absent if no dialogue has them;
        loss_weights float32[B, T], of each label, absent if all weigh the same;
        pixel_values float32[N, 3, H, W], for a batch without images float32[0, 3, 0, 0].

    Raises:
        EncodingError: a label is part of an image (see `Encoder.unmask_prompt_end`).
    """
    num_images = sum(len(one.images) for one in encoded)
    if num_images != len(pixel_values):
        raise ValueError(
            f"{len(pixel_values)} tensors in pixel_values for {num_images} images of the dialogues"
        )

    def pad(rows: Iterable[Sequence[float]], value: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        tensors = [torch.tensor(row, dtype=dtype) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(
            tensors, batch_first=True, padding_value=value, padding_side=side
        )

    pixels = [one for one in pixel_values if one is not None]
    batch = {
        "input_ids": pad([one.input_ids for one in encoded], pad_token_id),
        "attention_mask": pad([_visibility(one) for one in encoded], 0),
        "pixel_values": torch.stack(pixels) if pixels else torch.empty(0, 3, 0, 0),
    }
    labels = [one.labels for one in encoded if one.labels is not None]
    if labels:
        if len(labels) != len(encoded):
            raise ValueError(f"only {len(labels)} of {len(encoded)} dialogues of a batch have labels")
        if any(IMAGE_TOKEN_ID in row for row in labels):
            raise EncodingError(
                "a label is part of an image, which no model can predict: max_length cut the prompt inside an image; "
                "set unmask_prompt_end=false or raise max_length"
            )
        batch["labels"] = pad(labels, IGNORE_INDEX)
    if any(one.loss_weights for one in encoded):
        weights = [one.loss_weights or [1.0] * len(one.input_ids) for one in encoded]
        batch["loss_weights"] = pad(weights, 0, torch.float32)
    return batch


def _visibility(one: Encoded) -> list[int]:
    """int[T], 1 at the tokens that the model may look at."""
    visible = range(len(one.input_ids))[one.visible]
    return [int(place in visible) for place in range(len(one.input_ids))]
