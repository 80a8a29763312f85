"""From requests to questions."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.serve import moderation
from sparkles.serve.engine import Engine
from sparkles.serve.errors import ApiError
from sparkles.serve.limits import Limits
from sparkles.serve.protocol import ChatRequest
from sparkles.serve.question import Sampling
from sparkles.serve.reading import RequestReader
from tests.serve.conftest import MODEL, data_url

Scenes = Callable[[int], list[Path]]


def request(*urls: str) -> ChatRequest:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return ChatRequest.model_validate({"model": MODEL, "messages": [{"role": "user", "content": parts}]})


def reader_for(engine: Engine, **options: Any) -> RequestReader:
    return RequestReader(engine=engine, limits=Limits(), defaults=Sampling(max_tokens=8), **options)


def test_no_more_than_one_picture_is_unpacked_at_a_time(
    engine: Engine, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    decode, transform = moderation.decode, engine.transform

    def noted_decode(content: bytes, **options: Any) -> PIL.Image.Image:
        done.append("unpacked")
        return decode(content, **options)

    def noted_transform(picture: PIL.Image.Image) -> Any:
        done.append("seen")
        return transform(picture)

    monkeypatch.setattr(moderation, "decode", noted_decode)
    monkeypatch.setattr(engine, "transform", noted_transform)
    question = asyncio.run(reader_for(engine).read(request(*map(data_url, scenes(3)))))
    assert len(question.pixel_values) == 3
    assert done == ["unpacked", "seen"] * 3


def test_when_a_picture_is_not_to_be_had_no_other_is_fetched_any_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches: list[str] = []

    async def fetch(url: str) -> bytes:
        fetches.append("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            fetches.append("given up")
            raise
        return b""

    reader = reader_for(engine, image_urls=True)
    monkeypatch.setattr(reader.web, "fetch", fetch)

    async def ask() -> None:
        with pytest.raises(ApiError, match="base64") as refused:
            await reader.read(request("https://example.org/a.png", "data:image/png;base64,%"))
        assert refused.value.status == 400
        assert fetches == ["begun", "given up"]

    asyncio.run(ask())


def test_a_request_without_pictures_does_not_wait_for_those_of_others(
    engine: Engine, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_for(engine)
    goes_on = threading.Event()
    decode = moderation.decode

    def slow_decode(content: bytes, **options: Any) -> PIL.Image.Image:
        assert goes_on.wait(20)
        return decode(content, **options)

    monkeypatch.setattr(moderation, "decode", slow_decode)
    text = ChatRequest.model_validate({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]})

    async def ask() -> None:
        many = [asyncio.ensure_future(reader.read(request(data_url(scenes(1)[0])))) for _ in range(20)]
        await asyncio.sleep(0.2)  # they hold all threads for pictures
        async with asyncio.timeout(10):
            await reader.read(text)
        assert not any(one.done() for one in many)
        goes_on.set()
        await asyncio.gather(*many)

    asyncio.run(ask())
