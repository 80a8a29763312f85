"""Where somebody's judgement of questions and answers comes in, for the endpoint and for the page."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import PIL.Image
from torch import Tensor

from sparkles.data.images import ImageTransform
from sparkles.serve.pictures import decode
from sparkles.serve.question import Piece
from sparkles.types import InputError


class RefusedError(InputError):
    """A question that must not pass, with the reason."""


class Moderation(Protocol):
    """Judges what users ask, and what the model answers before they see it."""

    def __call__(self, text: str, pictures: Sequence[PIL.Image.Image]) -> str:
        """Why this must not pass; "" if it may. Called from several threads, without pictures for an answer."""
        ...


def look(
    text: str,
    contents: Iterable[bytes],
    *,
    transform: ImageTransform,
    max_pixels: int,
    moderation: Moderation | None,
) -> list[Tensor]:
    """What the model sees of a question's pictures: float32[3, H, W] of each.

    Unpacked they are large: that is one after the other, unless all are judged with the text.

    Raises:
        RefusedError: it must not pass.
        PictureError: see `decode`.
    """
    pictures: Iterable[PIL.Image.Image] = (decode(content, max_pixels=max_pixels) for content in contents)
    if moderation is not None:
        pictures = list(pictures)
        if reason := moderation(text, pictures):
            raise RefusedError(reason)
    return [transform(picture) for picture in pictures]


async def moderated(answer: Piece, moderation: Moderation | None) -> Piece:
    """A whole answer; without its text if it must not pass."""
    if moderation is None:
        return answer
    reason = await asyncio.to_thread(moderation, answer.text, [])
    return replace(answer, text="", scores=[], finish_reason="content_filter") if reason else answer
