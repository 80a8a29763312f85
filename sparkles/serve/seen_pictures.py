"""What the model sees of pictures, kept for those that are shown again: a conversation sends all of its own each time.

N pictures of H by W pixels, Q query tokens for each, D_q the width of their features.
"""

import hashlib
import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

from sparkles.models.sparkles_chat import SparklesChat

_NUMBER_BYTES = 7  # so that a number, below 0, is an int64


class SeenPictures:
    """Features by numbers that tell one picture from another.

    Args:
        most: pictures whose features are kept; those that were asked about longest ago go first.
    """

    def __init__(self, model: SparklesChat, *, most: int) -> None:
        self._model = model
        self._most = most
        self._features: dict[int, Tensor] = {}
        # Nobody can make two pictures of one number, and be told about another's.
        self._secret = secrets.token_bytes(16)

    def number(self, pixels: Tensor) -> int:
        """Of a picture, by its pixels float32[3, H, W]; below 0."""
        digest = hashlib.blake2b(
            pixels.numpy().tobytes(), digest_size=_NUMBER_BYTES, key=self._secret
        ).digest()
        return -1 - int.from_bytes(digest)

    def look(self, pictures: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """float[Q, D_q] of each picture, by its number; what is not known yet is encoded in one call.

        Args:
            pictures: float32[3, H, W], by number.
        """
        if new := [number for number in pictures if number not in self._features]:
            device = self._model.language.device
            pixels = torch.stack([pictures[number] for number in new]).to(device)
            features = self._model.encode_images(pixels)
            # Copies: a part of a tensor keeps the whole in memory.
            self._features |= zip(new, (one.clone() for one in features), strict=True)
        found = {number: self._features.pop(number) for number in pictures}
        self._features |= found
        for number in list(self._features)[: max(0, len(self._features) - self._most)]:
            del self._features[number]
        return found
