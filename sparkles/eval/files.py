"""Reading annotation files, and writing results so that a crash leaves the old file or the new one."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from sparkles.data.annotations import AnnotationError


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a JSON list, of JSON lines or of an object with a list in COCO's way, each with all of `columns`.

    Raises:
        AnnotationError: there is no such file, it is not JSON, holds no records, or a record lacks a column.
    """
    if not path.is_file():
        raise AnnotationError(
            f"{path}: no such file; expected records with {', '.join(columns)}, as JSON or JSON lines"
        )
    text = path.read_text(encoding="utf-8")
    try:
        rows = _records(text)
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}); expected one list of records, or a record per line"
        ) from error
    if not rows:
        raise AnnotationError(f"{path}: no records; expected some with {', '.join(columns)}")
    for number, row in enumerate(rows):
        found = list(row) if isinstance(row, dict) else [type(row).__name__]
        if missing := [column for column in columns if column not in found]:
            raise AnnotationError(
                f"{path}, record {number}: no {', '.join(missing)}; "
                f"expected {', '.join(columns)}, got {', '.join(found) or 'nothing'}"
            )
    return list(rows)


def _records(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    with suppress(json.JSONDecodeError):
        whole = json.loads(text)  # as COCO-BISON ("data") and COCO ("annotations") have it
        for key in ("data", "annotations"):
            if isinstance(whole, dict) and isinstance(whole.get(key), list):
                return list(whole[key])
    return _json_lines(text)


def _json_lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            error.lineno = number  # the parser saw this line only
            raise
    return rows


def write_text(path: Path, text: str) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file, or an empty one where there is no file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def file_hash(path: Path) -> str:
    """sha256 of the file's bytes, remembered for as long as its size and time of change stay."""
    stat = path.stat()
    return _file_hash(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
