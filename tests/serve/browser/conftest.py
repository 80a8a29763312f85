"""The chat's page in a real browser, in front of an engine that remembers what it was asked."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sparkles.data.images import load_image
from sparkles.prompt_format import IMAGE_END, IMAGE_START
from sparkles.serve.conversation import Chat, Visitors
from sparkles.serve.engine import Engine
from sparkles.serve.feedback import Feedback
from sparkles.serve.limits import Limits
from sparkles.serve.question import Piece, Question, Sampling
from sparkles.serve.starters import Example
from sparkles.types import IMAGE_TOKEN_ID, Image
from tests.browser import find_chromium
from tests.serve.conftest import MAX_TOKENS, Nano, data_url
from tests.serve.running_server import RunningServer

if TYPE_CHECKING:
    from tests.serve.browser.chat_page import ChatPage

WAIT = 20_000
"""Milliseconds until a page on a busy machine has failed."""


class RecordingEngine(Engine):
    """Remembers the questions; `pause` seconds pass between the pieces of an answer."""

    def __init__(self, scenes: list[Path], **options: Any) -> None:
        super().__init__(**options)
        self._scenes = [self.transform(load_image(Image(image_id=0, path=path))) for path in scenes]
        self.asked: list[Question] = []
        self.pause = 0.0

    async def answer(self, question: Question) -> AsyncGenerator[Piece]:
        self.asked.append(question)
        async with aclosing(super().answer(question)) as pieces:
            async for piece in pieces:
                await asyncio.sleep(self.pause)
                yield piece

    def prompt(self, index: int = -1) -> str:
        """What reached the model: words, and [scene N] where it sees the picture of that scene."""
        question = self.asked[index]
        pixels = iter(question.pixel_values)
        text = ""
        for is_image, ids in groupby(question.encoded.input_ids, lambda token_id: token_id == IMAGE_TOKEN_ID):
            tokens = list(ids)
            if not is_image:
                text += self.encoder.tokenizer.decode(tokens)
                continue
            for _ in range(len(tokens) // self.encoder.num_query_tokens):
                seen = next(pixels)
                (number,) = (n for n, scene in enumerate(self._scenes) if scene.equal(seen))
                text += f"[scene {number}]"
        assert next(pixels, None) is None
        return text.replace(IMAGE_START, "").replace(IMAGE_END, "")

    def question(self, index: int = -1) -> str:
        """The last one of a prompt."""
        return self.prompt(index).split("Human: ")[-1].split("###")[0]


@pytest.fixture(scope="session")
def pictures(scenes: Callable[[int], list[Path]]) -> list[Path]:
    """Four different scenes."""
    return scenes(4)


@pytest.fixture(scope="session")
def recording(nano: Nano, pictures: list[Path]) -> Iterator[RecordingEngine]:
    engine = RecordingEngine(pictures, model=nano.model, encoder=nano.encoder, transform=nano.transform)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of rated answers."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="session")
def address(recording: RecordingEngine, pictures: list[Path], kept: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sparkles[serve]'")
    from sparkles.serve.page.app import build_page

    question = ({"text": "Describe "}, {"picture": data_url(pictures[3])}, {"text": " briefly."})
    app = build_page(
        Chat(recording, limits=Limits(images=4)),
        name="Nano",
        defaults=Sampling(max_tokens=MAX_TOKENS),
        visitors=Visitors(),
        examples=[Example(title="One scene", questions=(question, ({"text": "Are you sure?"},)))],
        feedback=Feedback(kept, model="Nano"),
        about="It knows drawn scenes.",
    )
    with RunningServer(app) as server:
        yield f"http://127.0.0.1:{server.port}/"


def serving(engine: Engine, *, port: int = 0, patience: int | None = None) -> RunningServer:
    """Another server, which can be ended and begun again at its port."""
    from sparkles.serve.page.app import build_page

    app = build_page(Chat(engine), name="Nano", defaults=Sampling(max_tokens=8), visitors=Visitors())
    return RunningServer(app, port=port, patience=patience)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Not for the session: playwright keeps an event loop running in this thread, and other tests run their own."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    sync_api.expect.set_options(timeout=WAIT)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser: Any) -> Any:
    """What pages share, so that each need not load gradio again: nothing that tells visitors from each other."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.add_init_script(
        "if (location.protocol === 'http:' && !sessionStorage.known) { localStorage.clear(); sessionStorage.known = 1 }"
    )
    return context


@pytest.fixture
def page(context: Any, recording: RecordingEngine) -> Iterator[Any]:
    """A page of a new visitor, 1280 pixels wide. It asks nothing of anyone but the chat's server, and has no errors."""
    recording.pause = 0.0
    outside: list[str] = []
    failures: list[str] = []
    page = context.new_page()
    page.on("request", lambda sent: outside.append(sent.url) if not _is_local(sent.url) else None)
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield page
    page.close()
    assert outside == []
    assert failures == []


def _is_local(url: str) -> bool:
    return re.match(r"(http://127\.0\.0\.1:|data:|blob:|about:)", url) is not None


@pytest.fixture
def chat(page: Any, address: str) -> "ChatPage":
    from tests.serve.browser.chat_page import ChatPage

    return ChatPage(page).open(address)
