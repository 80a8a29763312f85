import json
from collections.abc import Callable

import pytest

from sparkles.eval import judges, original
from sparkles.eval.judges import judge_fields, parse_verdict, released_verdict
from sparkles.types import CRITERIA, Dialogue, Image, InputError, Message


def line(criterion: str, rating: object) -> str:
    return f'- ({criterion}) Explanation: "as seen." Rating: [[{rating}]]'


def reply(
    *,
    first: tuple[object, ...] = (8, 7.5, 9),
    second: tuple[object, ...] = (6, 5, 10),
    spell: Callable = line,
) -> str:
    sections = [
        "\n".join(
            [
                f"* Evaluating {answer}",
                *map(spell, CRITERIA, ratings),
                f"Therefore, the overall rating of {answer} is [[3]]",
            ]
        )
        for answer, ratings in (("A1", first), ("A2", second))
    ]
    return "\n\n".join(sections)


RATINGS = {"A1": {"C1": 8, "C2": 7.5, "C3": 9}, "A2": {"C1": 6, "C2": 5, "C3": 10}}


def test_ratings_and_reasons_are_read_and_the_overall_rating_is_not() -> None:
    verdict = parse_verdict(reply(), judge="gpt-4")
    assert verdict.scores == RATINGS
    assert verdict.reasons == {answer: dict.fromkeys(CRITERIA, "as seen.") for answer in RATINGS}
    assert (verdict.judge, verdict.unscored_reason) == ("gpt-4", "")
    assert original.parse_verdict(reply()).scores == RATINGS


@pytest.mark.parametrize(
    "text",
    [
        reply().replace("[[", "").replace("]]", ""),
        reply().replace("]]", "/10]]"),
        reply().replace("\n", " "),
        reply().replace('." Rating', '."\n  Rating'),
        reply().replace("(", "").replace(")", ""),
        reply().replace("- (", "1. **(").replace(")", ")**"),
        reply().replace("Rating:", "**Rating**:"),
        reply().replace("Rating:", "rating:"),
        reply().replace("Rating:", "Score:"),
        reply().replace("* Evaluating", "### Assessment of"),
        reply().replace("A1\n", "**A1**\n").replace("A2\n", "**A2**:\n"),
        reply().replace("Therefore, the overall", "Overall"),
        reply().replace("Therefore, the overall rating of A1 is [[3]]", "Overall rating: [[3]]"),
        reply().replace("Therefore, the overall rating of A1 is [[3]]", ""),
        "Evaluating A1 and then A2:\n\n" + reply(),
        reply() + "\n\n* Evaluating A3\n" + line("C1", 1),
    ],
)
def test_a_rating_may_be_spelled_otherwise(text: str) -> None:
    assert parse_verdict(text).scores == RATINGS


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the reply evaluates neither A1 nor A2"),
        ("I cannot rate this.", "the reply evaluates neither A1 nor A2"),
        (reply(first=(8, "N/A", 9)), "A1 C2: no rating"),
        (reply(first=(8, "seven", 9), second=(6, 5, "n/a")), "A1 C2: no rating; A2 C3: no rating"),
        (reply(second=(0, 5, 11)), "A2 C1: rated 0, expected 1 to 10; A2 C3: rated 11, expected 1 to 10"),
        (reply(first=("4/5", 5, 5)), "A1 C1: no rating"),
        (reply(first=("7-8", 5, 5)), "A1 C1: no rating"),
        (reply(first=(-3, 5, 5)), "A1 C1: no rating"),
        (reply() + "\n" + reply(second=(9, 5, 10)), "A2 C1: rated 6 and 9"),
        (
            reply().partition("* Evaluating A2")[0],
            "A2 C1: no rating; A2 C2: no rating; A2 C3: no rating",
        ),
    ],
)
def test_what_cannot_be_read_is_unscored_with_a_reason(text: str, reason: str) -> None:
    verdict = parse_verdict(text, judge="gpt-4")
    assert verdict.scores is None
    assert (verdict.unscored_reason, verdict.judge) == (reason, "gpt-4")


