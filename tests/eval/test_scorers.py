from pathlib import Path

import pytest

from sparkles.eval.benchmark import Item
from sparkles.eval.bison import Bison
from sparkles.eval.nlvr import NLVR
from sparkles.eval.nlvr2 import NLVR2
from sparkles.eval.scorers import ChoiceScorer
from sparkles.types import Dialogue, Message

OPTIONS = ("TRUE", "FALSE")


def score(text: str, scorer: ChoiceScorer) -> tuple[str | None, bool | None]:
    item = Item(item_id="1", questions=(), label="TRUE")
    [result] = scorer.score(
        [item], [Dialogue(messages=(Message(role="assistant", content=text),))], judge=None
    )
    return result.answer, result.correct


def test_an_answer_is_read_as_the_original_did_only_where_asked() -> None:
    text = "Therefore, the claim is not false."
    assert score(text, ChoiceScorer(options=OPTIONS)) == ("TRUE", True)
    assert score(text, ChoiceScorer(options=OPTIONS, original_answers=True)) == ("FALSE", False)


def test_an_unreadable_answer_is_not_right() -> None:
    assert score("I do not know.", ChoiceScorer(options=OPTIONS)) == (None, False)


@pytest.mark.parametrize("benchmark_class", [Bison, NLVR2])
def test_a_benchmark_passes_the_switch_on(benchmark_class: type[Bison] | type[NLVR2], tmp_path: Path) -> None:
    ours = benchmark_class(annotations=tmp_path, images=tmp_path)
    theirs = benchmark_class(annotations=tmp_path, images=tmp_path, original_answers=True)
    assert (ours.scorer.original_answers, theirs.scorer.original_answers) == (False, True)
    assert NLVR(root=tmp_path, original_answers=True).scorer.original_answers


def test_scores_of_different_readings_are_told_apart() -> None:
    item = Item(item_id="1", questions=())
    readings = [ChoiceScorer(options=OPTIONS, original_answers=original) for original in (False, True)]
    assert len({item.key("model", scorer.name) for scorer in readings}) == 2
