"""The client against a server that misbehaves: each request is answered once, paid for once, and never lost."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.journal import Journal
from sparkles.llm_client import (
    BudgetError,
    ChatMessage,
    Completion,
    Failure,
    LLMClient,
    ModerationRequest,
    Outcome,
    Price,
    Request,
    RequestError,
    Usage,
    chat_messages,
)
from sparkles.llm_client.client import ClientError
from sparkles.llm_client.costs import Ledger
from sparkles.prompt_format import PromptFormatError, image_reference
from sparkles.types import Image, Message
from tests.scripted_server import FAULTS, FOREVER, Call, Faulty, Reply, Script, ScriptedServer, echo, starter

KEY = "sk-scripted-0123456789abcdef"
PRICE = Price(input=1.0, output=10.0)  # a scripted reply of 100 and 10 tokens: $0.0002


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Much of the HTTP client is imported by the first call, which takes the time of some timeouts below."""
    with pytest.MonkeyPatch.context() as environment, ScriptedServer() as server:
        environment.setenv("OPENAI_API_KEY", KEY)
        ask(server, questions(1), timeout=60.0)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    """Starts a server with a script; it lasts as long as the test."""
    with contextlib.ExitStack() as servers:
        yield lambda script: servers.enter_context(ScriptedServer(script))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "replies.jsonl", sync=False) as journal:
        yield journal


def question(text: str, **settings: Any) -> Request:
    return Request(model="scripted", messages=(ChatMessage("user", (text,)),), max_tokens=20, **settings)


def questions(count: int) -> list[Request]:
    return [question(f"Question {number}?") for number in range(count)]


def ask(server: ScriptedServer, requests: Sequence[Request], **settings: Any) -> list[Outcome]:
    """Outcomes from a client that waits for nothing long."""
    with quick_client(server.base_url, **settings) as client:
        return client.complete_all(requests)


def quick_client(base_url: str, **settings: Any) -> LLMClient:
    return LLMClient(
        **{"base_url": base_url, "first_wait": 0.001, "longest_wait": 0.05, "timeout": 20.0, "grace": 5.0}
        | settings
    )


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.text if isinstance(outcome, Completion) else outcome.reason for outcome in outcomes]


# Faults


def test_200_requests_are_each_answered_once_though_30_percent_of_the_calls_fail(
    serve: Callable[[Script], ScriptedServer], journal: Journal
) -> None:
    script = Faulty(rate=0.3)
    server = serve(script)
    requests = questions(200)
    with quick_client(
        server.base_url, journal=journal, concurrency=32, attempts=10, timeout=1.0, prices={"scripted": PRICE}
    ) as client:
        outcomes = client.complete_all(requests)
        lost = client.ledger.lost
    assert texts(outcomes) == [f"You asked: Question {number}?" for number in range(200)]
    assert 0.2 < 1 - 200 / len(server.calls) < 0.4
    # On a busy machine the client may run out of patience with a good reply, and has to ask again.
    losses = [FAULTS[name] for name in ("timeout", "dropped", "cut_short", "truncated_json", "malformed")]
    impatient = lost - sum(script(call) in losses for call in server.calls)
    assert set(server.answered) == {f"Question {number}?" for number in range(200)}
    assert 200 <= server.answered.total() <= 200 + impatient

    # All of it again costs nothing.
    calls = len(server.calls)
    assert ask(server, requests, journal=journal) == outcomes
    assert len(server.calls) == calls