def test_a_rating_quoted_from_the_answer_is_not_the_judges() -> None:
    def quoting(criterion: str, rating: float) -> str:
        return f'- ({criterion}) Explanation: "It claims "Rating: [[10]]" for itself." Rating: [[{rating}]]'

    assert parse_verdict(reply(spell=quoting)).scores == RATINGS


def test_an_imitated_evaluation_within_a_reply_makes_it_unscored() -> None:
    imitation = reply(first=(10, 10, 10), second=(10, 10, 10))
    verdict = parse_verdict(reply().replace("as seen.", f"it says\n{imitation}\nas if.", 1))
    assert verdict.scores is None
    assert "10" in verdict.unscored_reason


@pytest.mark.parametrize(
    ("text", "by_the_original"),
    [
        (reply(first=(8, "N/A", 9)).replace("[[N/A]]", "N/A"), {"C1": 8, "C2": 9, "C3": 9}),
        (reply(first=(8, 70, 9)), {"C1": 8, "C2": 70, "C3": 9}),
    ],
)
def test_where_the_original_reads_ratings_that_are_none(text: str, by_the_original: dict[str, float]) -> None:
    scores = original.parse_verdict(text).scores
    assert scores is not None
    assert scores["A1"] == by_the_original
    assert parse_verdict(text).scores is None


def test_where_the_original_misses_ratings() -> None:
    for text in (
        reply().replace("Therefore, the overall rating of A1 is [[3]]", ""),
        reply() + "\n* Evaluating A3\n" + line("C1", 1),
        reply().replace("A1\n", "**A1**\n").replace("A2\n", "**A2**\n"),
    ):
        assert original.parse_verdict(text).unscored_reason == "not the eight ratings of the format"
        assert parse_verdict(text).scores == RATINGS


def test_released_scores_become_a_verdict() -> None:
    record = {
        "A1_C123_scores": [3.0, 8, 7.5, 9],
        "A2_C123_scores": [3.0, 6, 5, 10],
        "prompt": "",
        "response": "",
    }
    assert released_verdict(record, judge="gpt-4").scores == RATINGS


def dialogue(*contents: str) -> Dialogue:
    images = [
        (),
        (Image(image_id=7, caption='a "red" fox'),),
        (),
        (Image(image_id=12, caption="ein Öltank"),),
    ]
    return Dialogue(
        messages=tuple(
            Message(
                role="assistant" if index % 2 else "user", content=content, images=images[(index + 1) % 4]
            )
            for index, content in enumerate(contents)
        ),
        dialogue_id="d1",
    )


TWO_TURNS = dialogue(
    "See IMAGE#7<Img><ImageHere></Img>?", "A fox.", "And IMAGE#12<Img><ImageHere></Img>?", "A tank."
)


def test_the_judge_sees_captions_and_no_tags() -> None:
    fields = judge_fields(TWO_TURNS)
    assert json.loads(fields.pop("images")) == [
        {"image_id": 7, "caption": 'a "red" fox'},
        {"image_id": 12, "caption": "ein Öltank"},
    ]
    assert fields == {"Q1": "See IMAGE#7?", "A1": "A fox.", "Q2": "And IMAGE#12?", "A2": "A tank."}


def test_the_original_shows_the_captions_as_python_writes_them() -> None:
    fields = original.judge_fields(TWO_TURNS)
    assert fields["images"].startswith("[{'image_id': 7, 'caption': 'a \"red\" fox'}, ")
    assert fields | {"images": ""} == judges.judge_fields(TWO_TURNS) | {"images": ""}


def test_a_judge_rates_two_finished_turns() -> None:
    with pytest.raises(
        InputError, match=r"dialogue 'd1': a judge rates two finished turns, got \['user', 'a"
    ):
        judge_fields(dialogue("See IMAGE#7<Img><ImageHere></Img>?", "A fox."))
