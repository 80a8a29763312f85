from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from sparkles.eval.benchmark import Prediction
from sparkles.eval.compare import compare_runs, comparison_table
from sparkles.types import InputError

Make = Callable[..., Prediction]


def shown(ours: list[Prediction], theirs: list[Prediction], name: str = "bison") -> str:
    text = StringIO()
    table = comparison_table(compare_runs({name: ours}, {name: theirs}), "mine", "yours")
    Console(width=200, file=text).print(table)
    return " ".join(text.getvalue().split())  # notes are folded


def test_two_runs_are_compared_on_the_items_of_both(make_prediction: Make) -> None:
    ours = [make_prediction(str(n), correct=n < 30) for n in range(40)]
    theirs = [make_prediction(str(n), correct=n < 10 or n >= 38) for n in range(5, 45)]
    [found] = compare_runs({"bison": ours, "nlvr2": ours}, {"bison": theirs})
    assert (found.num, found.only_run, found.only_other, found.other_content) == (35, 5, 5, 0)
    assert (found.run, found.other) == (25 / 35, 7 / 35)
    assert found.difference.value == pytest.approx(18 / 35)
    assert (found.run_only_right, found.other_only_right) == (20, 2)
    assert found.difference.p_value < 0.001
    assert found.detectable is not None


def test_an_answer_that_cannot_be_read_is_wrong_and_counted(make_prediction: Make) -> None:
    ours = [make_prediction(str(n), answer=None if n == 0 else "TRUE") for n in range(10)]
    theirs = [make_prediction(str(n)) for n in range(10)]
    [found] = compare_runs({"bison": ours}, {"bison": theirs})
    assert (found.run, found.other, found.unscored) == (0.9, 1.0, 1)


def test_ratings_are_compared_where_both_have_one(make_prediction: Make) -> None:
    ours = [make_prediction(str(n), answers=["long answer", "x"], rating=6.0 + n % 3) for n in range(20)]
    theirs = [make_prediction(str(n), answers=["short", "x"], rating=5.0 + n % 2) for n in range(20)]
    theirs[3] = make_prediction("3", answers=["short", "x"], rating=None)
    [found] = compare_runs({"sparkles_eval": ours}, {"sparkles_eval": theirs})
    assert (found.metric, found.num, found.unscored, found.judges) == ("overall", 19, 1, ("judge",))
    assert found.difference.value == pytest.approx(found.run - found.other)
    assert found.difference.test == "paired permutation"
    assert found.equal_length is None  # the run's answers are longer throughout
    assert found.run_only_right is None


def test_a_better_rating_for_more_words_is_not_one_at_equal_length(make_prediction: Make) -> None:
    extra = [0, 0, 5, 10, 20, 20, 30, 30, 40, 0, 10, 0]
    ours = [
        make_prediction(str(n), answers=["w " * (10 + words), "x"], rating=5.0 + (words > 0))
        for n, words in enumerate(extra)
    ]
    theirs = [make_prediction(str(n), answers=["w " * 10, "x"], rating=5.0) for n in range(len(extra))]
    [found] = compare_runs({"sparkles_eval": ours}, {"sparkles_eval": theirs})
    assert found.equal_length is not None
    assert found.equal_length.value < 0.3 < found.difference.value


def test_the_table_says_what_was_compared(make_prediction: Make) -> None:
    ours = [make_prediction(str(n), question=f"sentence {n // 2}", correct=n < 30) for n in range(40)]
    theirs = [make_prediction(str(n), question=f"sentence {n // 2}", correct=n < 10) for n in range(41)]
    text = shown(ours, theirs)
    for part in ("mine", "yours", "n=40", "1 in other only", "+50.0", "exact McNemar", "cluster-robust t"):
        assert part in text
    assert "Some items share a sentence or a picture" in text


def test_different_judges_are_named(make_prediction: Make) -> None:
    runs = [
        [make_prediction(str(n), answers=["a", "b"], rating=float(1 + n % 4), judge=judge) for n in range(12)]
        for judge in ("gpt-4", "rubric")
    ]
    assert "rated by different judges (gpt-4, rubric)" in shown(*runs, name="sparkles_eval")


def test_runs_with_nothing_in_common_are_refused(make_prediction: Make) -> None:
    one, other = make_prediction("1"), make_prediction("1", question="Else?")
    with pytest.raises(InputError, match="no benchmark in both runs: run has bison, other has nlvr2"):
        compare_runs({"bison": [one]}, {"nlvr2": [one]})
    with pytest.raises(InputError, match=r"bison: no item in both runs .*1 with one id but other content"):
        compare_runs({"bison": [one]}, {"bison": [other]})
    [found] = compare_runs({"bison": [one]}, {"bison": [other]}, "id")
    assert found.num == 1


def test_a_single_rated_dialogue_is_compared(make_prediction: Make) -> None:
    ours, theirs = ([make_prediction("1", answers=["a", "b"], rating=rating)] for rating in (5.0, 4.0))
    [found] = compare_runs({"sparkles_eval": ours}, {"sparkles_eval": theirs})
    assert (found.num, found.difference.value, found.difference.p_value) == (1, 1.0, 1.0)
    assert "n=1" in shown(ours, theirs, name="sparkles_eval")


def test_ratings_that_failed_are_not_compared(make_prediction: Make) -> None:
    rated, unrated = (make_prediction("1", answers=["a", "b"], rating=rating) for rating in (5.0, None))
    with pytest.raises(InputError, match="no dialogue is rated in both runs"):
        compare_runs({"sparkles_eval": [rated]}, {"sparkles_eval": [unrated]})
