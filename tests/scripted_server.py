"""An OpenAI-compatible server on loopback that answers as a script says, faults included, and counts what it did.

    with ScriptedServer(script) as server:
        client = LLMClient(base_url=server.base_url)

A script is a function from a `Call` to a `Reply`. It runs in the server's thread.
"""

import asyncio
import json
import multiprocessing
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

FOREVER = 3600.0


@dataclass(frozen=True, kw_only=True)
class Call:
    """One POST to /v1/chat/completions, or to /v1/moderations."""

    number: int
    """From 1, in order of arrival."""
    nth: int
    """From 1, among calls with the same question."""
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def question(self) -> str:
        """Text of the last message, or what is to be moderated."""
        content = self.body["input"] if "input" in self.body else self.body["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part.get("text", "") for part in content)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server sends; by default a sound completion."""

    text: str | None = "An answer."
    finish_reason: str | None = "stop"
    refusal: str | None = None
    model: str | None = None
    """None: the one that was asked for."""
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    )
    flagged: tuple[str, ...] = ()
    """Categories, in answer to a moderation."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: str | None = None
    """A body in place of the completion."""
    delay: float = 0.0
    cut: Literal["", "before", "within"] = ""
    """Close the connection without a word, or in the middle of the body."""

    def body(self, call: Call) -> str:
        if self.raw is not None:
            return self.raw
        if self.status != HTTPStatus.OK:
            return json.dumps({"error": {"message": f"scripted {self.status}", "code": None}})
        model = self.model or call.body["model"]
        if "input" in call.body:
            categories = {name: name in self.flagged for name in ("harassment", "violence", *self.flagged)}
            scores = {name: 0.9 if is_flagged else 0.01 for name, is_flagged in categories.items()}
            result = {"flagged": bool(self.flagged), "categories": categories, "category_scores": scores}
            return json.dumps({"id": f"modr-{call.number}", "model": model, "results": [result]})
        message = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        return json.dumps(
            {
                "id": f"chatcmpl-{call.number}",
                "object": "chat.completion",
                "created": 0,
                "model": model,
                "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
                "usage": self.usage,
            }
        )

    @property
    def is_sound(self) -> bool:
        """A client is to be content with it."""
        fine = self.status == HTTPStatus.OK and not (self.raw or self.cut or self.model)
        return fine and bool((self.text or "").strip() or self.refusal) and self.delay < FOREVER


Script = Callable[[Call], Reply]


def echo(call: Call) -> Reply:
    return Reply(text=f"You asked: {call.question}")


FAULTS = {
    "rate_limited": Reply(status=429, headers={"Retry-After": "0.02"}),
    "server_error": Reply(status=500),
    "timeout": Reply(delay=FOREVER),
    "dropped": Reply(cut="before"),
    "cut_short": Reply(cut="within"),
    "truncated_json": Reply(raw='{"choices": [{"message": {"role": "assistant", "cont'),
    "malformed": Reply(raw="<html>502 Bad Gateway</html>"),
    "wrong_model": Reply(model="some-other-model"),
    "empty": Reply(text=""),
}


@dataclass(frozen=True, kw_only=True)
class Faulty:
    """A script that fails a share of the calls, the same ones whatever order they come in."""

    rate: float
    seed: int = 0
    faults: tuple[str, ...] = tuple(FAULTS)
    otherwise: Script = echo

    def __call__(self, call: Call) -> Reply:
        draw = random.Random(f"{self.seed} {call.question} {call.nth}")
        return FAULTS[draw.choice(self.faults)] if draw.random() < self.rate else self.otherwise(call)


class ScriptedServer:
    """Serves in a thread of its own for as long as its `with` block lasts."""

    def __init__(self, script: Script = echo) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.answered: Counter[str] = Counter()
        """Sound replies sent, by question."""
        self.base_url = ""
        self._asked: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Calls of one connection, until either side closes it."""
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client has gone, or the server stops
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One call; whether the connection is still good."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        call = self._note(headers, json.loads(body))
        reply = self.script(call)
        await asyncio.sleep(reply.delay)
        if reply.cut == "before":
            return False
        content = reply.body(call).encode()
        answer_headers = {"Content-Type": "application/json", "Content-Length": len(content)} | reply.headers
        writer.write(f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}\r\n".encode())
        writer.write(
            "".join(f"{name}: {value}\r\n" for name, value in answer_headers.items()).encode() + b"\r\n"
        )
        writer.write(content[: len(content) // 2] if reply.cut else content)
        await writer.drain()
        self.answered[call.question] += reply.is_sound
        return not reply.cut

    def _note(self, headers: dict[str, str], body: dict[str, Any]) -> Call:
        call = Call(number=len(self.calls) + 1, nth=1, headers=headers, body=body)
        self._asked[call.question] += 1
        call = replace(call, nth=self._asked[call.question])
        self.calls.append(call)
        return call


def starter(target: Callable[[str, Path], object]) -> Callable[[ScriptedServer, Path], BaseProcess]:
    """Starts `target(base_url, path)` in a process of its own, forked from one that has done the imports."""
    context = multiprocessing.get_context("forkserver")
    lazily_imported = [
        "httpcore2",
        "openai.resources.chat.completions.completions",
        "anyio._backends._asyncio",
    ]
    context.set_forkserver_preload([target.__module__, *lazily_imported])

    def start(server: ScriptedServer, path: Path) -> BaseProcess:
        child = context.Process(target=target, args=(server.base_url, path))
        child.start()
        return child

    return start
