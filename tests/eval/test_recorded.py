import json
from pathlib import Path

import pytest

from sparkles.eval.recorded import RecordedResponder, Unjudged
from sparkles.eval.run import IncompleteError, evaluate
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.nano.rubric import RubricJudge
from sparkles.types import InputError, Prompt, Response


class Speaker:
    """Answers with the number of the question."""

    name = "speaker"

    def __init__(self) -> None:
        self.asked = 0

    def respond(self, prompts: list[Prompt]) -> list[Response]:
        self.asked += len(prompts)
        return [Response(text=f"{prompt.item_id}: {len(prompt.messages)}") for prompt in prompts]


@pytest.fixture
def dialogues(tiny_world: Path) -> SparklesEval:
    folder = tiny_world / "evaluation" / "SparklesEval"
    annotations = folder / "annotations" / "sparkles_evaluation_sparkleseval_annotations.json"
    return SparklesEval(annotations=annotations, images=folder / "images")


@pytest.fixture
def answered(dialogues: SparklesEval, tmp_path: Path) -> Path:
    """A run whose answers wait for a judge."""
    evaluate([dialogues], Speaker(), Unjudged(), tmp_path / "answers", progress=False)
    return tmp_path / "answers"


def lines(run_dir: Path) -> list[dict[str, object]]:
    text = (run_dir / "predictions" / "sparkles_eval.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_answers_can_wait_for_their_judge(answered: Path) -> None:
    metrics = json.loads((answered / "metrics.json").read_text())
    assert (metrics["sparkles_eval/unscored"], metrics["sparkles_eval/num"]) == (4, 4)
    assert metrics["sparkles_eval/judge"] == "unjudged"


def test_another_judge_reads_the_same_answers(
    dialogues: SparklesEval, answered: Path, tmp_path: Path
) -> None:
    responder = RecordedResponder(run=answered)
    for standard in ("fair", "blind"):
        judge = RubricJudge(standard=standard)
        metrics = evaluate([dialogues], responder, judge, tmp_path / standard, progress=False)
        assert (metrics["sparkles_eval/unscored"], metrics["sparkles_eval/judge"]) == (0, judge.name)
        assert [line["dialogue"] for line in lines(tmp_path / standard)] == [
            line["dialogue"] for line in lines(answered)
        ]


def test_other_answers_are_told_from_these(answered: Path) -> None:
    before = RecordedResponder(run=answered).name
    path = answered / "predictions" / "sparkles_eval.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("1: 1", "1: one"), encoding="utf-8")
    assert RecordedResponder(run=answered).name != before


def test_an_item_that_was_not_asked_has_no_answer(
    dialogues: SparklesEval, answered: Path, tmp_path: Path
) -> None:
    path = answered / "predictions" / "sparkles_eval.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(
        IncompleteError, match=r"1 of 4 items, the last: .*answers has no answer to this question"
    ):
        evaluate(
            [dialogues], RecordedResponder(run=answered), RubricJudge(), tmp_path / "judged", progress=False
        )


def test_options_cannot_be_scored(answered: Path) -> None:
    with pytest.raises(InputError, match="likelihood needs the model"):
        RecordedResponder(run=answered).respond([Prompt(messages=(), options=("a", "b"))])
