import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.recall import Recall, read_asked, read_option
from sparkles.eval.run import evaluate
from sparkles.prompt_format import image_reference
from sparkles.types import Prompt, Response

COLORS = ["red", "green", "blue"]


def question(text: str, *image_ids: int) -> dict[str, Any]:
    shown = " ".join(map(image_reference, image_ids))
    return {
        "role": "user",
        "content": f"{text} {shown}".strip(),
        "images": [{"image_id": image_id, "caption": ""} for image_id in image_ids],
    }


def record(number: int, asked: int = 1, **changes: Any) -> dict[str, Any]:
    """Pictures 1 and 2, then 3; the last question is about `asked`. They are red, green and blue."""
    said = {"role": "assistant", "content": "Yes."}
    return {
        "evaluation_id": number,
        "dialogue": [question("See?", 1, 2), said, question("And?", 3), said, question("Its color?")],
        "asked_image_id": asked,
        "options": COLORS,
        "answers": {"1": ["red"], "2": ["green"], "3": []},
        **changes,
    }


def recall(folder: Path, *records: Mapping[str, Any]) -> Recall:
    (folder / "images").mkdir(parents=True)
    for image_id in (1, 2, 3):
        PIL.Image.new("RGB", (4, 4)).save(folder / "images" / f"{image_id}.png")
    (folder / "recall.json").write_text(json.dumps(records), encoding="utf-8")
    return Recall(annotations=folder / "recall.json", images=folder / "images")


class Says:
    """Answers the last question of each item with one text, others with "Yes."."""

    name = "says"

    def __init__(self, **texts: str) -> None:
        self.texts = texts

    def respond(self, prompts: list[Prompt]) -> list[Response]:
        return [
            Response(text=self.texts[f"item{prompt.item_id}"] if len(prompt.messages) == 5 else "Yes.")
            for prompt in prompts
        ]


def test_answers_are_right_mixed_up_or_missed(tmp_path: Path) -> None:
    benchmark = recall(tmp_path, *(record(number) for number in (1, 2, 3, 4)))
    responder = Says(item1="It is red.", item2="Green.", item3="Blue, not red.", item4="I forgot.")
    metrics = evaluate([benchmark], responder, None, tmp_path / "run", progress=False)
    found = {name: metrics[f"recall/{name}"] for name in ("accuracy", "mix_up_rate", "miss_rate", "unscored")}
    assert found == {"accuracy": 0.25, "mix_up_rate": 0.25, "miss_rate": 0.5, "unscored": 1}
    assert metrics["recall/mix_up_chance"] == 0.5  # one of the two wrong options


def test_measures_are_given_by_what_there_is_to_remember(tmp_path: Path) -> None:
    short = [
        question("See?", 1),
        {"role": "assistant", "content": "Yes."},
        question("Which color had it?", 2),
    ]
    benchmark = recall(
        tmp_path, record(1), record(2, asked=2, answers={"2": ["green"]}), record(3, dialogue=short)
    )
    responder = Says(item1="red", item2="green", item3="")
    responder.texts["item3"] = "green"
    metrics = evaluate([benchmark], LastOf(responder), None, tmp_path / "run", progress=False)
    assert {
        name: metrics[f"recall/{name}/accuracy"] for name in ("images/3", "images/2", "turns/3", "turns/2")
    } == {
        "images/3": 1.0,
        "images/2": 0.0,
        "turns/3": 1.0,
        "turns/2": 0.0,
    }
    assert [metrics[f"recall/images_back/{number}/num"] for number in (1, 2)] == [2, 1]
    assert [metrics[f"recall/turns_back/{number}/num"] for number in (1, 2)] == [1, 2]
    assert [metrics[f"recall/position/{number}/num"] for number in (1, 2)] == [2, 1]


class LastOf:
    """The texts of another, to every question."""

    name = "last"

    def __init__(self, says: Says) -> None:
        self.says = says

    def respond(self, prompts: list[Prompt]) -> list[Response]:
        return [Response(text=self.says.texts[f"item{prompt.item_id}"]) for prompt in prompts]


def test_the_responders_own_answers_stand_between_the_questions(tmp_path: Path) -> None:
    evaluate([recall(tmp_path, record(1))], Says(item1="red"), None, tmp_path / "run", progress=False)
    line = json.loads((tmp_path / "run" / "predictions" / "recall.jsonl").read_text(encoding="utf-8"))
    assert [one["content"] for one in line["dialogue"] if one["role"] == "assistant"] == [
        "Yes.",
        "Yes.",
        "red",
    ]
    assert (line["label"], line["answer"], line["correct"]) == ("red", "red", True)


def test_files_are_made_when_they_are_asked_for(tmp_path: Path) -> None:
    made: list[Recall] = []
    benchmark = Recall(
        annotations=tmp_path / "recall.json",
        images=tmp_path / "images",
        prepare=lambda: made.append(recall(tmp_path, record(1))),
    )
    assert not made
    assert benchmark.scorer.asked.keys() == {"1"}
    assert [item.label for item in benchmark.items()] == ["red"]
    assert len(made) == 1


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("It was RED, the other green.", "red"),
        ("It was infrared.", None),
        ("Red or green? Green is IMAGE#2. Therefore, the answer is red.", "red"),
        ("Red. Therefore, I cannot say.", None),
    ],
)
def test_the_option_that_a_reply_names_first_or_concludes_counts(reply: str, option: str | None) -> None:
    assert read_option(reply, COLORS) == option


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"asked_image_id": 9},
            "asked_image_id 9: expected a picture of a message before the last question, got 1, 2",
        ),
        ({"answers": {"1": ["pink"]}}, "'pink' is none of the options red, green, blue"),
        (
            {"answers": {"2": ["red"]}},
            r"exactly one of two or more options for the asked picture 1, got \[\] of 3",
        ),
        ({"answers": {"1": ["red", "blue"]}}, r"got \['red', 'blue'\] of 3"),
        ({"options": ["red"], "answers": {"1": ["red"]}}, r"got \['red'\] of 1"),
    ],
)
def test_a_record_that_asks_nothing_answerable_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_asked(record(1, **changes))
    with pytest.raises(AnnotationError, match=r"recall\.json, record 0"):
        recall(tmp_path, record(1, **changes)).items()


def test_a_picture_of_the_last_question_is_not_remembered() -> None:
    dialogue = [question("See?", 1), {"role": "assistant", "content": "Yes."}, question("Its color?", 2)]
    with pytest.raises(AnnotationError, match="before the last question"):
        read_asked(record(1, asked=2, dialogue=dialogue, answers={"2": ["green"]}))
