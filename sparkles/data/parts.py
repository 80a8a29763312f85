"""Parts of a large file of records that can be read each by itself, so that several processes share the work."""

import json
import mmap
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sparkles.data.annotations import Placed, records

Span = tuple[int, int]
"""First byte of a part, and the one behind its last."""

_SPACE = re.compile(r"[ \t\n\r]*")
_COMMA = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def parts(path: Path, size: int) -> list[Span]:
    """Cut a JSON list, or JSON lines, between records: parts of about `size` bytes, together all records.

    Where a record ends is guessed by what stands between the first two: `records_of` finds out if the guess was
    wrong. None at all where there is nothing to guess by.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if path.suffix == ".jsonl":
            first, end = len(BOM_UTF8) * (content[: len(BOM_UTF8)] == BOM_UTF8), len(content)
            seam, stop, start = b"\n", 1, 1
        else:
            spans = [one.span for one in islice(records(path), 2) if one.span is not None]
            end = content.rfind(b"]")
            if len(spans) < 2 or content[end + 1 :].strip():
                return []
            (first, last), (second, _) = spans
            key = content.find(b'"', second) + 1
            seam = content[last - 1 : content.find(b'"', key) + 1]  # `}, {"image_id"`, say
            stop, start = seam.index(b","), second - last + 1
        cut = [first]
        while 0 <= (found := content.find(seam, cut[-1] + size)) < end - start:
            cut += [found + stop, found + start]
        return list(zip(cut[::2], [*cut[1::2], end], strict=True))


def records_of(path: Path, part: Span) -> Iterator[Placed]:
    """The records of a part, with keys that count from 0 in each.

    Raises:
        ValueError: the part is not made of whole records; those before the mistake have been given.
    """
    start, stop = part
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(stop - start)
    if path.suffix == ".jsonl":
        for number, line in enumerate(content.splitlines(keepends=True)):
            yield Placed(number, json.loads(line), (start, start + len(line)))
            start += len(line)
        return
    text = content.decode()
    is_ascii, decode = text.isascii(), json.JSONDecoder().raw_decode
    number = position = 0
    behind = _SPACE.match(text)
    while behind:
        start += behind.end() - position
        record, position = decode(text, behind.end())
        length = position - behind.end()
        stop = start + (length if is_ascii else len(text[behind.end() : position].encode()))
        yield Placed(number, record, (start, stop))
        number, start = number + 1, stop
        behind = _COMMA.match(text, position)
    if text[position:].strip():
        raise json.JSONDecodeError("Expecting ','", text, position)
