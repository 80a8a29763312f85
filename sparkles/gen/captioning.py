"""Captions for a folder of pictures, by any responder that sees: an endpoint, or SparklesChat."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.progress import track

from sparkles.prompt_format import image_reference
from sparkles.types import Image, InputError, Message, Prompt, Responder, Response

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
AT_A_TIME = 64
"""Pictures asked about before what was said is looked at."""


def caption_folder(folder: Path, responder: Responder, out: Path, *, question: str) -> int:
    """Describe each picture of `folder` that `out` has no caption for yet; how many `out` has in the end.

    Args:
        out: JSON lines of `image_id`, the file's name without its suffix, and `caption`.
        question: `{image}` becomes the picture.

    Raises:
        InputError: there are no pictures, the question shows none, or some got no caption, be it that the answer was
            refused or cut off; the others are written.
    """
    if question.count("{image}") != 1:
        raise InputError(
            f"question is {question!r}, expected a text with {{image}} in the place of the picture"
        )
    captions = _read(out)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(
            f"folder={folder}: no pictures in it; expected files of {', '.join(sorted(SUFFIXES))}"
        )
    waiting = iter(track([path for path in paths if path.stem not in captions], "captions"))
    failures: list[str] = []
    try:
        while chunk := list(islice(waiting, AT_A_TIME)):
            prompts = [_prompt(path, question) for path in chunk]
            for path, response in zip(chunk, responder.respond(prompts), strict=True):
                if problem := _problem(response):
                    failures.append(f"{path.name}: {problem}")
                else:
                    captions[path.stem] = " ".join(response.text.split())
    finally:
        _write(out, captions)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(paths)} pictures got no caption, such as {failures[0]}; the others are in {out}, "
            "and the same command asks for these alone. What was refused or cut off needs another question or limit"
        )
    return len(captions)


def _prompt(path: Path, question: str) -> Prompt:
    content = question.format(image=image_reference(path.stem))
    message = Message(role="user", content=content, images=(Image(image_id=path.stem, path=path),))
    return Prompt(messages=(message,), item_id=path.stem)


def _problem(response: Response) -> str:
    """Why what was said is no caption; "" if it is one."""
    text = " ".join(response.text.split())
    if response.failure:
        return response.failure
    if response.refused:
        return f"refused, in these words: {text[:200]!r}" if text else "refused, or filtered by the provider"
    if not text:
        return "an empty answer"
    return f"cut off at the limit on new tokens, ... {text[-60:]!r}" if response.truncated else ""


def _read(out: Path) -> dict[str, str]:
    if not out.is_file():
        return {}
    records = map(json.loads, out.read_text(encoding="utf-8").splitlines())
    return {record["image_id"]: record["caption"] for record in records}


def _write(out: Path, captions: dict[str, str]) -> None:
    """Replace the file in one step."""
    lines: Sequence[str] = [
        json.dumps({"image_id": image_id, "caption": caption}) + "\n"
        for image_id, caption in captions.items()
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.tmp")
    draft.write_text("".join(lines), encoding="utf-8")
    draft.replace(out)
