"""What every request passes."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sparkles.serve import gate
from sparkles.serve.gate import Gate
from sparkles.serve.limits import Limits


class Places:
    """Counts those that are taken."""

    def __init__(self) -> None:
        self.taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        self.taken += 1
        yield
        self.taken -= 1


def test_a_client_that_does_not_read_its_answer_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_READ_SECONDS", 0.05)
    places, sent = Places(), []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def parts() -> Iterator[str]:  # type: ignore[misc]
            while True:
                yield "word "

        await StreamingResponse(parts())(scope, receive, send)

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 3:
            await asyncio.sleep(60)

    async def receive() -> Message:
        if not sent:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "asgi": {"spec_version": "2.4"},
        "method": "POST",
        "path": "/",
        "headers": [(b"host", b"localhost")],
    }
    app = Gate(answer, engine=places, limits=Limits())
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 20))
    assert len(sent) == 4
    assert places.taken == 0


def test_a_bug_of_the_application_is_not_taken_for_a_deaf_client() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        raise AssertionError("nothing is to be sent")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Gate(broken, engine=Places(), limits=Limits())(scope, receive, send))
