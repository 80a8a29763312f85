"""Features of images on disk: what frozen parts of a model make of a picture is computed once, for all runs.

N images, Q query tokens per image, D the width of the features.
"""

import hashlib
import logging
import zlib
from pathlib import Path

import numpy as np
import torch

from sparkles.data.files import write_whole
from sparkles.data.images import ImageTransform, file_digest
from sparkles.types import Image

log = logging.getLogger(__name__)

KEY_BYTES = hashlib.sha256().digest_size
_CHECKSUM_BYTES = 4
_KEPT_BYTES = 256 * 1024**2
"""Features that stay in memory once they were read, in each process."""


class FeatureCache:
    """A folder of float16[Q, D], one small file for each image, shared by processes, runs and rows of a sweep.

    A file is put in place whole, by renaming it: any number of processes may write at the same time, on network
    disks too, and be killed at any moment. A file that is damaged counts as absent, and the next `put` replaces it.

    Args:
        folder: may serve several encoders.
        encoder_hash: identifies the weights that make the features.
        shape: (Q, D).

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, *, encoder_hash: str, shape: tuple[int, int]) -> None:
        self.folder = Path(folder)
        self.encoder_hash = encoder_hash
        self.shape = shape
        self._may_write = True
        self._digests: dict[Path | None, str] = {}
        self._kept: dict[
            bytes, torch.Tensor
        ] = {}  # read before; in a random order none is likelier to be next
        self.folder.mkdir(parents=True, exist_ok=True)

    def image_key(self, image: Image, transform: ImageTransform, crop: int | None = None) -> bytes:
        """Key of a picture's features, by the content of its file, which is read once: bytes[KEY_BYTES].

        Args:
            crop: number of a random crop.

        Raises:
            ImageError: the image has no path, or there is no such file.
        """
        return self.key(self.digest(image), image.box, transform.settings, crop)

    def digest(self, image: Image) -> str:
        """sha256 of the image's file, read once."""
        if image.path not in self._digests:
            self._digests[image.path] = file_digest(image)
        return self._digests[image.path]

    def key(self, *parts: object) -> bytes:
        """sha256 over the encoder and all else that the features depend on: bytes[KEY_BYTES]."""
        return hashlib.sha256(repr((self.encoder_hash, self.shape, parts)).encode()).digest()

    def get(self, key: bytes) -> torch.Tensor | None:
        """float16[Q, D]; None if it was not put, or is damaged."""
        if key in self._kept:
            return self._kept[key]
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        data = content[_CHECKSUM_BYTES:]
        if content[:_CHECKSUM_BYTES] != _checksum(data) or len(data) != 2 * np.prod(self.shape):
            return None
        features = torch.frombuffer(bytearray(data), dtype=torch.float16).view(self.shape)
        if (1 + len(self._kept)) * len(data) < _KEPT_BYTES:
            self._kept[key] = features
        return features

    def put(self, keys: torch.Tensor, features: torch.Tensor) -> None:
        """Keep features that `get` will find. Where they cannot be written, a warning says so once and work goes on.

        Args:
            keys: uint8[N, KEY_BYTES]
            features: float16[N, Q, D]
        """
        for key, values in zip(keys.cpu().numpy(), features.cpu().numpy(), strict=True):
            if self._may_write:
                try:
                    path, data = self._path(key.tobytes()), values.tobytes()
                    path.parent.mkdir(exist_ok=True)
                    write_whole(path, _checksum(data) + data)
                except OSError as error:
                    self._may_write = False
                    log.warning("features are not kept from here on: %s; see data.feature_cache", error)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / name[2:]  # no folder grows too long to list


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES)
