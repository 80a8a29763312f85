"""What the model sees of pictures, kept for those that are shown again: a conversation sends all of its own each time.

N pictures of H by W pixels, Q query tokens for each, D_q the width of their features.
"""

import hashlib
import secrets
from collections.abc import Sequence

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
        self._shown: dict[int, Tensor] = {}
        # Nobody can make two pictures of one number, and be told about another's.
        self._secret = secrets.token_bytes(16)

    def number(self, pixels: Tensor) -> int:
        """Of a picture, by its pixels float32[3, H, W]; below 0."""
        digest = hashlib.blake2b(
            pixels.numpy().tobytes(), digest_size=_NUMBER_BYTES, key=self._secret
        ).digest()
        return -1 - int.from_bytes(digest)

    def show(self, pictures: dict[int, Tensor]) -> None:
        """What may be asked about until the next call: pixels by their numbers."""
        self._shown = pictures

    def features(self, numbers: Sequence[int]) -> Tensor:
        """float[N, Q, D_q] of pictures that are shown; what is not known yet is encoded in one call."""
        device = self._model.language.device
        if new := [number for number in dict.fromkeys(numbers) if number not in self._features]:
            pixels = torch.stack([self._shown[number] for number in new]).to(device)
            self._features |= zip(new, self._model.encode_images(pixels), strict=True)
        found = torch.stack([self._features[number] for number in numbers])
        for number in dict.fromkeys(numbers):
            self._features[number] = self._features.pop(number)
        for number in list(self._features)[: max(0, len(self._features) - self._most)]:
            del self._features[number]
        return found
