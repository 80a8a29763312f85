"""What a judge says of dialogues is read, kept and acted on."""

import json
from pathlib import Path

import pytest

from sparkles.data.annotations import read_dialogues, write_dialogues
from sparkles.gen.assess import Acceptable, Assessment, read_assessment
from sparkles.gen.commands import filter
from sparkles.llm_client import Completion, Failure
from sparkles.prompt_format import image_reference
from sparkles.types import Dialogue, Image, InputError, Message
from tests.scripted_server import Call, Reply, ScriptedServer


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


@pytest.mark.parametrize("text", ['{"quality": 11}', '{"quality": true}', "[8]", "", '{"unsafe": ""}'])
def test_a_reply_without_a_quality_is_no_assessment(text: str) -> None:
    reply = Completion(text=text, finish_reason="stop", usage=None, model="judge-1", seconds=0.0, tries=1)
    found = read_assessment(reply)
    assert (found.quality, found.unsafe) == (None, "")
    assert found.reason.startswith("no quality from 1 to 10 in")


def test_a_failed_call_is_no_assessment() -> None:
    found = read_assessment(Failure(reason="timeout", message="no answer in 120 s"))
    check = Acceptable({dialogue("Why"): found}, min_quality=5)
    assert check(dialogue("Why")) == "not assessed: timeout: no answer in 120 s"


def test_a_quality_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="min_quality is 0, expected 1 to 10"):
        Acceptable({dialogue("Why"): Assessment(quality=5)}, min_quality=0)
