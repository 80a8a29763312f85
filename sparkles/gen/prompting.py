"""The prompt that asks for dialogues: a text file, filled with `string.Template`.

What a file may hold: $candidates, $num_candidates, $demonstrations, $dialogues (what is wanted, a line for each
dialogue), $num_dialogues, and $images (a number word for the first turn of the first dialogue: "two").
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any

from sparkles.gen.candidates import Shape
from sparkles.gen.recipes import Assignment
from sparkles.prompt_format import strip_tags
from sparkles.types import Dialogue, InputError

PROMPT_DIR = Path(__file__).parent / "prompts"
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ELLIPSIS = "..."

_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "enum": ["user", "assistant"]},
        "image_ids": {"type": "array", "items": {"type": "string"}},
        "content": {"type": "string"},
    },
    "required": ["role", "image_ids", "content"],
    "additionalProperties": False,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"dialogues": {"type": "array", "items": {"type": "array", "items": _MESSAGE}}},
    "required": ["dialogues"],
    "additionalProperties": False,
}
"""Of a reply, for endpoints with structured output. An assistant's message lists no images."""


class DialoguePrompt:
    """A prompt file.

    Raises:
        InputError: there is no such file.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path else PROMPT_DIR / "dialogues.txt"
        if not self.path.is_file():
            raise InputError(
                f"gen.prompt_file: no such file: {self.path}; give a text file, or null for our own"
            )

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8").strip()

    @property
    def hash(self) -> str:
        """sha256 of the text, which goes into the ledger and the data card."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, assignment: Assignment) -> str:
        """The text of a call.

        Raises:
            InputError: the file asks for something that is not there.
        """
        fields = {
            "candidates": _candidates(assignment),
            "num_candidates": len(assignment.candidates),
            "demonstrations": _demonstrations(assignment.demonstrations),
            "dialogues": "\n".join(_wanted(assignment.shapes)),
            "num_dialogues": len(assignment.shapes),
            "images": _number(assignment.shapes[0][0]),
        }
        try:
            return Template(self.text).substitute(fields)
        except KeyError as error:
            known = ", ".join(f"${name}" for name in fields)
            raise InputError(
                f"{self.path} has ${error.args[0]}, which is none of {known}; write $$ for a $"
            ) from error
        except ValueError as error:
            raise InputError(f"{self.path}: {error}; write $$ for a $") from error


def _candidates(assignment: Assignment) -> str:
    return "\n".join(
        json.dumps({"image_id": image.image_id, "caption": image.caption}, ensure_ascii=False)
        for image in assignment.candidates
    )


def _demonstrations(dialogues: Iterable[Dialogue]) -> str:
    """Dialogues in the form of a reply, without captions and tags, and with the last answer left out."""
    return "\n\n".join(
        "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in _without_end(dialogue)) + "\n]"
        for dialogue in dialogues
    )


def _without_end(dialogue: Dialogue) -> list[dict[str, Any]]:
    *entries, last = reply_entries(dialogue)
    return [*entries, last | {"content": _ELLIPSIS}]


def reply_entries(dialogue: Dialogue) -> list[dict[str, Any]]:
    """The messages in the form of a reply, see `SCHEMA`: ids instead of tags and captions."""
    return [
        {
            "role": message.role,
            "image_ids": [str(image.image_id) for image in message.images],
            "content": strip_tags(message.content),
        }
        for message in dialogue.messages
    ]


def _wanted(shapes: Sequence[Shape]) -> Iterable[str]:
    """
    >>> list(_wanted([(2, 1)]))
    ['Dialogue 1: the user brings in two images in the first message, and one new image in message 2.']
    """
    for number, (first, *later) in enumerate(shapes, start=1):
        turns = "".join(
            f", and {_images(count, 'new ')} in message {turn}" for turn, count in enumerate(later, start=2)
        )
        yield f"Dialogue {number}: the user brings in {_images(first)} in the first message{turns}."


def _images(count: int, new: str = "") -> str:
    return f"{_number(count)} {new}image" + ("" if count == 1 else "s")


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)
