"""Samples that stay in their file until they are drawn, so that a data set may be larger than the memory.

A large file is read through once and checked, like any other, but by several processes. Where each sample stands in
it is then kept beside it, in `.<file>.<reader>.index` and `.rows`, for the runs to come; that holds for as long as size
and time of change of the file do. What takes long is the check, for which a run need not wait.
"""

import io
import json
import logging
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from multiprocessing import Pipe, Process, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np
from rich.progress import track

from sparkles.data.annotations import (
    MAX_SHOWN,
    Key,
    Placed,
    Reading,
    Record,
    bad_records,
    located,
    read_file,
    records,
)
from sparkles.data.files import write_whole
from sparkles.data.images import ImageError, ImageFolder
from sparkles.data.parts import Span, parts, records_of
from sparkles.data.sources import CaptionFile, Reader, TrainingFile
from sparkles.types import InputError, Sample

WhenToCheck = Literal["now", "later", "elsewhere"]

log = logging.getLogger(__name__)

_SMALL = 16 * 1024**2
"""Bytes of a file up to which its samples are kept in memory."""
_COLUMNS = 4
_PART = 8 * 1024**2
"""Bytes of a file that a process reads at a time."""
_ONE_SAMPLE_A_RECORD = TrainingFile, CaptionFile
_POLITE = 10
"""Added to the niceness of a process that checks beside others that work."""


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


def read_samples(
    path: Path, reader: Reader, images: ImageFolder, *, check: WhenToCheck = "now"
) -> Reading[Sample]:
    """`read_file`, but the samples of a large JSON list or JSON lines file stay there.

    A file with bad records is read as a whole, to say which.

    Args:
        check: when to check the records of a file without an index, if each of them is one sample: "later" lets a
            process beside this one do it, and `Reading.check` knows what it finds; "elsewhere" leaves it to another
            process that reads the same file.

    Raises:
        AnnotationError: as `read_file`.
    """
    index: _Index | None = None
    running: CheckBeside | None = None
    if path.is_file() and path.stat().st_size > _SMALL:
        index = _Index.load(path, reader)
        if index is None and check != "now" and isinstance(reader, _ONE_SAMPLE_A_RECORD):
            index = _Index.build(path, None)
            if index is not None and check == "later":
                running = CheckBeside(path, reader, images)
        index = index or _Index.build(path, reader)
    if index is None or any(_is_missing(image_id, images) for image_id in index.image_ids):
        return read_file(path, reader.parse, images)
    return Reading(
        path=path,
        values=IndexedSamples(path, reader.parse, images, index.rows),
        num_records=index.num_records,
        problems=[],
        folder=images.root,
        image_ids=frozenset(index.image_ids),
        check=running,
    )


class CheckBeside:
    """Looks for bad records in a process of its own, and leaves an index if there are none."""

    def __init__(self, path: Path, reader: Reader, images: ImageFolder) -> None:
        self._told, tell = Pipe(duplex=False)
        self._problems: list[str] | None = None
        # No executor: one that still works when its process ends may wait for good.
        Process(target=self._look, args=(tell, path, reader, images)).start()
        tell.close()

    @staticmethod
    def _look(tell: Connection, path: Path, reader: Reader, images: ImageFolder) -> None:
        os.nice(_POLITE)
        index = _Index.build(path, reader)
        is_good = index is not None and not any(_is_missing(one, images) for one in index.image_ids)
        tell.send([] if is_good else list(islice(bad_records(path, reader.parse, images), MAX_SHOWN)))

    def done(self) -> bool:
        return self._problems is not None or self._told.poll()

    def result(self) -> list[str]:
        """The first problems, for which it waits."""
        if self._problems is None:
            try:
                self._problems = self._told.recv()
            except EOFError:
                log.warning("the check of a large file was broken off; the next run makes it anew")
                self._problems = []
        return self._problems


@dataclass(frozen=True)
class _Index:
    """What is known of a file of good records."""

    rows: np.ndarray
    """As `IndexedSamples.rows`."""
    num_records: int
    image_ids: list[str]
    """Each once; none of a file whose records were not looked into."""

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
    def build(cls, path: Path, reader: Reader | None) -> "_Index | None":
        """Read the file through, and keep what is known of it; None if it holds bad records, or not even records.

        Args:
            reader: None does not look into records, each of which then counts as one sample; nothing is kept.
        """
        state = _state(path)
        found = _read_through(path, reader)
        if found is None:
            return None
        before = np.cumsum([0, *(one.num_records for one in found)])
        shifts = np.array([[0, 0, number, 0] for number in before])
        index = cls(
            np.concatenate([one.rows + shift for one, shift in zip(found, shifts, strict=False)]),
            int(before[-1]),
            list(dict.fromkeys(image_id for one in found for image_id in one.image_ids)),
        )
        if reader is not None:
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


class _Found(NamedTuple):
    """What is in some records of a file, all of them good."""

    rows: np.ndarray
    """As `IndexedSamples.rows`, but records are counted from the first of these."""
    num_records: int
    image_ids: list[str]
    """Each once."""


def _read_through(path: Path, reader: Reader | None) -> list[_Found] | None:
    """What is in the parts of a file, read by several processes; None if a record is bad, or cannot be read alone."""
    spans = parts(path, _PART)
    found: list[_Found | None] = []
    with ProcessPoolExecutor() as pool:
        results = pool.map(partial(_read_part, path, reader), spans)
        try:
            found += track(
                results,
                f"{path.name}, read as a whole this once",
                len(spans),
                transient=True,
                disable=parent_process() is not None,  # the terminal is another's
            )
        except ValueError:  # where records end was guessed wrong, or the file is no JSON
            found = []
    found = found or [_find(reader, records(path))]
    good = [one for one in found if one is not None]
    return good if len(good) == len(found) else None


def _read_part(path: Path, reader: Reader | None, part: Span) -> _Found | None:
    return _find(reader, records_of(path, part))


def _find(reader: Reader | None, placed: Iterable[Placed]) -> _Found | None:
    cells = array("q")
    image_ids: dict[str, None] = {}
    number = -1
    for number, (key, record, span) in enumerate(placed):
        if span is None:
            return None
        if reader is None:
            cells.extend((*span, number, 0))
            continue
        try:
            samples = reader.parse(key, record)
        except InputError:
            return None
        for place, sample in enumerate(samples):
            cells.extend((*span, number, place))
            image_ids |= dict.fromkeys(str(image.image_id) for image in sample.images)
    return _Found(np.frombuffer(cells, dtype=np.int64).reshape(-1, _COLUMNS), number + 1, list(image_ids))


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
