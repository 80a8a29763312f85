"""Root verbs and objects by word order, against what people say of the same questions."""

from pathlib import Path

import pytest

from sparkles.gen.verb_rules import pair_by_rules
from sparkles.gen.verbs import RULES, disagreements

LABELLED = Path(__file__).with_name("verb_noun_pairs.csv")
"""100 questions: of the scenes world (16), the paper (6), recorded replies (8), and 70 written for this purpose."""


def test_the_rules_agree_with_people_on_97_of_100_questions() -> None:
    num, differ = disagreements(RULES, LABELLED)
    assert num == 100
    assert len(differ) <= 3, differ


@pytest.mark.parametrize(
    ("sentence", "pair"),
    [
        ("I have a picture of a park in IMAGE#3, can you suggest some games?", ("suggest", "game")),
        ("Have a look at IMAGE#3.", ("have", "look")),
        ("Could you give IMAGE#3 a title?", ("give", "title")),
        ("What type of vehicle is the man in IMAGE#3 driving?", ("drive", "type")),
        ("Do the people in IMAGE#1 share a hobby with those in IMAGE#2?", ("share", "hobby")),
        ("The man in IMAGE#3 wears a hat.", ("wear", "hat")),
        ("Describe the creative and colorful costumes of IMAGE#3.", ("describe", "costume")),
        ("Don't you think the bird in IMAGE#3 could survive in IMAGE#4?", None),
        ("I'd like you to write a poem.", None),
        ("What would be a good title for IMAGE#3?", None),
        ("Describe how the two scenes differ.", None),
        ("IMAGE#3", None),
        ("?!", None),
        ("", None),
    ],
)
def test_word_order_gives_the_pair(sentence: str, pair: tuple[str, str] | None) -> None:
    assert pair_by_rules(sentence) == pair