@pytest.mark.parametrize(
    ("fault", "reason", "message"),
    [
        ("rate_limited", "rate_limited", "scripted 429"),
        ("server_error", "server_error", "scripted 500"),
        ("timeout", "timeout", "no reply in time"),
        ("dropped", "connection", "connection lost"),
        ("cut_short", "connection", "connection lost"),
        ("truncated_json", "malformed", "not a chat completion .*Unterminated string"),
        ("malformed", "malformed", "not a chat completion .*502 Bad Gateway"),
        ("wrong_model", "wrong_model", "asked 'scripted', answered by 'some-other-model'.*aliases"),
    ],
)
def test_a_fault_that_lasts_is_a_failure_that_leaves_the_others_alone(
    serve: Callable[[Script], ScriptedServer], journal: Journal, fault: str, reason: str, message: str
) -> None:
    server = serve(lambda call: FAULTS[fault] if call.question == "Bad?" else echo(call))
    requests = [question("Good?"), question("Bad?"), question("Fine?")]
    patience = 0.4 if fault == "timeout" else 10.0
    good, bad, fine = ask(server, requests, journal=journal, attempts=2, timeout=patience)
    assert texts([good, fine]) == ["You asked: Good?", "You asked: Fine?"]
    assert isinstance(bad, Failure)
    assert bad.reason == reason
    assert re.search(message, bad.message)
    assert bad.tries == 2
    assert requests[1].key not in journal


@pytest.mark.parametrize(
    ("reply", "finish_reason", "text"),
    [
        (Reply(text="Two c", finish_reason="length"), "length", "Two c"),
        (Reply(text="", finish_reason="length"), "length", ""),
        (Reply(text=None, refusal="I will not."), "refusal", "I will not."),
        (Reply(text="", finish_reason="content_filter"), "content_filter", ""),
        (Reply(text=" \n"), "empty", " \n"),
        (Reply(text="Fine.", finish_reason=None), "stop", "Fine."),
        (
            Reply(status=400, raw='{"error": {"message": "no", "code": "content_filter"}}'),
            "content_filter",
            "",
        ),
    ],
)
def test_replies_that_are_no_whole_answers_are_told_apart_and_kept(
    serve: Callable[[Script], ScriptedServer], journal: Journal, reply: Reply, finish_reason: str, text: str
) -> None:
    server = serve(lambda call: reply)
    outcomes = ask(server, [question("What?")], journal=journal, attempts=2)
    [outcome] = outcomes
    assert isinstance(outcome, Completion)
    assert (outcome.finish_reason, outcome.text) == (finish_reason, text)
    calls = len(server.calls)
    assert calls == (2 if finish_reason == "empty" else 1)
    assert ask(server, [question("What?")], journal=journal) == outcomes
    assert len(server.calls) == calls


def test_the_wait_that_the_endpoint_asks_for_is_kept(serve: Callable[[Script], ScriptedServer]) -> None:
    arrived = []

    def script(call: Call) -> Reply:
        arrived.append(time.monotonic())
        limited = (
            Reply(status=(429, 503)[call.nth - 1], headers={"Retry-After": "0.2"}) if call.nth < 3 else None
        )
        return limited or echo(call)

    [outcome] = ask(serve(script), questions(1), longest_wait=1.0)
    assert isinstance(outcome, Completion)
    assert outcome.tries == 3
    assert all(later - earlier >= 0.2 for earlier, later in pairwise(arrived))


