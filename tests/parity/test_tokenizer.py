"""Token ids, decoding and labels of the original's tokenizer and of its text functions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sparkles.data.encoding import Encoded, Encoder, EncodingError, Tokenizer
from sparkles.data.tokenizer import SentencePieceTokenizer
from sparkles.prompt_format import MINIGPT4
from sparkles.types import Prompt, Sample


@pytest.fixture(scope="module")
def table(records: Callable[[str], Any]) -> dict[str, Any]:
    return records("tokenizer_table")


def test_the_folder_of_a_llama_model_gets_the_tokenizer_that_is_exact(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer, SentencePieceTokenizer)


def test_texts_have_the_ids_of_the_original(table: dict[str, Any], image_tokenizer: Tokenizer) -> None:
    texts = [record["text"] for record in table["texts"]]
    for key, with_bos in (("input_ids", True), ("input_ids_no_special", False)):
        ids = image_tokenizer(texts, add_special_tokens=with_bos)["input_ids"]
        assert ids == [record[key] for record in table["texts"]]


def test_ids_are_spelled_as_by_the_original(table: dict[str, Any], image_tokenizer: Tokenizer) -> None:
    spelled = [image_tokenizer.decode(record["input_ids"]) for record in table["texts"]]
    assert spelled == [record["decode"] for record in table["texts"]]


def test_a_prompt_without_labels_has_the_ids_of_the_original(
    table: dict[str, Any], tokenizer: Tokenizer
) -> None:
    record = table["is_train_false"]
    assert tokenizer([record["text"]], add_special_tokens=True)["input_ids"] == [record["input_ids"]]


def encode(record: dict[str, Any], make_encoder: Callable[..., Encoder], **switches: bool) -> Encoded:
    """What an instruction and its answer become, where the instruction ends in as many spaces as recorded."""
    prompt = record["instruction"].rstrip(" ")
    encoder = make_encoder(
        max_length=record["max_length"],
        prompt_format=replace(MINIGPT4, answer_prefix=record["instruction"].removeprefix(prompt)),
        **switches,
    )
    messages = MINIGPT4.parse_prompt(prompt)
    return encoder.encode_sample(Sample(prompt=Prompt(messages=messages), answer=record["answer"]))


def test_ids_and_labels_at_any_limit_are_those_of_the_original(
    table: dict[str, Any], make_encoder: Callable[..., Encoder], subtests: pytest.Subtests
) -> None:
    for record in table["labels"]:
        with subtests.test(
            instruction=record["instruction"], answer=record["answer"], limit=record["max_length"]
        ):
            encoded = encode(record, make_encoder, cut_anywhere=True, unmask_prompt_end=True)
            assert encoded.input_ids == record["input_ids"]
            assert encoded.labels == record["labels"]
            assert len(encoded.input_ids) == sum(record["attention_mask"])


def test_by_default_no_word_of_the_instruction_is_a_label(
    table: dict[str, Any],
    tokenizer: Tokenizer,
    make_encoder: Callable[..., Encoder],
    subtests: pytest.Subtests,
) -> None:
    refused = 0
    for record in table["labels"]:
        with subtests.test(
            instruction=record["instruction"], answer=record["answer"], limit=record["max_length"]
        ):
            try:
                encoded = encode(record, make_encoder)
            except EncodingError:  # not even the prompt fits
                refused += 1
                continue
            assert encoded.input_ids == record["input_ids"]
            prompt = record["instruction"].rstrip(" ")
            length = len(tokenizer([prompt], add_special_tokens=True)["input_ids"][0])
            assert encoded.labels == [-100] * length + record["input_ids"][length:]
    assert refused
