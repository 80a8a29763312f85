"""What the page is told, without a browser."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from sparkles.serve.conversation import Chat, Visitors
from sparkles.serve.engine import Engine
from sparkles.serve.question import Piece, Question

gradio = pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sparkles[serve]'")

SECRET = "s" * 43
SETTINGS = (0.0, 1.0, 1, 8, 0)


class _BrokenEngine:
    """Has a bug."""

    def __init__(self, engine: Engine) -> None:
        self.encoder, self.transform, self.place = engine.encoder, engine.transform, engine.place

    async def answer(self, question: Question) -> AsyncGenerator[Piece]:
        raise ZeroDivisionError("a bug")
        yield


def test_a_bug_of_the_server_hands_the_question_back(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    from sparkles.serve.page.handlers import Handlers

    chat = Chat(_BrokenEngine(engine))  # type: ignore[arg-type]
    handlers = Handlers(chat, name="Nano", visitors=Visitors(), examples=(), feedback=None)
    parts = [{"text": "Is it red?"}]

    async def ask() -> list[dict[str, Any]]:
        key = handlers.visitors.welcome(SECRET).current.key
        event = gradio.EventData(None, {"parts": parts, "key": key, "turns": 0, "tries": 0})
        return [view async for view, _ in handlers.ask(event, SECRET, *SETTINGS)]

    with caplog.at_level(logging.ERROR):
        *_, view = asyncio.run(ask())
    assert "failed at this question" in view["notice"]
    assert view["handover"]["parts"] == parts
    assert view["turns"] == []
    assert "ZeroDivisionError" in caplog.text