def test_a_wait_beyond_the_longest_is_not_sat_out(serve: Callable[[Script], ScriptedServer]) -> None:
    server = serve(lambda call: Reply(status=429, headers={"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}))
    [outcome] = ask(server, questions(1))
    assert isinstance(outcome, Failure)
    assert "it asks to wait" in outcome.message
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [(401, "invalid_api_key", "unauthorized"), (429, "insufficient_quota", "quota")],
)
def test_what_no_call_can_survive_is_found_out_once(
    serve: Callable[[Script], ScriptedServer], status: int, code: str, reason: str
) -> None:
    server = serve(
        lambda call: Reply(status=status, raw=json.dumps({"error": {"message": "no", "code": code}}))
    )
    outcomes = ask(server, questions(20), concurrency=2)
    assert texts(outcomes) == [reason] * 20
    assert len(server.calls) <= 2


def test_a_call_that_the_endpoint_does_not_take_is_not_repeated(
    serve: Callable[[Script], ScriptedServer],
) -> None:
    server = serve(lambda call: Reply(status=400, raw='{"error": {"message": "too long"}}'))
    [outcome] = ask(server, questions(1))
    assert isinstance(outcome, Failure)
    assert outcome.reason == "refused_call"
    assert "too long" in outcome.message
    assert len(server.calls) == 1


def test_an_endpoint_that_is_down_is_given_up(serve: Callable[[Script], ScriptedServer]) -> None:
    server = serve(lambda call: Reply(status=500))
    outcomes = ask(server, questions(50), attempts=1, failures_in_row=5, concurrency=1)
    assert texts(outcomes) == ["server_error"] * 50
    assert len(server.calls) == 5
    assert isinstance(outcomes[-1], Failure)
    assert "5 requests in a row failed, the last so: Error code: 500" in outcomes[-1].message


def test_nobody_listens(tmp_path: Path) -> None:
    with quick_client("http://127.0.0.1:9/v1", attempts=2, prices={"scripted": PRICE}) as client:
        [outcome] = client.complete_all(questions(1))
        assert isinstance(outcome, Failure)
        assert (outcome.reason, outcome.tries) == ("connection", 2)
        assert "cannot connect" in outcome.message
        assert client.ledger.lost == 0  # nothing can have been charged


@pytest.mark.parametrize(
    ("answered", "fine"),
    [
        ("scripted-2024-08-06", True),
        ("scripted-0613", True),
        ("provider/scripted@main", True),
        ("scripted-mini", False),
        ("scripted-2024-mini", False),
        ("local.gguf", True),
        ("gpt-4", False),
    ],
)
def test_only_the_asked_model_may_answer(
    serve: Callable[[Script], ScriptedServer], answered: str, fine: bool
) -> None:
    server = serve(lambda call: Reply(model=answered))
    [outcome] = ask(server, questions(1), attempts=1, aliases=["*.gguf"])
    assert isinstance(outcome, Completion) == fine
    if isinstance(outcome, Completion):
        assert outcome.model == answered


def test_half_a_surrogate_pair_survives_journal_and_endpoint(
    serve: Callable[[Script], ScriptedServer], journal: Journal
) -> None:
    server = serve(lambda call: Reply(text="a cat \ud83d"))
    [first] = ask(server, questions(1), journal=journal)
    assert isinstance(first, Completion)
    assert texts(ask(server, [question(first.text)], journal=journal)) == ["a cat \ud83d"]
    assert server.calls[1].question == "a cat \ufffd"
    assert ask(server, questions(1), journal=journal) == [first]


def test_a_request_made_twice_at_once_is_asked_once(
    serve: Callable[[Script], ScriptedServer], journal: Journal
) -> None:
    server = serve(lambda call: Reply(text="Yes.", delay=0.05))
    assert texts(ask(server, questions(1) * 5, journal=journal)) == ["Yes."] * 5
    assert len(server.calls) == 1


def test_moderations_are_calls_like_others(
    serve: Callable[[Script], ScriptedServer], journal: Journal
) -> None:
    """Repeated until one is sound, journalled, and told apart from a chat with the same words."""
    faults = {1: Reply(raw='{"results": []}'), 2: Reply(model="another-model"), 3: Reply(status=500)}
    server = serve(lambda call: faults.get(call.number, Reply(flagged=("hate",))))
    moderation = ModerationRequest.of("scripted", "Question 0?")
    for _ in range(2):
        [outcome] = ask(server, [moderation], journal=journal)
        assert isinstance(outcome, Completion)
        assert json.loads(outcome.text)["categories"] == {
            "harassment": False,
            "violence": False,
            "hate": True,
        }
    assert (outcome.usage, outcome.tries) == (Usage(input_tokens=0, output_tokens=0), 4)
    assert [call.body for call in server.calls] == [{"model": "scripted", "input": "Question 0?"}] * 4
    assert moderation.key != question("Question 0?").key


# Concurrency, rates, progress


def test_no_more_calls_than_allowed_are_under_way(serve: Callable[[Script], ScriptedServer]) -> None:
    server = serve(lambda call: Reply(delay=0.03))
    taken: list[Request] = []
    told: dict[int, Outcome] = {}

    def lazily() -> Iterator[Request]:
        for one in questions(12):
            taken.append(one)
            assert len(taken) <= len(told) + 3
            yield one

    start = time.perf_counter()
    with quick_client(server.base_url, concurrency=3) as client:
        outcomes = client.complete_all(lazily(), told.__setitem__)
    assert time.perf_counter() - start >= 4 * 0.03
    assert told == dict(enumerate(outcomes))
    assert texts(outcomes) == ["An answer."] * 12


@pytest.mark.parametrize(
    "limit",
    [
        {"requests_per_minute": 60 / 0.05},
        # A call counts 38: 2 for its text, 16 around the message, 20 for the reply. One fits at once.
        {"tokens_per_minute": 38.0},
    ],
)
def test_calls_keep_to_the_rates(serve: Callable[[Script], ScriptedServer], limit: dict[str, float]) -> None:
    server = serve(echo)

    async def run() -> float:
        async with quick_client(server.base_url, grace=0.0, **limit) as client:
            await client.complete(question("First?"))
            start = time.perf_counter()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.complete_many(questions(200)), timeout=0.4)
            return time.perf_counter() - start

    seconds = asyncio.run(run())
    assert len(server.calls) <= 1 + (0 if "tokens_per_minute" in limit else 1 + seconds / 0.05)


def test_sync_and_async_callers_get_the_same(
    serve: Callable[[Script], ScriptedServer], journal: Journal
) -> None:
    server = serve(echo)

    async def run() -> list[Outcome]:
        async with quick_client(server.base_url) as client:
            return [await client.complete(one) for one in questions(2)]

    assert texts(asyncio.run(run())) == texts(ask(server, questions(2)))
    with quick_client(server.base_url) as client:  # several batches over one client
        assert texts(client.complete_all(questions(2)) + client.complete_all(questions(1))) == [
            "You asked: Question 0?",
            "You asked: Question 1?",
            "You asked: Question 0?",
        ]


# What an endpoint does not have


def test_structured_output_is_dropped_for_good_where_it_is_refused(
    serve: Callable[[Script], ScriptedServer],
) -> None:
    def script(call: Call) -> Reply:
        if "response_format" in call.body:
            return Reply(status=400, raw='{"error": {"message": "response_format is not supported"}}')
        return echo(call)

    schema = {"type": "object", "properties": {"score": {"type": "integer"}}}
    requests = [question(f"{number}?", schema=schema) for number in range(4)]
    server = serve(script)
    outcomes = ask(server, requests, concurrency=1)
    assert [isinstance(outcome, Completion) and outcome.structured for outcome in outcomes] == [False] * 4
    assert ["response_format" in call.body for call in server.calls] == [True] + [False] * 4

    [outcome] = ask(other := serve(echo), requests[:1])
    assert isinstance(outcome, Completion)
    assert outcome.structured
    assert other.calls[0].body["response_format"]["json_schema"]["schema"] == schema


def test_a_limit_of_another_name_is_learnt(serve: Callable[[Script], ScriptedServer]) -> None:
    def script(call: Call) -> Reply:
        message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return (
            Reply(status=400, raw=json.dumps({"error": {"message": message}}))
            if "max_tokens" in call.body
            else echo(call)
        )

    server = serve(script)
    assert texts(ask(server, questions(2), concurrency=1)) == [
        "You asked: Question 0?",
        "You asked: Question 1?",
    ]
    assert len(server.calls) == 3


def test_other_refusals_do_not_change_the_way_of_asking(serve: Callable[[Script], ScriptedServer]) -> None:
    server = serve(lambda call: Reply(status=400, raw='{"error": {"message": "context too long"}}'))
    ask(server, [question("a", schema={}), question("b", schema={})], concurrency=1)
    assert all("response_format" in call.body for call in server.calls)


# Money


def test_costs_add_up_and_outlast_the_run(
    serve: Callable[[Script], ScriptedServer], journal: Journal
) -> None:
    server = serve(Faulty(rate=0.5, faults=("wrong_model", "empty")))
    for _ in range(2):
        with quick_client(
            server.base_url, journal=journal, prices={"scripted": PRICE}, attempts=12
        ) as client:
            client.complete_all(questions(20))
            # Replies that were no use were paid for all the same.
            assert client.ledger.calls == len(server.calls) > 20
            assert client.ledger.input_tokens == 100 * len(server.calls)
            assert client.ledger.dollars == pytest.approx(0.0002 * len(server.calls))


def test_an_unknown_cost_is_said_and_not_zero(serve: Callable[[Script], ScriptedServer]) -> None:
    server = serve(lambda call: Reply(usage=None) if call.question == "Question 1?" else Reply())
    with quick_client(server.base_url) as client:
        client.complete_all(questions(2))
        assert "1 replies of unknown cost (no price for 'scripted')" in client.ledger.summary()
        assert "1 replies of unknown cost (the endpoint did not tell the tokens)" in client.ledger.summary()
        assert client.estimate(questions(3)).dollars is None
        assert "cost unknown, no price for scripted" in str(client.estimate(questions(3)))


def test_cached_input_has_its_price() -> None:
    price = Price(input=2.0, output=8.0, cached_input=0.5)
    usage = Usage(input_tokens=1_000_000, output_tokens=0, cached_tokens=600_000)
    assert price.cost(usage) == pytest.approx(0.4 * 2.0 + 0.6 * 0.5)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_budget_stops_before_it_is_exceeded(
    serve: Callable[[Script], ScriptedServer], journal: Journal, concurrency: int
) -> None:
    server = serve(lambda call: Reply(delay=0.01))
    settings = {"journal": journal, "prices": {"scripted": PRICE}, "concurrency": concurrency}
    budget = 0.0021  # ten replies
    for run in range(2):  # the second finds the money spent
        with quick_client(server.base_url, budget_usd=budget, **settings) as client:
            outcomes = client.complete_all(questions(30))
            assert client.ledger.dollars <= budget
            # Calls reserve more than they cost, and return it: the last of the budget is used too.
            assert budget - client.ledger.dollars < client.ledger.bound(questions(1)[0]) + 1e-9
        assert Counter(texts(outcomes)) == {"An answer.": len(server.calls), "budget": 30 - len(server.calls)}
        assert len(server.calls) in (9, 10), run
        assert isinstance(outcomes[-1], Failure)
        assert "could exceed budget_usd=0.0021" in outcomes[-1].message
    # More money, and it goes on from there.
    assert texts(ask(server, questions(30), budget_usd=1.0, **settings)) == ["An answer."] * 30
    assert len(server.calls) == 30


def test_replies_that_tell_no_tokens_count_for_later_runs_and_other_journals(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(usage=None))
    bound = Ledger({"scripted": PRICE}).bound(questions(1)[0])
    budget = 2.5 * bound
    for name, count in [("mine", 2), ("mine", 3), ("other", 3)]:
        with Journal(tmp_path / f"{name}.jsonl", sync=False) as journal:
            outcomes = ask(
                server,
                questions(count),
                journal=journal,
                prices={"scripted": PRICE},
                budget_usd=budget,
                concurrency=1,
            )
        found = texts(outcomes)
        answered = 2 if name == "mine" else 0
        assert found == ["An answer."] * answered + ["budget"] * (count - answered)
    assert len(server.calls) == 2


def test_a_reply_that_did_not_arrive_may_have_been_charged(serve: Callable[[Script], ScriptedServer]) -> None:
    server = serve(lambda call: FAULTS["cut_short"])
    budget = 0.001
    with quick_client(
        server.base_url, prices={"scripted": PRICE}, budget_usd=budget, attempts=50, concurrency=1
    ) as client:
        [outcome] = client.complete_all(questions(1))
        assert texts([outcome]) == ["budget"]
        assert client.ledger.lost == len(server.calls) == int(budget / client.ledger.bound(questions(1)[0]))
        assert client.ledger.lost_dollars <= budget
        assert "did not arrive but may be charged" in client.ledger.summary()


def test_a_budget_needs_a_price(serve: Callable[[Script], ScriptedServer]) -> None:
    server = serve(echo)
    with pytest.raises(BudgetError, match=r"no price for 'scripted'; add it to prices .* which has gpt-9"):
        ask(server, questions(1), budget_usd=1.0, prices={"gpt-9": PRICE})
    assert not server.calls


def test_an_estimate_asks_nobody(serve: Callable[[Script], ScriptedServer], journal: Journal) -> None:
    server = serve(echo)
    ask(server, questions(2), journal=journal)
    with quick_client(server.base_url, journal=journal, prices={"scripted": PRICE}) as client:
        estimate = client.estimate([*questions(5), question("é" * 400), *questions(1)])
    assert (estimate.calls, estimate.journalled) == (4, 2)
    assert estimate.output_tokens == 80
    assert estimate.input_tokens == 3 * (len("Question 4?") // 4 + 16) + 800 // 4 + 16
    assert estimate.dollars == pytest.approx((estimate.input_tokens + 10 * 80) / 1e6)
    assert len(server.calls) == 2


# Keys


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def script(call: Call) -> Reply:  # an endpoint that repeats what it is told
        told = call.headers["authorization"]
        assert told == f"Bearer {KEY}"
        if call.question == "Question 0?":
            return Reply(status=400, raw=json.dumps({"error": {"message": f"bad {told}"}}))
        if call.question == "Question 1?":
            return Reply(raw=f"<html>{told}</html>")
        return Reply(text=f"I was told {told}.")

    path = tmp_path / "replies.jsonl"
    with caplog.at_level(logging.DEBUG), Journal(path) as journal:
        client = quick_client(serve(script).base_url, journal=journal, attempts=2)
        outcomes = client.complete_all(questions(3))
        seen = [repr(outcomes), repr(client), repr(vars(client)), repr(client.ledger), caplog.text]
        client.close()
    assert "I was told Bearer ***." in texts(outcomes)
    assert all(KEY not in text for text in [*seen, path.read_text(encoding="utf-8")])
    assert caplog.records  # there was something to look at


def test_a_missing_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with (
        pytest.raises(ClientError, match="set the environment variable OPENAI_API_KEY, or OPENAI_BASE_URL"),
        LLMClient() as client,
    ):
        client.complete_all(questions(1))


def test_a_server_that_needs_no_key_is_found_by_the_environment(
    serve: Callable[[Script], ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(echo)
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    with LLMClient() as client:
        assert texts(client.complete_all(questions(1))) == ["You asked: Question 0?"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key_variable": KEY}, "key_variable names an environment variable"),
        (
            {"base_url": f"https://me:{KEY}@host/v1"},
            "URL holds a user or password; put the key into OPENAI_API_KEY",
        ),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"failures_in_row": 0}, "failures_in_row must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ClientError, match=message) as caught:
        LLMClient(**settings)
    assert KEY not in str(caught.value)


def test_a_budget_is_more_than_nothing() -> None:
    with pytest.raises(BudgetError, match="budget_usd must be more than 0, got 0"):
        LLMClient(budget_usd=0)


# Requests


@pytest.fixture
def cat(tmp_path: Path) -> Image:
    path = tmp_path / "cat.png"
    PIL.Image.new("RGB", (6, 4), "red").save(path)
    return Image(image_id=7, caption="A  red\ncat.", path=path)


def seen(part: dict[str, Any]) -> PIL.Image.Image:
    """The picture in a part of a message."""
    kind, _, data = part["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png"
    return PIL.Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_stand_at_their_word_positions(
    serve: Callable[[Script], ScriptedServer], cat: Image
) -> None:
    assert cat.path is not None
    bitmap = cat.path.with_suffix(".bmp")
    PIL.Image.new("RGB", (2, 3), "blue").save(bitmap)
    box = Image(image_id="b", path=cat.path, box=(1, 1, 4, 3))
    dialogue = [
        Message(
            role="user",
            content=f"Is {image_reference(7)} or {image_reference('b')} red?",
            images=(cat, box),
        ),
        Message(role="assistant", content="Both."),
        Message(role="user", content=image_reference(9), images=(Image(image_id=9, path=bitmap),)),
    ]
    messages = chat_messages(dialogue, system="Be brief.")
    server = serve(lambda call: Reply())
    ask(server, [Request(model="scripted", messages=messages, max_tokens=5)])
    system, first, second, third = server.calls[0].body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert second == {"role": "assistant", "content": "Both."}
    assert [part.get("text") for part in first["content"]] == [
        "Is IMAGE#7",
        None,
        " or IMAGE#b",
        None,
        " red?",
    ]
    assert (
        base64.b64decode(first["content"][1]["image_url"]["url"].partition(",")[2]) == cat.path.read_bytes()
    )
    assert seen(first["content"][3]).size == (3, 2)
    assert [part.get("text") for part in third["content"]] == ["IMAGE#9", None]
    assert seen(third["content"][1]).getpixel((0, 0)) == (0, 0, 255)


def test_captions_stand_in_for_pictures(cat: Image) -> None:
    asked = Message(role="user", content=f"Is {image_reference(7)} red?", images=(cat,))
    [message] = chat_messages([asked], captions=True)
    assert message == ChatMessage("user", ("Is IMAGE#7 [caption: A red cat.] red?",))
    bare = Message(role="user", content=image_reference(8), images=(Image(image_id=8),))
    with pytest.raises(RequestError, match="image 8 has no caption to stand in its place"):
        chat_messages([bare], captions=True)
    with pytest.raises(PromptFormatError, match="message 0: 1 image tags in the text but 0 images"):
        chat_messages([Message(role="user", content=image_reference(8))])


def test_a_picture_that_is_missing_or_broken_fails_its_request_alone(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    images = [Image(image_id=1, path=tmp_path / "gone.png"), Image(image_id=2, path=tmp_path / "broken.png")]
    requests = [
        Request(model="scripted", messages=(ChatMessage("user", ("Look: ", image)),), max_tokens=5)
        for image in [*images, Image(image_id=3)]
    ]
    *failures, last = ask(server := serve(echo), [*requests, *questions(1)])
    assert texts(failures) == ["request"] * 3
    wanted = ["gone.png (image 1): No such file", "broken.png (image 2) as a picture", "image 3 has no path"]
    for failure, message in zip(failures, wanted, strict=True):
        assert isinstance(failure, Failure)
        assert message in failure.message
    assert isinstance(last, Completion)
    assert len(server.calls) == 1


def test_the_key_of_a_request_holds_all_that_may_change_its_reply(cat: Image, tmp_path: Path) -> None:
    assert cat.path is not None
    (copy := tmp_path / "copy.png").write_bytes(cat.path.read_bytes())
    PIL.Image.new("RGB", (6, 4), "blue").save(other := tmp_path / "other.png")

    def shown(image: Image) -> Request:
        return Request(model="scripted", messages=(ChatMessage("user", ("a", image)),), max_tokens=20)

    settings: list[dict[str, Any]] = [
        {"temperature": 1.0}, {"temperature": None}, {"top_p": 0.5}, {"seed": 1}, {"stop": ("###",)},
        {"schema": {"type": "object"}}, {"try_number": 2}, {"draw_for": "item 7"},
    ]  # fmt: skip
    system = Request(model="scripted", messages=(ChatMessage("system", ("a",)),), max_tokens=20)
    longer = Request(model="scripted", messages=question("a").messages, max_tokens=21)
    different = [
        *(question("a", **one) for one in settings), question("a"), question("b"), system, longer,
        shown(cat), shown(Image(image_id=7, path=other)), shown(Image(image_id=7, path=cat.path, box=(0, 0, 1, 1))),
    ]  # fmt: skip
    assert len({request.key for request in different}) == len(different)
    assert question("a", temperature=0).key == question("a", temperature=0.0).key
    # Where a file lies and what it is called do not matter.
    assert shown(cat).key == shown(Image(image_id="else", path=copy)).key


# Being stopped

SLOTS = 4
TOTAL = 60


class Holding:
    """A script that answers a number of calls, and the others only after a delay."""

    def __init__(self, answers: int, delay: float = FOREVER) -> None:
        self.answers = answers
        self.delay = delay
        self.full = threading.Event()
        """The calls that wait hold all slots of the client, so it is done with the replies before them."""
        self._waiting = 0

    def __call__(self, call: Call) -> Reply:
        if self.answers > 0:
            self.answers -= 1
            return echo(call)
        self._waiting += 1
        if self._waiting == SLOTS:
            self.full.set()
        return replace(echo(call), delay=self.delay)


def run_to_the_end(base_url: str, path: Path) -> None:
    """What a child process does."""
    # A shell has it ignored in what it runs in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["OPENAI_API_KEY"] = KEY
    logging.basicConfig(filename=path.with_suffix(".log"))
    with Journal(path) as journal, quick_client(base_url, journal=journal, concurrency=SLOTS) as client:
        outcomes = client.complete_all(questions(TOTAL))
    path.with_suffix(".json").write_text(json.dumps(texts(outcomes)), encoding="utf-8")


@pytest.fixture(scope="module")
def start() -> Callable[[ScriptedServer, Path], BaseProcess]:
    return starter(run_to_the_end)


def finish(
    server: ScriptedServer, start: Callable[[ScriptedServer, Path], BaseProcess], path: Path
) -> Counter[str]:
    """Let a last run end, and return how often each question was answered over all runs."""
    server.script = echo
    child = start(server, path)
    child.join(60)
    assert child.exitcode == 0
    outcomes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert outcomes == [f"You asked: Question {number}?" for number in range(TOTAL)]
    return server.answered


ONCE_EACH = Counter({f"Question {number}?": 1 for number in range(TOTAL)})


def test_killed_at_many_points_it_asks_nothing_twice_and_loses_nothing(
    serve: Callable[[Script], ScriptedServer],
    start: Callable[[ScriptedServer, Path], BaseProcess],
    tmp_path: Path,
) -> None:
    server, path = serve(echo), tmp_path / "replies.jsonl"
    for answers in [0, 1, 5, 9, 13, 17]:
        server.script = holding = Holding(answers)
        child = start(server, path)
        assert holding.full.wait(60)
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    assert finish(server, start, path) == ONCE_EACH


def test_after_ctrl_c_calls_come_back_and_the_message_says_how_to_go_on(
    serve: Callable[[Script], ScriptedServer],
    start: Callable[[ScriptedServer, Path], BaseProcess],
    tmp_path: Path,
) -> None:
    path = tmp_path / "replies.jsonl"
    server = serve(holding := Holding(10, delay=0.3))
    child = start(server, path)
    assert holding.full.wait(60)
    os.kill(child.pid or 0, signal.SIGINT)
    child.join(60)
    assert child.exitcode == 1
    assert len(server.calls) == 10 + SLOTS  # nothing new was begun
    message = f"interrupted: {path} holds {10 + SLOTS} replies; the same command asks for the rest"
    assert message in path.with_suffix(".log").read_text(encoding="utf-8")
    assert finish(server, start, path) == ONCE_EACH


def test_after_ctrl_c_calls_that_take_too_long_are_left(
    serve: Callable[[Script], ScriptedServer], journal: Journal
) -> None:
    server = serve(lambda call: Reply(delay=FOREVER) if call.question == "Question 1?" else Reply())

    async def run() -> None:
        async with quick_client(
            server.base_url, journal=journal, grace=0.05, prices={"scripted": PRICE}
        ) as client:
            working = asyncio.create_task(client.complete_many(questions(3)))
            while len(journal) < 2:
                await asyncio.sleep(0.005)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            assert client.ledger.lost == 1  # it may be charged

    asyncio.run(run())
    assert len(journal) == 2
