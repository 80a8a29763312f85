import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import uvicorn
from omegaconf import OmegaConf
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

import sparkles.serve.__main__ as serving
from sparkles.serve import api
from sparkles.serve.__main__ import main

RunMain = Callable[..., None]


@pytest.fixture
def served(run_main: RunMain, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What a command line makes of the application and of uvicorn, which is not started."""
    monkeypatch.delenv("SPARKLES_API_KEY", raising=False)

    def run(*arguments: str) -> dict[str, Any]:
        with (
            mock.patch.object(api, "build_app", wraps=api.build_app) as build_app,
            mock.patch.object(uvicorn.Server, "run", autospec=True) as serve,
        ):
            run_main(main, "api", *arguments)
        return build_app.call_args.kwargs | vars(serve.call_args.args[0].config)

    return run


def test_nano_is_served_on_this_machine_alone(served: Callable[..., dict[str, Any]]) -> None:
    settings = served("port=1234", "limits.images=3")
    assert (settings["host"], settings["port"], settings["api_key"]) == ("127.0.0.1", 1234, None)
    assert settings["limits"].images == 3
    assert settings["image_urls"] is False
    assert settings["defaults"].max_tokens == 220


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [([], None, 3), (["threads=5"], "2", 5), ([], "2", 0)],
    ids=["half of the cores", "as configured", "as the environment says"],
)
def test_torch_leaves_cores_to_those_who_ask(
    served: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: str | None,
    expected: int,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    served("port=1234", *arguments)
    assert chosen == ([expected] if expected else [])


def test_a_key_from_the_environment_opens_the_server_to_the_network(
    served: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPARKLES_API_KEY", "s3cret")
    settings = served("host=0.0.0.0")
    assert (settings["host"], settings["api_key"]) == ("0.0.0.0", "s3cret")
    assert "s3cret" not in "".join(capfd.readouterr())


def test_without_a_key_it_is_not_opened(
    served: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        served("host=0.0.0.0")
    said = capsys.readouterr().err
    assert "host=0.0.0.0 would open the server to the network" in said
    assert "set SPARKLES_API_KEY" in said
    assert "Traceback" not in said


@pytest.fixture
def chatted(run_main: RunMain, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What a command line makes of the page and of uvicorn, which is not started."""
    page = pytest.importorskip("sparkles.serve.page.app", reason="needs gradio", exc_type=ImportError)
    monkeypatch.delenv("SPARKLES_PASSWORD", raising=False)

    def run(*arguments: str) -> dict[str, Any]:
        with (
            mock.patch.object(page, "build_page") as build_page,
            mock.patch.object(serving, "_serve") as serve,
        ):
            run_main(main, "chat", *arguments)
        (chat,) = build_page.call_args.args
        _, _, cfg = serve.call_args.args
        return {**cfg, "limits": chat.limits, **build_page.call_args.kwargs, **serve.call_args.kwargs}

    return run


def test_the_page_is_for_this_machine_and_says_what_nano_can_talk_about(
    chatted: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    settings = chatted("limits.tokens=99", f"feedback={tmp_path}", "sampling.temperature=0.5")
    assert (settings["host"], settings["port"], settings["password"]) == ("127.0.0.1", 7860, None)
    assert settings["about"].startswith("This is nano")
    assert (settings["limits"].tokens, settings["defaults"].temperature) == (99, 0.5)
    assert len(settings["examples"]) >= 3
    assert settings["feedback"].folder == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_another_model_says_nothing_of_nano(chatted: Callable[..., dict[str, Any]]) -> None:
    settings = chatted("model=nano", "feedback=null", "examples=null", "password=s3cret")
    assert (settings["about"], settings["feedback"], settings["examples"]) == ("", None, [])
    assert settings["password"] == "s3cret"


def test_ctrl_c_stops_the_answers_of_the_page_and_is_said_to(
    chatted: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = chatted()
    assert settings["at_end"] == settings["visitors"].stop
    assert "Ctrl-C stops the answers, and ends it" in capsys.readouterr().out


def test_ctrl_c_lets_the_endpoint_end_its_answers_and_is_said_to(
    served: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert served("engine.seconds=77")["timeout_graceful_shutdown"] == 77
    assert "Ctrl-C ends it when those who wait have their answers" in capsys.readouterr().out


class Waiting:
    """An application whose answer waits for `is_over`; meanwhile Ctrl-C is pressed, so many times."""

    def __init__(self, *, presses: int) -> None:
        self.is_over = threading.Event()
        self.presses = presses
        self.has_answered = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Starlette()(scope, receive, send)
            return
        for _ in range(self.presses):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0.3)
        while not self.is_over.is_set():
            await asyncio.sleep(0.01)
        await PlainTextResponse("an answer")(scope, receive, send)
        self.has_answered = True


Interrupted = Callable[..., str]


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Interrupted]:
    """Serves an application until it ends, on one request; what is logged."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "filters", [])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # may have been switched off

    def serve(app: Waiting, **options: Any) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        client = threading.Thread(target=_request, args=[port])
        client.start()
        engine = mock.Mock()
        serving._serve(app, engine, OmegaConf.create({"host": "127.0.0.1", "port": port}), **options)
        client.join()
        engine.close.assert_called_once_with()
        return capsys.readouterr().err

    yield serve
    signal.signal(signal.SIGINT, before)


def _request(port: int) -> None:
    while True:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while connection.recv(1_000):
                pass
            return
        time.sleep(0.01)


def test_requests_in_flight_learn_that_the_server_ends(interrupted: Interrupted) -> None:
    app = Waiting(presses=1)
    said = interrupted(app, patience=60, at_end=app.is_over.set)
    assert app.has_answered
    assert "ERROR" not in said


@pytest.mark.parametrize(("presses", "patience"), [(1, 1), (2, 60)], ids=["patience", "second Ctrl-C"])
def test_requests_that_are_cut_off_leave_no_traceback(
    interrupted: Interrupted, presses: int, patience: int
) -> None:
    app = Waiting(presses=presses)
    said = interrupted(app, patience=patience)
    assert not app.has_answered
    assert "Finished server process" in said
    assert "Traceback" not in said


def test_a_page_without_a_password_is_not_opened(
    chatted: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        chatted("host=0.0.0.0")
    assert "set SPARKLES_PASSWORD" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], None), (["sing"], 1), ([], 1)])
def test_commands_are_listed(
    run_main: RunMain, arguments: list[str], code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(main, *arguments)
    said = capsys.readouterr().out + str(exit_.value.code or "")
    assert "tui" in said
    assert "an OpenAI-compatible endpoint" in said
    assert "a web page" in said
    assert (exit_.value.code is None) == (code is None)
