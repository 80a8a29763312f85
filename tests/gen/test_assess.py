"""What a judge says of dialogues is read, kept and acted on."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sparkles.data.annotations import read_dialogues, write_dialogues
from sparkles.gen.assess import Acceptable, Assessment, read_judgement
from sparkles.gen.commands import filter
from sparkles.prompt_format import image_reference
from sparkles.types import Dialogue, Image, InputError, Message
from tests.scripted_server import Call, Reply, Script, ScriptedServer


def dialogue(question: str) -> Dialogue:
    image = Image(image_id=7, caption="A harbour.")
    return Dialogue(
        messages=(
            Message(role="user", content=f"{question} {image_reference(7)}", images=(image,)),
            Message(role="assistant", content="Here it is."),
        )
    )


def opinion(call: Call) -> Reply:
    if "limerick" in call.question:
        return Reply(text='```json\n{"reason": "Rude.", "quality": 9, "unsafe": "harassment"}\n```')
    if "bridge" in call.question:
        return Reply(text='{"reason": "Vague.", "quality": 3, "unsafe": ""}')
    return Reply(
        text="I like it." if "weather" in call.question else '{"quality": 8, "unsafe": "", "reason": "Good."}'
    )


def test_a_judge_keeps_what_is_safe_and_good_and_is_paid_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [
        "Tell a story about",
        "Tell a story about",
        "Write a limerick on",
        "Which bridge is in",
        "How is the weather in",
    ]
    write_dialogues(tmp_path / "mine.json", map(dialogue, questions))
    out = tmp_path / "out"
    with ScriptedServer(opinion) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-a-test")
        for _ in range(2):
            filter(path=str(tmp_path / "mine.json"), out=str(out), judge="judge-1")
    asked = [call.question for call in server.calls]
    assert len(asked) == 4  # the second story is a near duplicate, about which nobody is asked
    assert all('"IMAGE#7": "A harbour."' in question and "<Img>" not in question for question in asked)
    assert len(read_dialogues(out / "mine.json")) == 1
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["record"], one["filter"], one["reason"]) for one in removed[1:]] == [
        (2, "judge", "unsafe, harassment: Rude."),
        (3, "judge", "quality 3: Vague."),
        (4, "judge", "not assessed: no quality from 1 to 10 in 'I like it.'"),
    ]
    column = [
        json.loads(line) for line in (out / "assessments.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [one["quality"] for one in column] == [8, 9, 3, None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], ScriptedServer]]:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-of-a-test")
    with ExitStack() as servers:

        def start(script: Script) -> ScriptedServer:
            server = servers.enter_context(ScriptedServer(script))
            monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
            return server

        yield start


def removed_by(out: Path, name: str) -> dict[int, str]:
    lines = (out / "removed.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["record"]: one["reason"] for one in map(json.loads, lines) if one["filter"] == name}


def test_what_the_provider_s_moderation_flags_is_left_out_before_the_judge_is_paid(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    def script(call: Call) -> Reply:
        return (
            Reply(flagged=("hate/threatening",) if "limerick" in call.question else ())
            if "input" in call.body
            else opinion(call)
        )

    server = serve(script)
    write_dialogues(tmp_path / "mine.json", map(dialogue, ["Write a limerick on", "Tell a story about"]))
    out = tmp_path / "out"
    for _ in range(2):
        filter(
            path=str(tmp_path / "mine.json"), out=str(out), moderation="omni-moderation-latest", judge="judge-1",
            input_price=1.0, output_price=10.0, budget_usd=1.0,
        )  # fmt: skip
    moderated = [call.question for call in server.calls if "input" in call.body]
    assert sorted(moderated) == [
        "user: Tell a story about IMAGE#7\nassistant: Here it is.",
        "user: Write a limerick on IMAGE#7\nassistant: Here it is.",
    ]
    assert len(server.calls) == 3  # the judge is asked about the other one, and nobody about anything twice
    assert removed_by(out, "moderation") == {
        0: "unsafe, hate/threatening: hate/threatening 0.90, harassment 0.01, violence 0.01"
    }
    column = [
        json.loads(line) for line in (out / "moderations.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [one["unsafe"] for one in column] == ["hate/threatening", ""]
    assert "| moderation | 1 removed |" in (out / "README.md").read_text(encoding="utf-8")


def test_the_budget_holds_for_the_judge_and_what_was_not_asked_is_asked_next_time(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 500, "total_tokens": 600}
    server = serve(lambda call: replace(opinion(call), usage=usage))
    write_dialogues(tmp_path / "mine.json", map(dialogue, ["Tell a story about", "Name the colours of"]))
    settings = {
        "path": str(tmp_path / "mine.json"),
        "out": str(tmp_path / "out"),
        "judge": "judge-1",
        "concurrency": 1,
    }
    prices = {"input_price": 1.0, "output_price": 10.0}  # a call costs $0.0051 and may cost more
    with pytest.raises(
        InputError, match=r"1 calls have no reply \(budget: .*the same command asks about these alone"
    ):
        filter(**settings, **prices, budget_usd=0.008)
    assert removed_by(tmp_path / "out", "judge").keys() == {1}
    filter(**settings, **prices, budget_usd=0.1)
    assert removed_by(tmp_path / "out", "judge") == {}
    assert len(server.calls) == 2


def test_half_a_price_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="input_price and output_price: give both"):
        filter(path="mine.json", out=str(tmp_path), judge="judge-1", input_price=2.5)


def test_an_endpoint_without_moderation_is_told(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    serve(lambda call: Reply(status=404))
    write_dialogues(tmp_path / "mine.json", [dialogue("Tell a story about")])
    with pytest.raises(InputError, match=r"1 calls have no reply \(refused_call: .*404"):
        filter(
            path=str(tmp_path / "mine.json"), out=str(tmp_path / "out"), moderation="omni-moderation-latest"
        )
    assert removed_by(tmp_path / "out", "moderation")[0].startswith("not assessed: refused_call: ")


@pytest.mark.parametrize("text", ['{"quality": 11}', '{"quality": true}', "[8]", "", '{"unsafe": ""}'])
def test_a_reply_without_a_quality_is_no_assessment(text: str) -> None:
    found = read_judgement(text)
    assert (found.quality, found.unsafe, found.failed) == (None, "", False)
    assert found.problem.startswith("no quality from 1 to 10 in")


def test_a_reply_that_says_nothing_of_safety_is_no_assessment() -> None:
    found = read_judgement('{"reason": "Good.", "quality": 8}')
    assert (found.quality, found.failed) == (None, False)
    assert found.problem.startswith("nothing on what is unsafe in")


def test_a_reply_that_was_cut_is_no_assessment(
    serve: Callable[[Script], ScriptedServer], tmp_path: Path
) -> None:
    serve(
        lambda call: (
            Reply(text='{"quality": 9, "unsafe": "", "reason": "Goo', finish_reason="length")
            if "limerick" in call.question
            else opinion(call)
        )
    )
    write_dialogues(tmp_path / "mine.json", map(dialogue, ["Tell a story about", "Write a limerick on"]))
    filter(path=str(tmp_path / "mine.json"), out=str(tmp_path / "out"), judge="judge-1")
    assert removed_by(tmp_path / "out", "judge") == {1: "not assessed: the reply ended with length"}


def test_a_quality_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="min_quality is 0, expected 1 to 10"):
        Acceptable({dialogue("Why"): Assessment(quality=5)}, min_quality=0)
