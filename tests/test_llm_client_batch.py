"""What batches send back is read line by line, and all that was paid for is charged."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sparkles.journal import Journal
from sparkles.llm_client import ChatMessage, Completion, LLMClient, Outcome, Price, Request
from sparkles.llm_client.batch import BatchClient
from tests.batch_server import BatchServer
from tests.scripted_server import Reply

PRICES = {"scripted": Price(input=1.0, output=10.0)}
"""A scripted reply costs $0.0002, and may cost nearly as much again."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-scripted-0123456789abcdef")


@pytest.fixture
def serve() -> Iterator[Callable[..., BatchServer]]:
    with ExitStack() as servers:
        yield lambda *script: servers.enter_context(BatchServer(*script))


def question(number: int) -> Request:
    return Request(model="scripted", messages=(ChatMessage("user", (f"Question {number}?",)),), max_tokens=20)


def ask(
    server: BatchServer, folder: Path, num: int = 2, **settings: float
) -> tuple[list[Outcome], LLMClient]:
    with Journal(folder / "replies.jsonl", sync=False) as journal:
        client = LLMClient(
            base_url=server.base_url, journal=journal, attempts=1, prices=PRICES, aliases=(), **settings
        )
        batches = BatchClient(client, jobs=folder / "batches.jsonl", poll_seconds=0.01)
        return batches.complete_all([question(number) for number in range(num)]), client


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.text if isinstance(outcome, Completion) else outcome.reason for outcome in outcomes]


def test_replies_may_hold_unusual_line_separators_and_blank_lines_are_passed_over(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(text="one two"))

    def with_separators(event: str) -> None:
        for name in server.files:
            if name.endswith("-output"):
                server.files[name] = "\n" + server.files[name].replace("one two", "one\u2028two\x85") + "\n\n"

    server.before_answer = with_separators
    assert texts(ask(server, tmp_path)[0]) == ["one\u2028two\x85"] * 2


def test_a_line_that_cannot_be_read_is_told_and_leaves_the_others_alone(
    serve: Callable[..., BatchServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="sparkles.llm_client.batch")
    server = serve()

    def tear(event: str) -> None:
        if "batch-0-output" in server.files:
            first, second = server.files["batch-0-output"].split("\n")[:2]
            server.files["batch-0-output"] = "\n".join([first[:40], second, "[]"])

    server.before_answer = tear
    assert texts(ask(server, tmp_path)[0]) == ["server_error", "You asked: Question 1?"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("batch batch-0: a line cannot be read and is passed over (JSONDecodeError")
    assert '{"custom_id"' in told[0]


def test_replies_of_another_model_are_kept_and_charged_once(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(model="some-other-model"))
    outcomes, client = ask(server, tmp_path)
    assert texts(outcomes) == ["wrong_model"] * 2
    assert client.ledger.dollars == pytest.approx(0.0004)
    with Journal(tmp_path / "batches.jsonl") as jobs:  # as if the program had died before it noted the end
        for name, job in jobs.items():
            jobs.put(name, job | {"state": "made"})
    outcomes, client = ask(server, tmp_path, budget_usd=0.0005)  # no room for another call
    assert texts(outcomes) == ["budget"] * 2
    assert client.ledger.dollars == pytest.approx(0.0004)
    outcomes, client = ask(server, tmp_path)  # another batch, which says and costs the same
    assert client.ledger.dollars == pytest.approx(0.0008)
    keys = [json.loads(line)["key"] for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert sorted(keys) == sorted(f"{question(n).key}/rejected/{m}" for n in range(2) for m in (1, 2))


def test_replies_that_tell_no_tokens_are_charged_with_the_most_that_they_can_cost(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(usage=None))
    _, client = ask(server, tmp_path)
    bound = client.ledger.bound(question(0))
    assert client.ledger.lost_dollars == pytest.approx(2 * bound)
    assert texts(ask(server, tmp_path, 3, budget_usd=2.5 * bound)[0]) == ["An answer."] * 2 + ["budget"]
