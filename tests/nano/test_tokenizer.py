import random
import string
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparkles.nano.corpus import random_conversation, slot_words
from sparkles.nano.pretrain_language import FACT_WORDS, VERDICT_WORDS
from sparkles.nano.tokenizer import BOS, EOS, build_tokenizer
from sparkles.nano.world import random_scene
from sparkles.prompt_format import IMAGE_PLACEHOLDER, MINIGPT4, SYSTEM_MESSAGE

TEXTS = string.ascii_letters + string.digits + string.punctuation.replace("<", "") + " \nñé漢🙂"


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_each_word_of_the_world_is_one_token(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    slots = slot_words(random_scene(random.Random(0), "train"))
    for word in {*FACT_WORDS, *VERDICT_WORDS, *(word for words in slots for word in words)}:
        assert nano_tokenizer.tokenize(word) == ["▁" + word]
        assert nano_tokenizer.convert_tokens_to_ids("▁" + word) != nano_tokenizer.unk_token_id


def test_the_language_needs_no_letters_and_no_bytes(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    rng = random.Random(1)
    for _ in range(30):
        for message in random_conversation(rng).messages:
            for segment in message.content.split(IMAGE_PLACEHOLDER):
                tokens = nano_tokenizer.tokenize(segment)
                letters = [token for token in tokens if len(token) == 1 and token.isalpha() and token != "a"]
                assert letters == []
                assert not any(token.startswith("<0x") for token in tokens)


@given(text=st.text(TEXTS, max_size=40))
def test_any_text_goes_in_and_comes_out_again(nano_tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert nano_tokenizer.decode(ids(nano_tokenizer, text)) == text


def test_the_strings_of_the_prompt_format_are_whole_tokens(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    text = f"{MINIGPT4.user_prefix}IMAGE#123402<Img>"
    assert nano_tokenizer.tokenize(text) == ["▁", "###", "Human:", "▁IMAGE#", "12", "34", "02", "<Img>"]
    assert nano_tokenizer.tokenize(f"yes.{MINIGPT4.end_of_answer}") == ["▁yes", ".", "###"]
    assert ids(nano_tokenizer, SYSTEM_MESSAGE).count(nano_tokenizer.unk_token_id) == 0


def test_the_same_words_in_another_order_make_the_same_tokenizer() -> None:
    texts = ["a big red star", "on a dark background", "IMAGE#7 has one object."]
    first, second = build_tokenizer(texts), build_tokenizer(texts[::-1] * 2)
    assert first.get_vocab() == second.get_vocab()


def test_a_saved_tokenizer_gives_the_same_ids(
    nano_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    nano_tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "###Human: Is the red star at the top-left? ñ###Assistant: yes.###"
    assert ids(loaded, text) == ids(nano_tokenizer, text)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (BOS, EOS, EOS)
