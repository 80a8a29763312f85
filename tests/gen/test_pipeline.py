"""Generating against a server that misbehaves: the same data whatever happens, nothing paid twice, nothing lost."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from sparkles.gen.parsing import Reason
from sparkles.gen.pipeline import SURPLUS, Generated, first_round, generate, ledger_record
from sparkles.gen.recipes import Recipe
from sparkles.gen.writers import EndpointWriter
from sparkles.llm_client import LLMClient, Price
from sparkles.types import Dialogue
from tests.gen.scripted import captioned, demonstrations, dialogue, make_recipe, written
from tests.scripted_server import FOREVER, Call, Faulty, Reply, Script, ScriptedServer, starter

SLOTS = 8
TRANSPORT = ("rate_limited", "server_error", "timeout", "dropped", "truncated_json", "empty")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-scripted-0123456789abcdef")


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    with ExitStack() as servers:
        yield lambda script: servers.enter_context(ScriptedServer(script))


def sound(call: Call) -> Reply:
    return Reply(text=written(call.question))


def nonsense(call: Call) -> Reply:
    return Reply(text=" ".join(random.Random(call.question).choices(["the", "[", "{", "a:", "]"], k=40)))


def endpoint_writer(base_url: str, folder: Path, **settings: Any) -> EndpointWriter:
    """One that waits for nothing long."""
    client = {
        "base_url": base_url,
        "first_wait": 0.001,
        "longest_wait": 0.05,
        "attempts": 12,
        "concurrency": SLOTS,
    }
    return EndpointWriter(
        model="scripted",
        client=partial(LLMClient, **client | settings),
        journal=folder / "replies.jsonl",
    )


def run(server: ScriptedServer, folder: Path, recipe: Recipe, **settings: Any) -> Generated:
    with closing(endpoint_writer(server.base_url, folder, **settings)) as writer:
        return generate(recipe, writer, progress=False)


def test_as_many_dialogues_as_wanted_are_kept(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    generated = run(serve(sound), tmp_path, make_recipe(num_dialogues=6, demonstrations=demonstrations()))
    assert [len(one.images) for one in generated.dialogues] == [3, 4] * 3
    assert (generated.asked, generated.rejects, generated.failures) == ([3, 3], [], [])
    assert generated.models == {"scripted": 6}


def test_what_is_rejected_is_asked_for_anew_and_kept_with_its_reason(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    recipe = make_recipe(num_dialogues=6)
    wrong = str(recipe.assignment(first_round(recipe)[0]).candidates[0].image_id)
    server = serve(
        lambda call: replace(sound(call), text=written(call.question).replace(f'"{wrong}"', '"9"'))
    )
    generated = run(server, tmp_path, recipe)
    assert (generated.num_kept, generated.asked) == (6, [4, 3])
    (reject,) = generated.rejects
    assert (reject.reason, reject.kind, reject.number) == (Reason.UNKNOWN_IMAGE, 0, 0)
    assert int(wrong) in reject.candidates
    assert '"9"' in reject.text


def test_a_filter_names_its_rejects(serve: Callable[[Script], ScriptedServer], tmp_path: Path) -> None:
    def few_images(one: Dialogue) -> str:
        return "too many" if len(one.images) > 3 else ""

    generated = run(serve(sound), tmp_path, make_recipe(num_dialogues=4, filters={"few_images": few_images}))
    assert [len(kind) for kind in generated.kept] == [2, 0]
    assert generated.reasons["few_images"] == generated.asked[1]


def test_more_than_was_asked_for_is_counted(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    three = make_recipe(num_dialogues=4, replies=[[[1, 1], [2, 1], [3, 1]]], candidates={"size": 9})
    generated = run(serve(sound), tmp_path, three)
    assert (generated.num_kept, generated.reasons) == (4, {SURPLUS: 2})


def test_evaluation_sets_are_numbered(serve: Callable[[Script], ScriptedServer], tmp_path: Path) -> None:
    generated = run(serve(sound), tmp_path, make_recipe(numbered=True))
    assert [one.dialogue_id for one in generated.dialogues] == ["1", "2", "3", "4"]


def test_nonsense_is_rejected_counted_and_asked_for_no_more(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    server = serve(nonsense)
    generated = run(server, tmp_path, make_recipe(num_dialogues=6))
    assert (generated.num_kept, len(server.calls), len(generated.rejects)) == (0, 6, 6)


def test_refusals_are_declined(serve: Callable[[Script], ScriptedServer], tmp_path: Path) -> None:
    refusing = serve(lambda call: Reply(text=None, refusal="I cannot help with that."))
    generated = run(refusing, tmp_path, make_recipe())
    assert {(reject.reason, reject.text) for reject in generated.rejects} == {
        (Reason.DECLINED, "I cannot help with that.")
    }


def test_the_budget_stops_the_run_and_what_was_paid_for_is_kept(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    prices = {"scripted": Price(input=1.0, output=10.0)}  # a call costs $0.01, and might cost $0.02
    usage = {"prompt_tokens": 100, "completion_tokens": 1_000, "total_tokens": 1_100}
    server = serve(lambda call: replace(sound(call), usage=usage))
    recipe = make_recipe(num_dialogues=10)
    generated = run(server, tmp_path, recipe, prices=prices, budget_usd=0.05, concurrency=1)
    assert {failure.reason for failure in generated.failures} == {"budget"}
    assert 0 < generated.num_kept == len(server.calls) < 10
    more = run(server, tmp_path, recipe, prices=prices, budget_usd=5.0)
    assert (more.num_kept, len(server.calls)) == (10, 10)


def test_a_longer_run_asks_for_what_is_new_only(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    server = serve(sound)
    run(server, tmp_path, make_recipe(num_dialogues=4))
    assert run(server, tmp_path, make_recipe(num_dialogues=10)).num_kept == 10
    assert len(server.calls) == 10


def test_used_up_candidates_end_the_run(serve: Callable[[Script], ScriptedServer], tmp_path: Path) -> None:
    generated = run(serve(sound), tmp_path, make_recipe(num_dialogues=30))
    assert (generated.num_kept, generated.failures) == (10, [])


def test_the_ledger_tells_calls_tokens_and_dollars(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    prices = {"scripted": Price(input=1.0, output=10.0)}
    with closing(endpoint_writer(serve(sound).base_url, tmp_path, prices=prices)) as writer:
        record = ledger_record(generate(make_recipe(), writer, progress=False), writer)
    assert record["dollars"] == pytest.approx(4 * 0.0002)
    assert (record["kept"], record["paid_replies"], record["input_tokens"]) == (4, 4, 400)
    assert record["models"] == {"scripted": 4}
    assert record["prompt_sha256"] == writer.prompt_hash


def test_an_estimate_asks_nobody_and_leaves_no_file(tmp_path: Path) -> None:
    recipe = make_recipe()
    with closing(endpoint_writer("http://127.0.0.1:9/v1", tmp_path)) as writer:
        said = writer.estimate(map(recipe.assignment, first_round(recipe)))
    assert "4 calls (0 more are in the journal)" in said
    assert list(tmp_path.iterdir()) == []


# Killed in between


@dataclass
class Misbehaving:
    """Fails in eight ways on 30 % of the calls: six that the next try may mend, and two that are replies."""

    calls: Faulty = field(default_factory=lambda: Faulty(rate=0.22, faults=TRANSPORT))

    def __call__(self, call: Call) -> Reply:
        return replace(self.calls, otherwise=self.reply)(call)

    def reply(self, call: Call) -> Reply:
        """The same reply whenever the same is asked."""
        draw = random.Random(call.question).random()
        if draw < 0.05:
            return Reply(text=None, refusal="No.")
        text = written(call.question)
        return Reply(text=text.replace('"image_ids": ["1', '"image_ids": ["9', 1) if draw < 0.1 else text)


@dataclass
class Holding:
    """Answers some calls and leaves the others without a reply: once every slot waits, nothing is under way."""

    answers: int
    script: Script = field(default_factory=Misbehaving)
    full: threading.Event = field(default_factory=threading.Event)
    _held: set[str] = field(default_factory=set)

    def __call__(self, call: Call) -> Reply:
        if self.answers > 0:
            self.answers -= 1
            return self.script(call)
        self._held.add(call.question)
        if len(self._held) == SLOTS:
            self.full.set()
        return Reply(delay=FOREVER)


def large_recipe() -> Recipe:
    return make_recipe(num_dialogues=300, max_calls=340, candidates={"images": captioned(1_600)})


def run_to_the_end(base_url: str, folder: Path) -> None:
    """What a child process does."""
    os.environ["OPENAI_API_KEY"] = "sk-scripted-0123456789abcdef"
    with closing(endpoint_writer(base_url, folder, timeout=3.0)) as writer:
        generated = generate(large_recipe(), writer, progress=False)
    (folder / "result.json").write_text(json.dumps(result(generated)), encoding="utf-8")


def result(generated: Generated) -> dict[str, Any]:
    return {
        "dialogues": [asdict(one) for one in generated.dialogues],
        "rejects": [asdict(one) for one in generated.rejects],
        "failures": len(generated.failures),
    }


@pytest.fixture(scope="module")
def start() -> Callable[[ScriptedServer, Path], BaseProcess]:
    return starter(run_to_the_end)


def test_ten_kills_and_eight_ways_to_fail_change_nothing(
    serve: Callable[[Script], ScriptedServer],
    start: Callable[[ScriptedServer, Path], BaseProcess],
    tmp_path: Path,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    server = serve(Misbehaving())
    unbroken = json.loads(json.dumps(result(run(server, whole, large_recipe(), timeout=3.0)), default=str))
    assert unbroken["failures"] == 0
    assert 250 < len(unbroken["dialogues"]) <= 300
    assert {reject["reason"] for reject in unbroken["rejects"]} == {Reason.DECLINED, Reason.UNKNOWN_IMAGE}
    questions = set(server.answered)

    server = serve(Misbehaving())
    for _ in range(10):
        server.script = holding = Holding(answers=30)
        child = start(server, killed)
        assert holding.full.wait(120)
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
    server.script = Misbehaving()
    child = start(server, killed)
    child.join(120)
    assert child.exitcode == 0
    assert json.loads((killed / "result.json").read_text(encoding="utf-8")) == unbroken
    paid = {question: count for question, count in server.answered.items() if count}
    assert paid == dict.fromkeys(questions, 1)  # none twice, none lost


def test_dialogues_of_different_kinds_take_turns() -> None:
    kept = [[dialogue(2, 1)] * 3, [dialogue(3, 1)]]
    generated = Generated(recipe=make_recipe(), kept=kept, asked=[3, 1])
    assert [len(one.images) for one in generated.dialogues] == [3, 4, 3, 3]
