"""Samples that stay in their file until they are drawn, so that a data set may be larger than the memory.

A large file is read through once and checked, like any other. Where each sample stands in it is then kept beside it, in
`.<file>.<reader>.index` and `.rows`, for the runs to come; that holds for as long as size and time of change of the
file do.
"""

import io
import json
import logging
import os
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import overload

import numpy as np
from rich.progress import Progress

from sparkles.data.annotations import Key, Reading, Record, located, read_file, records
from sparkles.data.files import write_whole
from sparkles.data.images import ImageError, ImageFolder
from sparkles.data.sources import Reader
from sparkles.types import InputError, Sample

log = logging.getLogger(__name__)

_SMALL = 16 * 1024**2
"""Bytes of a file up to which its samples are kept in memory."""
_COLUMNS = 4


@dataclass(frozen=True)
class IndexedSamples(Sequence[Sample]):
    """The samples of a file, each read when it is asked for."""

    path: Path
    parse: Callable[[Key, Record], Sequence[Sample]]
    images: ImageFolder
    rows: np.ndarray
    """int64[N, 4] of each sample: first byte of its record and the one behind the last, number of the record, number
    of the sample within it."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        start, stop, key, number = self.rows[index].tolist()
        with self.path.open("rb", buffering=0) as file:
            record = json.loads(os.pread(file.fileno(), stop - start, start))
        [sample] = located([self.parse(key, record)[number]], self.images)
        return sample


def read_samples(path: Path, reader: Reader, images: ImageFolder) -> Reading[Sample]:
    """`read_file`, but the samples of a large JSON list or JSON lines file stay there.

    A file with bad records is read as a whole, to say which.

    Raises:
        AnnotationError: as `read_file`.
    """
    index = None
    if path.is_file() and path.stat().st_size > _SMALL:
        index = _Index.load(path, reader) or _Index.build(path, reader)
    if index is None or any(_is_missing(image_id, images) for image_id in index.image_ids):
        return read_file(path, reader.parse, images)
    return Reading(
        path=path,
        values=IndexedSamples(path, reader.parse, images, index.rows),
        num_records=index.num_records,
        problems=[],
        folder=images.root,
        image_ids=frozenset(index.image_ids),
    )


@dataclass(frozen=True)
class _Index:
    """What is known of a file of good records."""

    rows: np.ndarray
    """As `IndexedSamples.rows`."""
    num_records: int
    image_ids: list[str]
    """Each once."""

    @classmethod
    def load(cls, path: Path, reader: Reader) -> "_Index | None":
        """None if there is none that holds, or it is damaged."""
        try:
            about = json.loads(_beside(path, reader, "index").read_bytes())
            rows = np.load(_beside(path, reader, "rows"), mmap_mode="r")
            holds = about["file"] == _state(path) and about["crc32"] == zlib.crc32(rows.data)
            return cls(rows, about["records"], about["image_ids"]) if holds else None
        except (OSError, EOFError, ValueError, LookupError, TypeError):
            return None

    @classmethod
    def build(cls, path: Path, reader: Reader) -> "_Index | None":
        """Read the file through; None if it cannot be read in parts, or holds bad records."""
        cells = array("q")
        image_ids: dict[str, None] = {}
        num_records = 0
        state = _state(path)
        with Progress(transient=True) as progress:
            task = progress.add_task(f"{path.name}, read as a whole this once", total=path.stat().st_size)
            for key, record, span in records(path):
                if span is None:
                    return None
                try:
                    samples = reader.parse(key, record)
                except InputError:
                    return None
                for number, sample in enumerate(samples):
                    cells.extend((*span, num_records, number))
                    image_ids |= dict.fromkeys(str(image.image_id) for image in sample.images)
                num_records += 1
                if num_records % 1_000 == 0:
                    progress.update(task, completed=span[1])
        index = cls(np.frombuffer(cells, dtype=np.int64).reshape(-1, _COLUMNS), num_records, list(image_ids))
        try:
            index._keep(path, reader, state)
        except OSError as error:
            log.warning("%s has to be read as a whole by each run: %s", path, error)
        return index

    def _keep(self, path: Path, reader: Reader, state: list[int]) -> None:
        rows = io.BytesIO()
        np.save(rows, self.rows)
        about = {
            "file": state,
            "crc32": zlib.crc32(self.rows.data),
            "records": self.num_records,
            "image_ids": self.image_ids,
        }
        write_whole(_beside(path, reader, "rows"), rows.getvalue())
        write_whole(_beside(path, reader, "index"), json.dumps(about).encode())


def _beside(path: Path, reader: Reader, suffix: str) -> Path:
    settings = repr((type(reader).__qualname__, vars(reader)))
    return path.with_name(f".{path.name}.{sha256(settings.encode()).hexdigest()[:12]}.{suffix}")


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _is_missing(image_id: str, images: ImageFolder) -> bool:
    try:
        images.find(image_id)
    except ImageError:
        return True
    return False
