"""The provider's batch API: each call is handed over once and its reply kept, whenever the program dies."""

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sparkles.journal import Journal
from sparkles.llm_client import BudgetError, ChatMessage, Completion, LLMClient, Outcome, Price, Request
from sparkles.llm_client.batch import BatchClient
from sparkles.llm_client.client import ClientError
from tests.batch_server import BatchServer
from tests.scripted_server import Call, Reply, echo

PRICE = {"scripted": Price(input=1.0, output=10.0)}


class Died(BaseException):
    """In place of a process that is killed."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-scripted-0123456789abcdef")


@pytest.fixture
def serve() -> Iterator[Callable[..., BatchServer]]:
    with ExitStack() as servers:
        yield lambda *script, **settings: servers.enter_context(BatchServer(*script, **settings))


def question(number: int, **settings: Any) -> Request:
    text = f"Question {number}?"
    return Request(model="scripted", messages=(ChatMessage("user", (text,)),), max_tokens=20, **settings)


def ask_for_charge(
    base_url: str, folder: Path, num: int, made_before: Sequence[str] = (), **settings: Any
) -> tuple[list[Outcome], LLMClient]:
    """What is answered, and the client that has booked it."""
    with Journal(folder / "replies.jsonl", sync=False) as journal:
        client = LLMClient(base_url=base_url, journal=journal, attempts=1, **settings)
        batches = BatchClient(
            client, jobs=folder / "batches.jsonl", poll_seconds=0.01, made_before=made_before
        )
        return batches.complete_all([question(number) for number in range(num)]), client


def ask(*args: Any, **settings: Any) -> list[Outcome]:
    return ask_for_charge(*args, **settings)[0]


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.text if isinstance(outcome, Completion) else outcome.reason for outcome in outcomes]


ANSWERS = [f"You asked: Question {number}?" for number in range(4)]


def test_replies_come_in_order_and_are_journalled(serve: Callable[..., BatchServer], tmp_path: Path) -> None:
    server = serve(polls=2)
    assert texts(ask(server.base_url, tmp_path, 4)) == ANSWERS
    assert texts(ask(server.base_url, tmp_path, 4)) == ANSWERS
    assert len(server.batches) == 1
    assert ask(server.base_url, tmp_path, 5)[4] != ANSWERS
    assert sorted(server.answered.values()) == [1] * 5


def test_a_call_is_sent_as_one_by_one_and_under_its_key(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve()
    with Journal(tmp_path / "replies.jsonl") as journal:
        client = LLMClient(base_url=server.base_url, journal=journal)
        request = question(1, schema={"type": "object"})
        BatchClient(client, jobs=tmp_path / "jobs.jsonl", poll_seconds=0.01).complete_all([request])
        assert journal[request.key]["structured"]
    ((custom_id, _),) = server.answered.items()
    assert custom_id == request.key
    assert '"json_schema"' in server.files["file-0"]


@pytest.mark.parametrize(
    "moment", ["POST /files", "POST /batches", "GET /batches/batch-0", "GET /files/batch-0-output"]
)
def test_a_run_that_died_goes_on_with_its_batch(
    serve: Callable[..., BatchServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It dies once the server has done what was asked, before it hears of it."""
    server = serve()
    dead = []

    def die(self: Any, *args: Any, **settings: Any) -> Any:
        response = send(self, *args, **settings)
        if (
            not dead
            and f"{response.request.method} {response.request.url.path.removeprefix('/v1')}".startswith(
                moment
            )
        ):
            dead.append(moment)
            raise Died
        return response

    send = httpx2.Client.send
    monkeypatch.setattr(httpx2.Client, "send", die)
    with pytest.raises(Died):
        ask(server.base_url, tmp_path, 4)
    assert texts(ask(server.base_url, tmp_path, 4)) == ANSWERS
    assert set(server.answered.values()) == {1}
    assert len(server.batches) == 1


