from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import uvicorn

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
            mock.patch.object(uvicorn, "run") as serve,
        ):
            run_main(main, "api", *arguments)
        return build_app.call_args.kwargs | serve.call_args.kwargs

    return run


def test_nano_is_served_on_this_machine_alone(served: Callable[..., dict[str, Any]]) -> None:
    settings = served("port=1234", "limits.images=3")
    assert (settings["host"], settings["port"], settings["api_key"]) == ("127.0.0.1", 1234, None)
    assert settings["limits"].images == 3
    assert settings["image_urls"] is False
    assert settings["defaults"].max_tokens == 220


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


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], None), (["sing"], 1), ([], 1)])
def test_commands_are_listed(
    run_main: RunMain, arguments: list[str], code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(main, *arguments)
    said = capsys.readouterr().out + str(exit_.value.code or "")
    assert "tui" in said
    assert "an OpenAI-compatible endpoint" in said
    assert (exit_.value.code is None) == (code is None)
