"""Features of images on disk: what frozen parts of a model make of a picture is computed once, for all runs.

    FOLDER/32x768/TIME-NAME.features    float16[n, Q, D], to which one process appends and which all map into memory
    FOLDER/32x768/TIME-NAME.keys        n records of a key and a checksum, each written when its features are

N images, Q query tokens per image, D the width of the features.
"""

import hashlib
import logging
import math
import os
import secrets
import time
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparkles.data.images import ImageTransform, file_digest
from sparkles.types import Image

log = logging.getLogger(__name__)

KEY_BYTES = hashlib.sha256().digest_size
_RECORD = np.dtype([("key", f"V{KEY_BYTES}"), ("checksum", "<u4")])
_KEYS, _FEATURES = ".keys", ".features"


class FeatureCache:
    """A folder of float16[Q, D], one for each image, shared by processes, runs and rows of a sweep.

    Each process that puts features has files of its own and only ever appends to them. So any number may write at the
    same time, on network disks too, and be killed at any moment; what others have put is found when it is asked for.
    Features that are damaged count as absent, until they are put again.

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
        self._shape_folder = self.folder / "x".join(map(str, shape))
        self._may_write = True
        self._digests: dict[Path | None, str] = {}
        self._shards: dict[Path, _Shard] = {}
        self._places: dict[bytes, tuple[_Shard, int]] = {}
        self._own: tuple[int, Path] | None = None  # of which process, and its path without suffix
        self.folder.mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files anew."""
        return partial(FeatureCache, encoder_hash=self.encoder_hash, shape=self.shape), (self.folder,)

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
        if key not in self._places:
            self._look_for_more()
        if key not in self._places:
            return None
        shard, row = self._places[key]
        features = np.array(shard.features[row])
        if zlib.crc32(features.data) != shard.records[row]["checksum"]:
            del self._places[key]
            return None
        return torch.from_numpy(features)

    def put(self, keys: torch.Tensor, features: torch.Tensor) -> None:
        """Keep features that `get` did not find. Where they cannot be written, a warning says so once and work goes on.

        Args:
            keys: uint8[N, KEY_BYTES]
            features: float16[N, Q, D]
        """
        if not self._may_write:
            return
        new = dict(zip(map(bytes, keys.cpu().numpy()), features.cpu().numpy(), strict=True))
        records = np.array([(key, zlib.crc32(values)) for key, values in new.items()], dtype=_RECORD)
        try:
            path = self._own_shard()
            with path.with_suffix(_FEATURES).open("ab") as file:
                file.write(b"".join(new.values()))
            with path.with_suffix(_KEYS).open("ab") as file:  # whoever reads a key finds its features
                file.write(records.tobytes())
        except OSError as error:
            self._may_write = False
            log.warning("features are not kept from here on: %s; see data.feature_cache", error)

    def _own_shard(self) -> Path:
        if self._own is None or self._own[0] != os.getpid():  # a fork has its parent's
            self._shape_folder.mkdir(exist_ok=True)
            self._own = os.getpid(), self._shape_folder / f"{time.time_ns()}-{secrets.token_hex(4)}"
        return self._own[1]

    def _look_for_more(self) -> None:
        """Take in what has been put since the last look."""
        # What replaces damaged features is in later files.
        for path in sorted(self._shape_folder.glob(f"*{_KEYS}")):
            if path not in self._shards:
                self._shards[path] = _Shard(path, self.shape)
            shard = self._shards[path]
            for row, key in shard.grow():
                self._places[key] = shard, row


class _Shard:
    """What one process has put, or has put so far."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self._path = path
        self._shape = shape
        self.records: np.ndarray = np.empty(0, dtype=_RECORD)
        self.features: np.ndarray = np.empty((0, *shape), dtype=np.float16)

    def grow(self) -> Iterator[tuple[int, bytes]]:
        """Rows and keys of what has been added, of which nothing is half written."""
        known = len(self.records)
        path = self._path.with_suffix(_FEATURES)
        try:
            length = self._path.stat().st_size // _RECORD.itemsize
            if length > known:
                length = min(length, path.stat().st_size // (2 * math.prod(self._shape)))
            if length <= known:
                return
            self.records = np.memmap(self._path, dtype=_RECORD, mode="r", shape=length)
            self.features = np.memmap(path, dtype=np.float16, mode="r", shape=(length, *self._shape))
        except OSError:  # removed meanwhile
            return
        for row in range(known, length):
            yield row, self.records[row]["key"].tobytes()
