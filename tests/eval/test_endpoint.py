"""Models behind an endpoint, measured against a scripted server that fails on demand."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sparkles.eval.__main__ import measure
from sparkles.eval.bison import Bison
from sparkles.eval.endpoint import EndpointResponder
from sparkles.eval.estimate import estimates
from sparkles.eval.llm_judge import LLMJudge
from sparkles.eval.run import IncompleteError, evaluate
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.journal import Journal
from sparkles.llm_client import LLMClient, Price, RequestError
from sparkles.types import CRITERIA, Image, InputError, Message, Prompt
from tests.scripted_server import Call, Faulty, Reply, Script, ScriptedServer

Scripted = Any
"""The scripted classes of conftest.py, which a test gets as fixtures."""
RIGHT = Reply(text="Therefore, the answer is IMAGE#1.")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], ScriptedServer]]:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with ExitStack() as servers:
        yield lambda script: servers.enter_context(ScriptedServer(script))


Serve = Callable[[Script], ScriptedServer]


def quick(server: ScriptedServer, **settings: Any) -> partial[LLMClient]:
    given = {"first_wait": 0.001, "longest_wait": 0.05, "attempts": 2} | settings
    return partial(LLMClient, base_url=server.base_url, **given)


def responder_at(
    server: ScriptedServer, client: dict[str, Any] | None = None, **settings: Any
) -> EndpointResponder:
    return EndpointResponder(**{"model": "m", "client": quick(server, **(client or {}))} | settings)


def test_pictures_stand_at_their_places_in_the_text(serve: Serve, prompt: Prompt) -> None:
    server = serve(lambda call: Reply(text=" Two. \n"))
    [response] = responder_at(server, system="Be brief.", temperature=1.0, top_p=0.9).respond([prompt])
    assert (response.text, response.truncated, response.failure) == ("Two.", False, "")
    assert response.seconds > 0
    [call] = server.calls
    assert [message["role"] for message in call.body["messages"]] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in call.body["messages"][3]["content"]] == ["text", "image_url", "text"]
    assert (call.body["temperature"], call.body["top_p"]) == (1.0, 0.9)


def test_the_text_only_reference_reads_captions(serve: Serve, prompt: Prompt) -> None:
    server = serve(lambda call: RIGHT)
    responder_at(server, captions=True).respond([prompt])
    assert server.calls[0].question == "And IMAGE#2 [caption: something green]?"


def test_a_missing_caption_ends_it_before_anything_is_asked(serve: Serve) -> None:
    server = serve(lambda call: RIGHT)
    bare = Message(role="user", content="IMAGE#5<Img><ImageHere></Img>?", images=(Image(image_id=5),))
    with pytest.raises(RequestError, match="image 5 has no caption"):
        responder_at(server, captions=True).respond([Prompt(messages=(bare,))])
    assert server.calls == []


@pytest.mark.parametrize(
    ("reply", "text", "truncated", "refused"),
    [
        (Reply(text="Two."), "Two.", False, False),
        (Reply(text="One, two,", finish_reason="length"), "One, two,", True, False),
        (Reply(text=None, refusal="I cannot."), "I cannot.", False, True),
        (Reply(text="", finish_reason="content_filter"), "", False, True),
    ],
)
def test_a_cut_or_refused_answer_is_an_answer(
    serve: Serve, prompt: Prompt, reply: Reply, text: str, truncated: bool, refused: bool
) -> None:
    [response] = responder_at(serve(lambda call: reply)).respond([prompt])
    assert (response.text, response.truncated, response.refused, response.failure) == (
        text,
        truncated,
        refused,
        "",
    )


def test_the_name_tells_apart_what_gives_other_answers() -> None:
    settings: list[dict[str, Any]] = [{}, {"model": "n"}, {"captions": True}, {"system": "s"}, {"seed": 1}]
    names = [EndpointResponder(**{"model": "m", "client": LLMClient} | given).name for given in settings]
    assert len(set(names)) == len(settings)


def fail_about(number: int) -> Script:
    """Knows every item but this one."""
    return lambda call: Reply(status=500) if f"number {number}" in call.question else RIGHT


def test_what_could_not_be_asked_is_no_prediction_and_is_asked_again(
    serve: Serve, bison: Bison, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    server = serve(fail_about(2))
    journal = run_dir / "journal" / "responder.jsonl"
    with pytest.raises(
        IncompleteError, match=r"(?s)bison: 1 of 4 items, the last: server_error: .*asks the rest"
    ):
        evaluate([bison], responder_at(server, journal=journal), None, run_dir, progress=False)
    assert [line["item_id"] for line in lines(run_dir, "bison")] == ["1", "3", "4"]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert (metrics["bison/num"], metrics["bison/unanswered"]) == (3, 1)
    assert (run_dir / "report.html").is_file()

    server.script, asked = (lambda call: RIGHT), len(server.calls)
    gc.collect()  # the journal is closed with its responder
    metrics = evaluate([bison], responder_at(server, journal=journal), None, run_dir, progress=False)
    assert len(server.calls) == asked + 1
    assert metrics["bison/num"] == 4
    assert "bison/unanswered" not in json.loads((run_dir / "metrics.json").read_text())
    assert [line["item_id"] for line in lines(run_dir, "bison")] == ["1", "2", "3", "4"]


def test_an_endpoint_that_is_down_leaves_no_answers(serve: Serve, bison: Bison, tmp_path: Path) -> None:
    server = serve(lambda call: Reply(status=500))
    with pytest.raises(IncompleteError, match="4 of 4 items"):
        evaluate([bison], responder_at(server), None, tmp_path, progress=False)
    assert lines(tmp_path, "bison") == []
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["bison/accuracy"], metrics["bison/num"], metrics["bison/unanswered"]) == (None, 0, 4)


def test_200_items_are_each_answered_once_though_30_percent_of_the_calls_fail_in_seven_ways(
    serve: Serve, bison_file: Path, pictures: Path, tmp_path: Path
) -> None:
    [record, *_] = json.loads(bison_file.read_text())
    bison_file.write_text(
        json.dumps([record | {"evaluation_id": n, "caption": f"caption {n}"} for n in range(200)])
    )
    faults = ("rate_limited", "server_error", "timeout", "dropped", "cut_short", "truncated_json", "empty")
    server = serve(Faulty(rate=0.3, faults=faults, otherwise=lambda call: RIGHT))
    client = {"attempts": 10, "timeout": 0.5, "concurrency": 32}
    responder = responder_at(server, client, journal=tmp_path / "journal.jsonl")
    run_dir = tmp_path / "run"
    metrics = evaluate(
        [Bison(annotations=bison_file, images=pictures)],
        responder,
        None,
        run_dir,
        progress=False,
        save_every=200,
    )
    assert (metrics["bison/num"], metrics["bison/accuracy"]) == (200, 1.0)
    assert [line["item_id"] for line in lines(run_dir, "bison")] == [str(n) for n in range(200)]
    assert 1 - 200 / len(server.calls) > 0.2
    answers = [json.loads(line)["key"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert len({key for key in answers if "/rejected/" not in key}) == 200


@pytest.mark.parametrize(("temperature", "calls"), [(0.0, 1), (1.0, 3), (None, 3)])
def test_sampled_answers_belong_to_the_item_and_the_try(
    serve: Serve, prompt: Prompt, tmp_path: Path, temperature: float | None, calls: int
) -> None:
    server = serve(lambda call: Reply(text=f"Draw {call.number}."))
    responder = responder_at(server, temperature=temperature, seed=7, journal=tmp_path / "journal.jsonl")
    asked = [replace(prompt, item_id=name) for name in ("a", "b", "c")]
    first = [response.text for response in responder.respond(asked)]
    assert len(set(first)) == len(server.calls) == calls
    assert [response.text for response in responder.respond(asked)] == first
    assert len(server.calls) == calls

    [again] = responder.respond([replace(asked[0], try_number=2)])
    assert again.text == f"Draw {calls + 1}."
    assert server.calls[-1].body.get("temperature") == (1.0 if temperature == 0 else temperature)
    seeds = [call.body["seed"] for call in server.calls]
    assert len(set(seeds)) == calls + 1
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_an_endpoint_scores_no_options(serve: Serve, prompt: Prompt) -> None:
    server = serve(lambda call: RIGHT)
    with pytest.raises(InputError, match=r"no log-probabilities of options; leave out eval\.mode=likelihood"):
        responder_at(server).respond([replace(prompt, options=("TRUE", "FALSE"))])
    assert server.calls == []


def test_a_second_turn_that_fails_leaves_the_dialogue_out(
    serve: Serve, dialogues: SparklesEval, scripted_judge: Scripted, tmp_path: Path
) -> None:
    server = serve(lambda call: Reply(status=500) if "for 7" in call.question else Reply(text="Yes."))
    judge = scripted_judge({"7": 8.0, "9": 4.0})
    with pytest.raises(IncompleteError, match="sparkles_eval: 1 of 2 items"):
        evaluate([dialogues], responder_at(server), judge, tmp_path, progress=False)
    assert [judged.dialogue_id for judged in judge.judged] == ["9"]
    assert [line["item_id"] for line in lines(tmp_path, "sparkles_eval")] == ["9"]


def test_a_judge_that_could_not_be_asked_is_asked_again_about_the_same_answers(
    serve: Serve,
    dialogues: SparklesEval,
    scripted_responder: Scripted,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = serve(lambda call: Reply(status=500) if "for 7" in call.question else verdict(call))
    judge = LLMJudge(model="j", client=quick(server))
    metrics = evaluate([dialogues], scripted_responder(), judge, tmp_path, progress=False)
    assert (metrics["sparkles_eval/overall"], metrics["sparkles_eval/unscored"]) == (6.0, 1)
    assert "could not be asked about 1 of 2 dialogues" in caplog.text
    [first, _] = lines(tmp_path, "sparkles_eval")
    assert first["verdict"]["unscored_reason"].startswith("server_error: ")

    server.script = verdict
    responder = scripted_responder()
    metrics = evaluate([dialogues], responder, judge, tmp_path, progress=False)
    assert responder.asked == []
    assert (metrics["sparkles_eval/overall"], metrics["sparkles_eval/unscored"]) == (6.0, 0)
    again = lines(tmp_path, "sparkles_eval")[0]
    assert again == first | {"verdict": again["verdict"]}
    assert len(lines(tmp_path, "sparkles_eval")) == 2


def verdict(call: Call) -> Reply:
    rated = {criterion: {"explanation": "fine", "rating": 6} for criterion in CRITERIA}
    code = call.question.partition("\nRatings ")[2].partition("\n")[0]
    return Reply(text=json.dumps({"code": code, "A1": rated, "A2": rated}))


def test_the_estimate_asks_nobody_and_leaves_no_file(
    serve: Serve, bison: Bison, dialogues: SparklesEval, tmp_path: Path
) -> None:
    server = serve(lambda call: RIGHT)
    prices = {"prices": {"m": Price(input=1, output=10, image_tokens=100)}}
    journal = tmp_path / "journal" / "responder.jsonl"
    judge = LLMJudge(model="j", client=quick(server), journal=tmp_path / "journal" / "judge.jsonl")
    responder = responder_at(server, prices, max_tokens=50, journal=journal)
    found = estimates([bison, dialogues], responder, judge)
    assert [line.partition(" calls")[0] for line in found] == [
        "bison, answers of m: 4",
        "sparkles_eval, answers of m: 3",  # both dialogues begin with the same question
        "sparkles_eval, verdicts of j: 2",
    ]
    assert "at most 200 output tokens; cost about $0.00" in found[0]
    assert "cost unknown, no price for j" in found[2]
    assert server.calls == []
    assert not journal.parent.exists()

    evaluate([bison], responder, None, tmp_path / "run", progress=False)
    assert estimates([bison], responder, None)[0].startswith(
        "bison, answers of m: 0 calls (4 more are in the journal)"
    )


def test_responder_and_judge_share_the_budget_of_their_folder(
    serve: Serve, bison: Bison, dialogues: SparklesEval, tmp_path: Path
) -> None:
    """A reply of 100 and 10 tokens costs $0.0002; before that, a call reserves what it may cost."""
    server = serve(lambda call: verdict(call) if "\nRatings " in call.question else RIGHT)
    client = {
        "prices": {name: Price(input=1.0, output=10.0, image_tokens=100) for name in ("m", "j")},
        "budget_usd": 0.02,
        "concurrency": 1,
    }
    journals = tmp_path / "journal"

    def judge() -> LLMJudge:
        # One verdict may cost more than $0.0105: the limit on its reply alone is 1,000 tokens.
        return LLMJudge(
            model="j", client=quick(server, **client), journal=journals / "judge.jsonl", max_tokens=1_000
        )

    def responder() -> EndpointResponder:
        return responder_at(server, client, max_tokens=50, journal=journals / "responder.jsonl")

    evaluate([bison, dialogues], responder(), judge(), tmp_path / "run", progress=False)
    assert len(server.calls) == 4 + 3 + 2  # $0.0018
    gc.collect()
    with (journals / "responder.jsonl").open("a") as file:  # as if more had been asked
        file.write(
            json.dumps({"key": "x", "record": {"asked_model": "n", "dollars": 0.01, "usage": None}}) + "\n"
        )
    (tmp_path / "run" / "predictions" / "sparkles_eval.jsonl").unlink()
    (journals / "judge.jsonl").unlink()
    metrics = evaluate([bison, dialogues], responder(), judge(), tmp_path / "run", progress=False)
    assert metrics["sparkles_eval/unscored"] == 2
    [first, _] = lines(tmp_path / "run", "sparkles_eval")
    assert "$0.0114 in the other journals of the folder" in first["verdict"]["unscored_reason"]
    assert len(server.calls) == 9


def test_a_journal_is_opened_by_the_first_question_and_closed_with_its_responder(
    serve: Serve, prompt: Prompt, tmp_path: Path
) -> None:
    server, path = serve(lambda call: RIGHT), tmp_path / "journal.jsonl"
    bystander, responder = (responder_at(server, journal=path) for _ in range(2))
    responder.respond([prompt])
    del responder, bystander
    gc.collect()
    with Journal(path) as journal:
        assert len(journal) == 1


def lines(run_dir: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "predictions" / f"{name}.jsonl").read_text().splitlines()]


def test_the_command_measures_an_endpoint_and_builds_no_model(
    serve: Serve,
    tiny_world: Path,
    run_main: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve(lambda call: verdict(call) if "\nRatings " in call.question else RIGHT)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setattr("sparkles.launch.build_module", lambda cfg: pytest.fail("a model is built"))
    arguments = [
        "responder=openai",
        "responder.model=m",
        "judge=llm",
        "judge.model=j",
        "benchmark=[bison,sparkles_eval]",
        "benchmark.num=4",
        "data.prepare=null",
        f"data_root={tiny_world}",
        f"run_dir={tmp_path / 'run'}",
    ]
    run_main(measure, *arguments, "dry_run=true")
    assert "bison, answers of m: 4 calls" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    run_main(measure, *arguments)
    assert "m:\n  BISON" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (metrics["bison/num"], metrics["sparkles_eval/overall"]) == (4, 6.0)
    assert {path.name for path in (tmp_path / "run" / "journal").glob("*.jsonl")} == {
        "judge.jsonl",
        "responder.jsonl",
    }
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(b"sk-0123456789abcdef" in path.read_bytes() for path in written)