def test_a_call_that_fails_leaves_the_others_alone_and_is_asked_again(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    def script(call: Call) -> Reply:
        return (
            Reply(status=500) if call.question == "Question 1?" and len(server.batches) == 1 else echo(call)
        )

    server = serve(script)
    assert texts(ask(server.base_url, tmp_path, 3)) == [ANSWERS[0], "server_error", ANSWERS[2]]
    assert texts(ask(server.base_url, tmp_path, 3)) == ANSWERS[:3]
    assert server.files["file-1" if "file-1" in server.files else "file-3"].count("custom_id") == 1


def test_how_far_a_batch_is_is_shown_and_logged(
    serve: Callable[..., BatchServer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="sparkles.llm_client.batch")
    server = serve(lambda call: Reply(status=500) if call.question == "Question 1?" else echo(call), polls=3)
    ask(server.base_url, tmp_path, 4)
    told = [record.getMessage() for record in caplog.records]
    assert told[1:] == [
        "batch batch-0: in_progress, 1 done, 0 failed of 4",
        "batch batch-0: in_progress, 2 done, 0 failed of 4",
        "batch batch-0: in_progress, 3 done, 0 failed of 4",
        "batch batch-0: completed, 3 done, 1 failed of 4",
    ]
    shown = " ".join(capsys.readouterr().out.split())
    assert "4/4 completed, 3 done, 1 failed 0:00:0" in shown


def test_a_batch_is_collected_by_its_id_where_the_folder_is_gone(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve()
    ask(server.base_url, tmp_path / "lost", 4)
    again = partial(ask, server.base_url, tmp_path / "new", made_before=["batch-0"])
    assert texts(again(4)) == ANSWERS
    assert texts(again(5)) == [*ANSWERS, "You asked: Question 4?"]
    assert set(server.answered.values()) == {1}
    assert len(server.batches) == 2


def test_an_unknown_batch_is_named(serve: Callable[..., BatchServer], tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"batches: refused_call: .*batch-7"):
        ask(serve().base_url, tmp_path, 1, made_before=["batch-7"])


def test_ctrl_c_while_it_waits_says_how_to_go_on(
    serve: Callable[..., BatchServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve()

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sparkles.llm_client.batch.time.sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(server.base_url, tmp_path, 4)
    assert "batch batch-0 goes on at the provider; the same command collects it" in caplog.text
    assert texts(ask(server.base_url, tmp_path, 4)) == ANSWERS
    assert len(server.batches) == 1


def test_what_the_budget_has_no_room_for_is_not_asked(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve()
    outcomes = ask(
        server.base_url, tmp_path, 4, prices=PRICE, budget_usd=0.0005
    )  # a call costs at most $0.0002
    assert texts(outcomes) == [*ANSWERS[:2], "budget", "budget"]
    assert server.answered.total() == 2


def test_a_budget_needs_a_price(serve: Callable[..., BatchServer], tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="no price for 'scripted'"):
        ask(serve().base_url, tmp_path, 1, budget_usd=1.0)


def test_an_endpoint_without_batches_is_named(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # knows no method: 501
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with pytest.raises(ClientError, match=r"server_error: .*mode=calls"):
            ask(f"http://127.0.0.1:{server.server_port}/v1", tmp_path, 1)
        server.shutdown()


def test_without_a_journal_there_is_nowhere_to_put_replies(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="need a journal"):
        BatchClient(LLMClient(), jobs=tmp_path / "jobs.jsonl")


# --- what comes back, and what it cost


def test_replies_may_hold_unusual_line_separators_and_blank_lines_are_passed_over(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(text="one two"))

    def with_separators(event: str) -> None:
        for name in server.files:
            if name.endswith("-output"):
                server.files[name] = "\n" + server.files[name].replace("one two", "one\u2028two\x85") + "\n\n"

    server.before_answer = with_separators
    assert texts(ask(server.base_url, tmp_path, 2)) == ["one\u2028two\x85"] * 2


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
    assert texts(ask(server.base_url, tmp_path, 2)) == ["server_error", "You asked: Question 1?"]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("batch batch-0: a line cannot be read and is passed over (JSONDecodeError")
    assert '{"custom_id"' in told[0]


def test_replies_of_another_model_are_kept_and_charged_once(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(model="some-other-model"))
    outcomes, client = ask_for_charge(server.base_url, tmp_path, 2, prices=PRICE)
    assert texts(outcomes) == ["wrong_model"] * 2
    assert client.ledger.dollars == pytest.approx(0.0004)
    with Journal(tmp_path / "batches.jsonl") as jobs:  # as if the program had died before it noted the end
        for name, job in jobs.items():
            jobs.put(name, job | {"state": "made"})
    outcomes, client = ask_for_charge(
        server.base_url, tmp_path, 2, prices=PRICE, budget_usd=0.0005
    )  # no room for another call
    assert texts(outcomes) == ["budget"] * 2
    assert client.ledger.dollars == pytest.approx(0.0004)
    outcomes, client = ask_for_charge(
        server.base_url, tmp_path, 2, prices=PRICE
    )  # another batch, which says and costs the same
    assert client.ledger.dollars == pytest.approx(0.0008)
    keys = [json.loads(line)["key"] for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert sorted(keys) == sorted(f"{question(n).key}/rejected/{m}" for n in range(2) for m in (1, 2))


def test_replies_that_tell_no_tokens_are_charged_with_the_most_that_they_can_cost(
    serve: Callable[..., BatchServer], tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(usage=None))
    _, client = ask_for_charge(server.base_url, tmp_path, 2, prices=PRICE)
    bound = client.ledger.bound(question(0))
    assert client.ledger.lost_dollars == pytest.approx(2 * bound)
    assert texts(ask(server.base_url, tmp_path, 3, prices=PRICE, budget_usd=2.5 * bound)) == [
        "An answer."
    ] * 2 + ["budget"]
