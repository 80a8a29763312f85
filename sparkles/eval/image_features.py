"""What a model sees of pictures: each is read and encoded once, however often it is asked about.

N images, Q query tokens per image, D_q the width of their features.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sparkles.data.features import FeatureCache
from sparkles.data.images import ImageTransform, load_image
from sparkles.eval.likelihood import ChatModel
from sparkles.types import Image

_MOST_KEPT = 4_096
"""Images whose features stay in memory: 400 MB at the size of the paper's model."""


class ImageFeatures:
    """The features of pictures, taken from memory, from the cache of the training, or from the model, in this order.

    Args:
        cache: that of a training, or any; with it all features are rounded as in training, whether they were there
            or are new. None keeps them in memory only, as they are.
    """

    def __init__(
        self, model: ChatModel, transform: ImageTransform, cache: FeatureCache | None = None
    ) -> None:
        self._model = model
        self._transform = transform
        self._cache = cache
        self._kept: dict[Image, Tensor] = {}
        self._numbered: dict[Image, int] = {}

    def numbers(self, images: Sequence[Image]) -> list[int]:
        """The number of each image, below 0: the same for the same image."""
        return [self._numbered.setdefault(image, -1 - len(self._numbered)) for image in images]

    def of_numbers(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """As `of`, by the numbers that `numbers` gave."""
        images = list(self._numbered)  # in the order of their numbers
        return self.of([images[-1 - number] for number in numbers], device)

    def of(self, images: Sequence[Image], device: torch.device) -> Tensor:
        """float[N, Q, D_q], in the order of the images, of which there is at least one.

        Raises:
            ImageError: a picture cannot be read.
        """
        found = {image: self._kept[image] for image in images if image in self._kept}
        unknown = [image for image in dict.fromkeys(images) if image not in found]
        if self._cache is not None:
            for image in unknown:
                features = self._cache.get(self._cache.image_key(image, self._transform))
                if features is not None:
                    found[image] = features.to(device)
        if new := [image for image in unknown if image not in found]:
            found |= zip(new, self._encode(new, device), strict=True)
        self._kept |= {image: found[image] for image in unknown}
        for image in list(self._kept)[: max(0, len(self._kept) - _MOST_KEPT)]:
            del self._kept[image]
        with torch.autocast(
            device.type, enabled=False
        ):  # which cannot join what it keeps in half precision, on CPUs
            return torch.stack([found[image] for image in images])

    def _encode(self, images: Sequence[Image], device: torch.device) -> Tensor:
        with ThreadPoolExecutor() as pool:  # files are read, and pictures unpacked, beside each other
            pixels = list(pool.map(lambda image: self._transform(load_image(image)), images))
        pixel_values = torch.stack(pixels).to(device)
        if self._cache is None:
            return self._model.encode_images(pixel_values)
        features = self._model.encode_to_keep(pixel_values)
        keys = [list(self._cache.image_key(image, self._transform)) for image in images]
        self._cache.put(torch.tensor(keys, dtype=torch.uint8), features)
        return features
