"""Append-only, crash-safe store of JSON records by key: what was paid for once is never asked again.

One line holds one record: `{"key": ..., "record": ...}`, in ASCII; of two lines with one key the later one holds.
A line is on disk, fsync included, when `put` returns, so that neither `kill -9` nor a power cut loses a record that
the program has gone on from; a call to a model takes seconds, an fsync some milliseconds. `sync=False` leaves the
moment to the operating system: `kill -9` still loses nothing, a power cut the last half minute.

Records stay on disk; memory holds their keys and places, about 20 MB for 100,000 of them.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from sparkles.types import InputError

logger = logging.getLogger(__name__)


class JournalError(InputError):
    """A journal that cannot be used as it stands."""


class Journal(Mapping[str, Any]):
    """The records of one file, which the instance has to itself until it is closed.

    Any number of threads and tasks may share the instance. A line that a crash cut short is moved to
    `<path>.torn` at the next start and said in a warning.

    Args:
        path: the JSONL file; it and its folder are made where they do not exist.
        sync: make `put` wait until the disk has the record.

    Raises:
        JournalError: the file is open already, in this process or in another.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = Path(path)
        self.sync = sync
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._offsets: dict[str, int] = {}
        self._lock = Lock()
        with ExitStack() as opened:
            # The operating system frees the lock when its process dies, however that happens.
            file_lock = FileLock(f"{self.path}.lock", timeout=0, thread_local=False)
            try:
                opened.enter_context(file_lock)
            except Timeout:
                raise JournalError(
                    f"{self.path} is in use, by another process or by another journal of this one; "
                    "wait until that ends, or give this run a directory of its own"
                ) from None
            self._out = opened.enter_context(self.path.open("ab", buffering=0))
            self._in = opened.enter_context(self.path.open("rb"))
            self._scan()
            self._opened = opened.pop_all()

    def put(self, key: str, record: Any) -> None:
        """Write a record, any value that JSON can hold; it is there when this returns, whole or not at all.

        Raises:
            TypeError: JSON cannot hold it; nothing was written.
            OSError: the disk is full or gone; nothing was written.
        """
        line = json.dumps({"key": key, "record": record}, separators=(",", ":")).encode("ascii") + b"\n"
        with self._lock:
            self._offsets[key] = self._append(line)

    def close(self) -> None:
        self._opened.close()

    def __getitem__(self, key: str) -> Any:
        with self._lock:
            self._in.seek(self._offsets[key])
            line = self._in.readline()
        return json.loads(line)["record"]

    def __contains__(self, key: object) -> bool:
        return key in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._offsets))  # a copy: other threads may put meanwhile

    def __len__(self) -> int:
        return len(self._offsets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self) -> None:
        """Note where each record lies, and mend the end of the file."""
        offset, line = 0, b"\n"
        for number, line in enumerate(self._in, start=1):  # bytes: U+2028 and its like end no line
            if (entry := _entry(line)) is not None:
                self._offsets[entry[0]] = offset
            elif line.endswith(b"\n"):
                logger.warning(
                    "%s, line %d: not a record, passed over; was the file edited, or the disk damaged?",
                    self.path,
                    number,
                )
            else:
                self._set_aside(offset, line)
                return
            offset += len(line)
        if not line.endswith(b"\n"):  # the cut took the line's end and nothing of its record
            self._append(b"\n")

    def _set_aside(self, offset: int, line: bytes) -> None:
        """Move the unfinished last line out of the file."""
        torn = self.path.with_name(f"{self.path.name}.torn")
        with torn.open("ab") as file:
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._out.truncate(offset)
        logger.warning(
            "%s: a crash cut its last line short after %d bytes; it is now in %s, and its call will be made again",
            self.path,
            len(line),
            torn,
        )

    def _append(self, line: bytes) -> int:
        """Write at the end, and return where that was."""
        start = self._out.seek(0, os.SEEK_END)
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._out.write(rest) :]
            if self.sync:
                os.fsync(self._out.fileno())
        except BaseException:  # a full disk, or Ctrl-C between two parts
            self._out.truncate(start)
            raise
        return start


def written_records(path: Path, start: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Key, record and end of each line behind byte `start` of a journal, which somebody may be writing meanwhile."""
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if line.endswith(b"\n") and (entry := _entry(line)) is not None:
                yield *entry, start


def _entry(line: bytes) -> tuple[str, Any] | None:
    """Key and record of a complete line; None for anything else."""
    try:
        entry = json.loads(line)
        key, record = entry["key"], entry["record"]
    except (ValueError, TypeError, KeyError):
        return None
    return (key, record) if isinstance(key, str) else None
