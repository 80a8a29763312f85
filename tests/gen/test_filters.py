"""What each filter lets pass, and what it says of the rest."""

import random
import re
import time

import pytest

from sparkles.gen.filters import GivesAway, LongAnswers, NearDuplicate, UniquePair, apply, demonstrations
from sparkles.prompt_format import image_reference
from sparkles.types import Dialogue, Image, InputError, Message


def dialogue(question: str, answer: str = "Yes.", *, caption: str = "", image_id: int = 7) -> Dialogue:
    """One turn; `{}` in the question becomes the image."""
    return Dialogue(
        messages=(
            Message(
                role="user",
                content=question.replace("{}", image_reference(image_id)),
                images=(Image(image_id=image_id, caption=caption),) if "{}" in question else (),
            ),
            Message(role="assistant", content=answer),
        )
    )


def test_the_first_objection_removes_a_dialogue_and_is_kept_with_it() -> None:
    dialogues = [dialogue("Is {} a beach?", "yes " * number) for number in (3, 1, 2)]
    kept, [removed] = apply({"long": LongAnswers(min_words=2), "longer": LongAnswers(min_words=2)}, dialogues)
    assert kept == [dialogues[0], dialogues[2]]
    assert (removed.index, removed.filter, removed.dialogue) == (1, "long", dialogues[1])
    assert removed.reason == "words of each answer: 1; expected at least 2"


def test_a_pair_of_verb_and_object_passes_once() -> None:
    check = UniquePair(verbs="rules")
    assert check(dialogue("Compare the bridges of {}.")) == ""
    assert check(dialogue("Could you compare a bridge with {}?")) == "another dialogue asks to compare bridge"
    assert check(dialogue("Where is {}?")) == "the first question has no verb with an object"


def test_demonstrations_have_pairs_of_their_own_and_long_answers() -> None:
    long = "word " * 100
    dialogues = [
        dialogue("Tell a story about {}.", long),
        dialogue("Write a poem about {}.", long),
        dialogue("Tell the story of {}.", "Short."),
        dialogue("Plan a trip to {}.", "Short."),
    ]
    kept, removed = demonstrations(dialogues, verbs="rules")
    assert kept == [dialogues[1]]  # "tell story" occurs twice, if only once at length
    assert [one.filter for one in removed] == ["lone_pair", "long_answers", "long_answers"]


def rouge_l(one: list[str], other: list[str]) -> float:
    """F-measure of the longest common subsequence, by the textbook."""
    above = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, known in enumerate(other):
            row.append(above[place] + 1 if word == known else max(above[place + 1], row[place]))
        above = row
    return 2 * above[-1] / (len(one) + len(other))


def test_near_duplicates_are_those_above_the_rouge_l_of_the_textbook() -> None:
    chooser = random.Random(0)
    words = [
        "compare",
        "the",
        "old",
        "bridge",
        "of",
        "this",
        "city",
        "with",
        "a",
        "new",
        "tower",
        "and",
        "tell",
    ]
    questions = [" ".join(chooser.choices(words, k=chooser.randint(3, 9))) for _ in range(60)]
    check, kept = NearDuplicate(threshold=0.6), []
    for question in questions:
        expected = max((rouge_l(question.split(), known.split()) for known in kept), default=0.0)
        reason = check(dialogue(question))
        assert bool(reason) == (expected > 0.6), question
        if reason:
            found = re.match(r"ROUGE-L ([\d.]+) with", reason)
            assert found is not None
            assert float(found[1]) == pytest.approx(expected, abs=0.006)
        else:
            kept.append(question)
    assert 5 < len(kept) < 60


def test_other_pictures_make_no_other_question() -> None:
    check = NearDuplicate()
    assert check(dialogue("What is odd about {}?", image_id=7)) == ""
    assert (
        check(dialogue("What is odd about {}?", image_id=801))
        == "ROUGE-L 1.00 with 'What is odd about image?'"
    )
    assert check(dialogue("Write a limerick for the animals of {}.")) == ""


def test_the_second_turn_can_be_compared_instead() -> None:
    check = NearDuplicate(turn=2)
    assert check(dialogue("Tell a story about {}.")) == check(dialogue("Tell a story about {}.")) == ""


def test_ten_thousand_questions_are_compared_in_seconds() -> None:
    chooser = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    dialogues = [dialogue(" ".join(chooser.choices(words, k=25))) for _ in range(2_000)]
    start = time.process_time()
    kept, _ = apply({"near": NearDuplicate()}, dialogues)
    assert len(kept) == 2_000
    assert 25 * (time.process_time() - start) < 60  # 10,000 make 25 times as many pairs


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (
            "Why does a brown dog run along the wet sand at {}?",
            "copies_caption: 'a brown dog run along the wet sand'",
        ),
        ("{} shows a dog. Write a story about it.", "describes_picture: 'IMAGE#7 shows a'"),
        (
            "Compare {}, which shows a dog, with your idea of a dog.",
            "describes_picture: 'IMAGE#7, which shows'",
        ),
        ("Based on the description, is {} by the sea?", "speaks_of_caption: 'Based on the description'"),
    ],
)
def test_questions_that_tell_what_to_see_are_named(question: str, reason: str) -> None:
    check = GivesAway()
    assert check(dialogue(question, caption="A brown dog run along the wet sand.")) == reason


@pytest.mark.parametrize(
    "question",
    [
        "Can you link the celebration in {} with a dog?",
        "Which picture is wetter, the last one or {}?",
        "Write a caption and a description for {}.",
        "Does {} show a dog?",
        "Who is in the picture if {} shows a family?",
    ],
)
def test_questions_that_leave_it_to_the_pictures_pass(question: str) -> None:
    assert GivesAway()(dialogue(question, caption="A brown dog runs along the wet sand.")) == ""


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        InputError, match="rules: unknown blurry; expected some of copies_caption, describes_picture"
    ):
        GivesAway(rules=["blurry"])
    with pytest.raises(InputError, match="threshold is 0, expected more than 0 and at most 1"):
        NearDuplicate(threshold=0)
