"""Where somebody's judgement of questions and answers comes in, for the endpoint and for the page."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import PIL.Image

from sparkles.serve.question import Piece


class Moderation(Protocol):
    """Judges what users ask, and what the model answers before they see it."""

    def __call__(self, text: str, pictures: Sequence[PIL.Image.Image]) -> str:
        """Why this must not pass; "" if it may. Called from several threads, without pictures for an answer."""
        ...


async def moderated(answer: Piece, moderation: Moderation | None) -> Piece:
    """A whole answer; without its text if it must not pass."""
    if moderation is None:
        return answer
    reason = await asyncio.to_thread(moderation, answer.text, [])
    return replace(answer, text="", scores=[], finish_reason="content_filter") if reason else answer
