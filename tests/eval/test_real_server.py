"""Endpoint responder and client against a server that is not ours: `transformers serve` with tiny random models."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sparkles.eval.bison import Bison
from sparkles.eval.endpoint import EndpointResponder
from sparkles.eval.run import evaluate
from sparkles.llm_client import LLMClient
from sparkles.types import Prompt
from tests.transformers_server import NEEDS_SERVER, PATCH, SIDE, save_model, transformers_server

pytestmark = NEEDS_SERVER


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with transformers_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture
def responder(base_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> EndpointResponder:
    """With the tiny model that `sees` pictures, or with the one that does not."""
    folder = save_model(tmp_path / "model", sees=request.param)
    client = partial(LLMClient, base_url=base_url, attempts=1, timeout=60.0, concurrency=1)
    return EndpointResponder(
        model=str(folder), client=client, captions=not request.param, max_tokens=8,
        journal=tmp_path / "journal.jsonl",
    )  # fmt: skip


@pytest.mark.parametrize("responder", [True, False], indirect=True, ids=["pictures", "captions"])
def test_a_dialogue_is_answered_and_every_picture_counted(
    responder: EndpointResponder, prompt: Prompt, tmp_path: Path
) -> None:
    [response] = responder.respond([prompt])
    assert response.failure == ""
    [record] = [json.loads(line)["record"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    spelled = "user: See IMAGE#1{}!\nassistant: I do.\nuser: And IMAGE#2{}?\nassistant: "
    shown = (
        ["", ""] if not responder.captions else [" [caption: something red]", " [caption: something green]"]
    )
    image_tokens = 0 if responder.captions else 2 * (SIDE // PATCH) ** 2
    assert record["usage"]["input_tokens"] == len(spelled.format(*shown)) + image_tokens
    assert record["usage"]["output_tokens"] <= 8
    assert responder.endpoints[0]["answered_by"] == [record["model"]]


@pytest.mark.parametrize("responder", [True], indirect=True)
def test_a_benchmark_runs_on_it(
    responder: EndpointResponder, bison_file: Path, pictures: Path, tmp_path: Path
) -> None:
    benchmark = Bison(annotations=bison_file, images=pictures)
    metrics = evaluate([benchmark], responder, None, tmp_path / "run", progress=False)
    assert (metrics["bison/num"], metrics["bison/unscored"]) == (4, 4)  # random weights conclude nothing


@pytest.mark.parametrize("responder", [True], indirect=True)
def test_another_picture_is_another_question(
    responder: EndpointResponder, prompt: Prompt, pictures: Path
) -> None:
    """Greedy answers of 8 random tokens; the same but for one picture."""
    from dataclasses import replace

    other = replace(prompt.messages[2], images=(replace(prompt.images[1], path=pictures / "33.jpg"),))
    both = responder.respond([prompt, replace(prompt, messages=(*prompt.messages[:2], other))])
    assert [response.failure for response in both] == ["", ""]
