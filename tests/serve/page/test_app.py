"""The page's server, as one without a browser meets it."""

from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from sparkles.serve.conversation import Chat, Visitors
from sparkles.serve.engine import Engine
from sparkles.serve.limits import Limits
from sparkles.serve.question import Sampling

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'sparkles[serve]'")


@pytest.fixture
def visit(engine: Engine) -> Callable[..., TestClient]:
    from sparkles.serve.page.app import build_page

    def visit(host: str = "127.0.0.1", limits: Limits | None = None, **options: Any) -> TestClient:
        page = build_page(
            Chat(engine, limits=limits),
            name="Nano",
            defaults=Sampling(max_tokens=8),
            visitors=Visitors(),
            **options,
        )
        return TestClient(page, base_url=f"http://{host}")

    return visit


def test_no_route_takes_files_or_reads_any(visit: Callable[..., TestClient]) -> None:
    client = visit()
    assert client.get("/config").status_code == 200
    assert client.post("/gradio_api/upload", files={"files": b"content"}).status_code == 404
    for path in (
        "gradio_api/file=/etc/passwd",
        "gradio_api/proxy=http://10.0.0.1/",
        "gradio_api/vibe-code",
        "gradio_api/stream/1/2/3/playlist-file",
        "monitoring",
        "static/../../../../etc/passwd",
    ):
        assert client.get(f"/{path}").status_code in (403, 404), path


def test_gradio_says_nothing_to_screen_readers(visit: Callable[..., TestClient]) -> None:
    """What it has to say is "Loading" and "common.complete", after whatever was done."""
    events = visit().get("/config").json()["dependencies"]
    assert {event["show_progress"] for event in events} == {"hidden"}


def test_without_a_password_only_this_machine_is_heard(visit: Callable[..., TestClient]) -> None:
    assert visit("localhost").get("/").status_code == 200
    assert visit("rebound.example").get("/").status_code == 403


def test_with_a_password_nothing_is_told_before_it_is_given(visit: Callable[..., TestClient]) -> None:
    client = visit("chat.example", password="s3cret")
    assert client.get("/config").status_code == 401
    assert client.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0}).status_code == 401
    assert client.post("/login", data={"username": "sparkles", "password": "guess"}).status_code == 400
    assert client.post("/login", data={"username": "sparkles", "password": "s3cret"}).status_code == 200
    assert client.get("/config").status_code == 200


def test_large_requests_are_refused(visit: Callable[..., TestClient]) -> None:
    client = visit(limits=Limits(body_bytes=1_000))
    response = client.post("/gradio_api/queue/join", content=b"x" * 2_000)
    assert response.status_code == 413
    assert "1,000 bytes" in response.text
