"""The endpoint that programs which know OpenAI's already speak to: `/v1/models` and `/v1/chat/completions`."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from openai.types import Model
from starlette.exceptions import HTTPException

from sparkles.serve.engine import Engine
from sparkles.serve.errors import ApiError
from sparkles.serve.gate import Gate
from sparkles.serve.limits import Limits
from sparkles.serve.moderation import Moderation, moderated
from sparkles.serve.protocol import ChatRequest
from sparkles.serve.question import EngineError, LateError, Piece, Question, Sampling
from sparkles.serve.reading import RequestReader
from sparkles.serve.replies import Reply, merged

T = TypeVar("T")


def build_app(
    engine: Engine,
    *,
    name: str,
    defaults: Sampling,
    limits: Limits | None = None,
    api_key: str | None = None,
    image_urls: bool = False,
    moderation: Moderation | None = None,
) -> FastAPI:
    """The application, for uvicorn or any other ASGI server.

    Args:
        name: of the model, as clients ask for it.
        defaults: of what a request does not say.
        api_key: that clients must send. Without one, only requests to this machine by its own name are heard.
        image_urls: fetch pictures from http and https URLs at public addresses, too.
        moderation: reads what is asked and what is answered. A streamed answer is then sent when it is complete.
    """
    limits = limits or Limits()
    reader = RequestReader(
        engine=engine, limits=limits, defaults=defaults, image_urls=image_urls, moderation=moderation
    )
    service = ChatService(engine, reader, name=name, moderation=moderation)
    # No pages about itself: they would load scripts from elsewhere.
    app = FastAPI(openapi_url=None)
    app.add_middleware(Gate, engine=engine, limits=limits, api_key=api_key)
    app.add_api_route("/v1/models", service.models, methods=["GET"], response_model=None)
    app.add_api_route("/v1/models/{model}", service.model, methods=["GET"], response_model=None)
    app.add_api_route("/v1/chat/completions", service.complete, methods=["POST"], response_model=None)
    for kind in (ApiError, LateError, EngineError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_with_error)
    return app


class ChatService:
    """What the endpoint does once a request has been read."""

    def __init__(
        self, engine: Engine, reader: RequestReader, *, name: str, moderation: Moderation | None
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._name = name
        self._moderation = moderation

    async def models(self) -> Response:
        """The one model that there is, in a list."""
        return JSONResponse({"object": "list", "data": [self._description()]})

    async def model(self, model: str) -> Response:
        """What is known of it."""
        self._check_name(model)
        return JSONResponse(self._description())

    async def complete(self, body: ChatRequest, request: Request) -> Response:
        """The answer, whole or as a stream of events."""
        self._check_name(body.model)
        question = await self._reader.read(body)
        reply = Reply(question, model=self._name)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = self._events(question, reply, with_usage=with_usage)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        answers = await _unless_gone(request, self._answers(question))
        if answers is None:
            return Response(status_code=499)  # which nobody reads; nginx's number for it
        return Response(reply.whole(answers).to_json(indent=None), media_type="application/json")

    async def _events(self, question: Question, reply: Reply, *, with_usage: bool) -> AsyncIterator[str]:
        num_tokens = dict.fromkeys(range(question.choices), 0)
        for choice in num_tokens:
            yield _event(reply.start(choice).to_json(indent=None))
        try:
            async with aclosing(self._pieces(question)) as pieces:
                async for piece in pieces:
                    num_tokens[piece.choice] = piece.num_tokens
                    yield _event(reply.part(piece).to_json(indent=None))
        except (LateError, EngineError) as error:  # too late for another status
            yield _event(json.dumps(_api_error(error).body()))
            return
        if with_usage:
            yield _event(reply.end(sum(num_tokens.values())).to_json(indent=None))
        yield _event("[DONE]")

    async def _pieces(self, question: Question) -> AsyncGenerator[Piece]:
        """As they come; where they are to be judged, each choice whole."""
        if self._moderation is None:
            async with aclosing(self._engine.answer(question)) as pieces:
                async for piece in pieces:
                    yield piece
        else:
            for piece in await self._answers(question):
                yield piece

    async def _answers(self, question: Question) -> list[Piece]:
        """Each choice whole, and without its text if it must not pass."""
        async with aclosing(self._engine.answer(replace(question, in_pieces=False))) as pieces:
            answers = merged([piece async for piece in pieces])
        return [await moderated(answer, self._moderation) for answer in answers]

    def _description(self) -> dict[str, Any]:
        return Model(id=self._name, object="model", created=0, owned_by="sparkles").to_dict()

    def _check_name(self, model: str) -> None:
        if model != self._name:
            raise ApiError(
                404,
                f"there is no model {model[:80]!r}; this is {self._name!r}",
                param="model",
                code="model_not_found",
            )


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result; None, and the work is given up, if the client goes away before."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _event(data: str) -> str:
    return f"data: {data}\n\n"


async def _answer_with_error(_: Request, error: Exception) -> Response:
    return _api_error(error).response()


def _api_error(error: Exception) -> ApiError:
    """What the client is told: of a bug, nothing."""
    match error:
        case ApiError():
            return error
        case LateError():
            return ApiError(503, f"{error}; ask again later", code="overloaded", headers={"Retry-After": "5"})
        case RequestValidationError():
            first = error.errors()[0]
            steps = () if first["type"] == "json_invalid" else first["loc"][1:]  # there it is a position
            place = ".".join(map(str, steps))[:200]
            return ApiError(400, f"{place or 'the body'}: {first['msg'][:200]}", param=place or None)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail), headers=error.headers)
        case EngineError():
            return ApiError(500, str(error))
        case _:
            return ApiError(500, "the server failed; its log says why")
