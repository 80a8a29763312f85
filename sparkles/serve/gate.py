"""What every request passes before the application sees any of it: the key, room for it, and its size and time."""

import asyncio
import hmac
import logging
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparkles.serve.errors import ApiError
from sparkles.serve.limits import Limits
from sparkles.serve.question import FullError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_RETRY_AFTER = {"Retry-After": "1"}
_SLOWEST_BYTES_PER_SECOND = 10_000
"""With which large requests may still arrive, from a phone."""
_READ_SECONDS = 30.0
"""How long a client may let a part of its answer lie: it holds a place."""
_DRAIN_SECONDS = 0.5
"""How long a client that was refused may go on to send: it reads the answer only then."""


log = logging.getLogger(__name__)


class HasPlaces(Protocol):
    """An `Engine`, as far as it matters here."""

    def place(self) -> AbstractContextManager[None]:
        """Raises FullError without a free one."""
        ...


class Gate:
    """An ASGI middleware that hands on whole requests.

    Args:
        api_key: that must be sent as `Authorization: Bearer ...`. None lets everyone in who asks for this machine by a
            name of its own: a page from elsewhere, whose name was made to lead here, does not.
        any_host: lets all others in too, where the application asks for a password itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        engine: HasPlaces,
        limits: Limits,
        api_key: str | None = None,
        any_host: bool = False,
    ) -> None:
        self.app = app
        self.engine = engine
        self.limits = limits
        self._any_host = any_host
        self._authorization = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_key(Headers(scope=scope))
            with self.engine.place() if scope["method"] == "POST" else nullcontext():
                body = await self._read(receive, Headers(scope=scope))
                await _while_it_is_read(self.app, scope, _replayed(body, receive), send)
                return
        except FullError as error:
            refusal = ApiError(429, f"{error}; ask again later", code="queue_full", headers=_RETRY_AFTER)
        except ApiError as error:
            refusal = error
        await _drain(receive)
        await refusal.response()(scope, receive, send)

    def _check_key(self, headers: Headers) -> None:
        if self._authorization is None:
            if not self._any_host and _host_name(headers) not in LOOPBACK:
                raise ApiError(
                    403, f"without an API key this server is asked as {' or '.join(LOOPBACK)} only"
                )
            return
        given = headers.get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, self._authorization):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, receive: Receive, headers: Headers) -> bytes:
        limit = self.limits.body_bytes
        length = headers.get("content-length", "0")
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(self.limits.body_seconds) as patience:
                latest = patience.when() or 0.0
                while more and len(body) <= limit and int(length) <= limit:
                    message = await receive()
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    patience.reschedule(latest + len(body) / _SLOWEST_BYTES_PER_SECOND)
        except TimeoutError as error:
            raise ApiError(
                408, f"the request arrived too slowly: {len(body):,} bytes of it in the time for them"
            ) from error
        if more or len(body) > limit:
            raise ApiError(413, f"the request has more than {limit:,} bytes", code="request_too_large")
        return bytes(body)


def _host_name(headers: Headers) -> str | None:
    """By what name the server was asked; None if that is no name."""
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body at once, then what else comes: that the client has gone."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


async def _drain(receive: Receive) -> None:
    """Throw away what a refused client still sends; a connection that is closed before may lose the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (await receive()).get("more_body", False):
                pass


async def _while_it_is_read(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let the application answer; a client that does not take the answer in is given up."""
    is_given_up = False

    async def send_soon(message: Message) -> None:
        nonlocal is_given_up
        try:
            async with asyncio.timeout(0 if is_given_up else _READ_SECONDS):
                await send(message)
        except TimeoutError as error:
            is_given_up = True
            raise OSError("the client does not read") from error  # as if it had gone

    try:
        await app(scope, receive, send_soon)
    except Exception:
        if not is_given_up:
            raise
        log.info("gave up a client that did not read its answer for %g seconds", _READ_SECONDS)
