"""Conversations to begin with, about pictures that ship: the questions alone, since each model answers for itself."""

import json
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkles.serve.pictures import data_url
from sparkles.types import InputError


@dataclass(frozen=True, kw_only=True)
class Example:
    """Questions to be asked one after the other."""

    title: str
    questions: tuple[tuple[dict[str, str], ...], ...]
    """Each as the parts that the editor would have."""


def read_examples(folder: str | Path) -> list[Example]:
    """Those of `FOLDER/examples.json`.

        {"conversations": [{"title": "...", "questions": [["What is in ", {"picture": "a.png"}, "?"], ...]}, ...]}

    Raises:
        InputError: the file, or a picture beside it, is not there or not as above.
    """
    path = Path(folder) / "examples.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["conversations"]
        return [
            Example(
                title=one["title"],
                questions=tuple(_parts(question, path.parent) for question in one["questions"]),
            )
            for one in listed
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: {error!r}; expected 'conversations' of 'title' and 'questions', and pictures beside it; "
            "correct examples=, or set examples=null"
        ) from error


def _parts(question: Sequence[str | Mapping[str, Any]], folder: Path) -> tuple[dict[str, str], ...]:
    return tuple(
        {"text": part}
        if isinstance(part, str)
        else {"picture": _data_url(folder / Path(part["picture"]).name)}
        for part in question
    )


def _data_url(path: Path) -> str:
    kind, _ = mimetypes.guess_type(path.name)
    return data_url(path.read_bytes(), kind or "")
