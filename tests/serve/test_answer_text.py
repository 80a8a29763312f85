import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from sparkles.config import CONFIG_DIR
from sparkles.data.encoding import Tokenizer
from sparkles.data.tokenizer import load_tokenizer
from sparkles.serve.answer_text import AnswerText, TokenScore

NANO = Path(CONFIG_DIR).parent / "sparkles" / "nano" / "weights" / "language"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(NANO)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    (ids,) = tokenizer([text], add_special_tokens=False)["input_ids"]
    return list(ids)


def taken(
    tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str] = ()
) -> tuple[list[str], AnswerText]:
    """What is shown after each token, and at the end."""
    text = AnswerText(tokenizer, stops)
    shown = []
    for token_id in ids:
        text.add(token_id)
        shown.append(text.take()[0])
        if text.ended:
            break
    return [*shown, text.take(last=True)[0]], text


@pytest.mark.parametrize(
    "text", ["Two cats.", "a red star, a 🙂 and naïve 雪", " spaces   within ", "\n- one\n- two\n"]
)
def test_pieces_make_up_the_whole_and_are_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    ids = ids_of(tokenizer, text)
    pieces, _ = taken(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids).strip() == text.strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_pieces_make_up_what_decoding_all_tokens_gives_whatever_they_are(tokenizer: Tokenizer) -> None:
    rng, first_word = random.Random(0), 3 + 256  # behind special tokens and bytes
    for _ in range(50):
        ids = [rng.randrange(first_word, 695) for _ in range(30)]
        assert "".join(taken(tokenizer, ids)[0]) == tokenizer.decode(ids).strip()


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "a 🙂")[:-1]
    pieces, _ = taken(tokenizer, ids)
    assert "".join(pieces[:-1]) == "a"
    assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("A cat.###Human: no", ["###"], "A cat."),
        ("A cat. ## and a dog.", ["###"], "A cat. ## and a dog."),
        ("A cat. ##", ["###"], "A cat. ##"),
        ("One. Two. Three.", ["Two", "One. T"], ""),
        ("One. Two. Three.", ["Three", " Tw"], "One."),
    ],
)
def test_it_ends_in_front_of_the_first_stop_string(
    tokenizer: Tokenizer, text: str, stops: list[str], shown: str
) -> None:
    pieces, answer = taken(tokenizer, ids_of(tokenizer, text), stops)
    assert "".join(pieces) == shown
    assert answer.ended == any(stop in text for stop in stops)


def test_what_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ["star at"])
    for token_id in ids_of(tokenizer, "a red star"):
        answer.add(token_id)
    assert answer.take()[0] == "a red"
    for token_id in ids_of(tokenizer, "and"):
        answer.add(token_id)
    assert answer.take(last=True)[0] == " star and"


def test_special_tokens_are_not_shown_and_the_end_token_ends(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_token_id is not None
    assert tokenizer.eos_token_id is not None
    first, second = ids_of(tokenizer, "a red"), ids_of(tokenizer, "star")
    pieces, answer = taken(tokenizer, [*first, tokenizer.bos_token_id, tokenizer.eos_token_id, *second])
    assert ("".join(pieces), answer.ended) == ("a red", True)
    assert taken(tokenizer, [*first, tokenizer.bos_token_id], ["<s>"])[1].ended


def test_tokens_are_told_with_the_text_that_they_are_part_of(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, ["###"])
    told: list[str] = []
    for token_id in ids_of(tokenizer, "Two cats.###"):
        answer.add(token_id, TokenScore(text=answer.spell(token_id), log_prob=-1.0))
        told += [score.text for score in answer.take()[1]]
    told += [score.text for score in answer.take(last=True)[1]]
    assert "".join(told).strip() == "Two cats."
