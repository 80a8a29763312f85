"""The numbers of a data set, counted by hand."""

from collections import Counter

import pytest

from sparkles.gen.statistics import summarize
from sparkles.gen.verbs import RULES
from sparkles.prompt_format import image_reference
from sparkles.types import Dialogue, Image, InputError, Message


def turn(question: str, answer: str, *image_ids: int) -> tuple[Message, Message]:
    shown = [image_reference(image_id) for image_id in image_ids]
    images = tuple(Image(image_id=image_id) for image_id in image_ids)
    return (
        Message(role="user", content=question.format(*shown), images=images),
        Message(role="assistant", content=answer),
    )


DIALOGUES = [
    Dialogue(
        messages=(
            *turn("Compare the birds of {} and {}.", "One bird sings.", 1, 2),
            *turn("Tell a story about {}.", "IMAGE#3 is far away.", 3),
        )
    ),
    Dialogue(messages=turn("Compare a bird with {}. What is it?", "A bird: “it sings”.", 1)),
]


def test_table_2_and_the_pairs() -> None:
    statistics = summarize("mine", DIALOGUES, RULES)
    assert statistics.table() == {
        "dialogues": 2,
        "unique images": 3,
        "total images": 4,
        "images per dialogue": 2.0,
        "turns per dialogue": 1.5,
        "mean words of users": pytest.approx((7 + 5 + 8) / 3),
        "mean words of assistants": pytest.approx((3 + 4 + 4) / 3),
        "questions": 3,
        "with verb and object": 3,
        "different pairs": 2,
        "pairs that occur once": 1,
    }
    assert statistics.num_questions == {(1, 1): 1, (1, 2): 1, (2, 1): 1}
    assert statistics.pairs[1, 2] == Counter({("compare", "bird"): 1})
    assert statistics.record()["pairs"] == {"compare bird": 2, "tell story": 1}
    assert statistics.answer_words == Counter(
        {"bird": 2, "sings": 2, "one": 1, "is": 1, "far": 1, "away": 1, "a": 1, "it": 1}
    )


def test_a_question_without_a_pair_is_counted() -> None:
    statistics = summarize("mine", [Dialogue(messages=turn("Where is {}?", "Here.", 1))], RULES)
    assert (statistics.num_without_pair, statistics.all_pairs.total()) == (1, 0)


def test_an_empty_set_has_no_statistics() -> None:
    with pytest.raises(InputError, match="mine holds no dialogues"):
        summarize("mine", [], RULES)
