import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from sparkles.data.encoding import Encoder
from sparkles.nano.corpus import Conversation, random_conversation, slot_words
from sparkles.nano.pretrain_language import (
    FACT_WORDS,
    SLOTS_PER_IMAGE,
    VERDICT_WORDS,
    ConversationStream,
    LanguageLoss,
    TextSequence,
    build_language_model,
    build_optimizers,
    embed_with_words,
    encode_conversation,
    pad_text_batch,
    target_weights,
    word_ids,
)
from sparkles.prompt_format import MINIGPT4
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID, Prompt, Sample

seeds = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def model(nano_tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return build_language_model(len(nano_tokenizer))


@pytest.fixture(scope="module")
def sequences(nano_tokenizer: PreTrainedTokenizerBase) -> list[TextSequence]:
    """Four conversations of different lengths."""
    rng = random.Random(2)
    return [encode_conversation(random_conversation(rng), nano_tokenizer, system=False) for _ in range(4)]


def batch_of(*sequences: TextSequence) -> dict[str, torch.Tensor]:
    return pad_text_batch(sequences, pad_token_id=2)


def conversation_of(seed: int, num_turns: int) -> Conversation:
    rng = random.Random(seed)
    while True:
        conversation = random_conversation(rng)
        if len(conversation.messages) == 2 * num_turns:
            return conversation


# --- the same ids as in fine-tuning


@pytest.mark.parametrize("num_turns", [1, 2])
@pytest.mark.parametrize("seed", range(10))
def test_a_conversation_has_the_ids_and_labels_that_the_encoder_gives(
    nano_tokenizer: PreTrainedTokenizerBase, seed: int, num_turns: int
) -> None:
    conversation = conversation_of(seed, num_turns)
    encoder = Encoder(
        tokenizer=nano_tokenizer, prompt_format=MINIGPT4, num_query_tokens=SLOTS_PER_IMAGE, max_length=2000
    )
    *prompt, last = conversation.messages
    expected = encoder.encode_sample(Sample(prompt=Prompt(messages=tuple(prompt)), answer=last.content))
    ours = encode_conversation(conversation, nano_tokenizer, system=False)
    assert ours.input_ids == expected.input_ids
    assert expected.labels is not None
    last_answer = next(i for i, label in enumerate(expected.labels) if label != IGNORE_INDEX)
    assert ours.labels[last_answer:] == expected.labels[last_answer:]
    assert any(label != IGNORE_INDEX for label in ours.labels[:last_answer]) == (num_turns > 1)

    asked = encoder.encode_prompt(Prompt(messages=tuple(prompt)), system=True).input_ids
    with_system = encode_conversation(conversation, nano_tokenizer, system=True).input_ids
    assert with_system[: len(asked)] == asked


@given(seed=seeds)
def test_loss_is_on_every_answer_and_the_separator_behind_it_and_on_nothing_else(
    nano_tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    conversation = random_conversation(random.Random(seed))
    sequence = encode_conversation(conversation, nano_tokenizer, system=seed % 2 == 0)
    learned = [label for label in sequence.labels if label != IGNORE_INDEX]
    answers = [message.content for message in conversation.messages[1::2]]
    assert nano_tokenizer.decode(learned).strip() == "### ".join(answers) + "###"
    assert all(
        label in (IGNORE_INDEX, token)
        for token, label in zip(sequence.input_ids, sequence.labels, strict=True)
    )


@given(seed=seeds)
def test_each_image_slot_has_the_words_of_its_fact(
    nano_tokenizer: PreTrainedTokenizerBase, seed: int
) -> None:
    conversation = random_conversation(random.Random(seed))
    sequence = encode_conversation(conversation, nano_tokenizer, system=False)
    assert sequence.input_ids.count(IMAGE_TOKEN_ID) == len(sequence.slots)
    words = [of_slot for scene in conversation.scenes for of_slot in slot_words(scene)]
    for ids, of_slot in zip(sequence.slots, words, strict=True):
        assert nano_tokenizer.decode([i for i in ids if i >= 0]).split() == list(of_slot)


# --- words in place of pictures


def test_a_slot_is_the_sum_of_its_words_and_text_is_embedded_as_ever(
    model: LlamaForCausalLM, nano_tokenizer: PreTrainedTokenizerBase
) -> None:
    slots = [
        word_ids(words, nano_tokenizer)
        for words in (("big", "red", "star", "top-left"), ("dark", "background"))
    ]
    batch = {
        "input_ids": torch.tensor([[1, IMAGE_TOKEN_ID, 5, IMAGE_TOKEN_ID]]),
        "slots": torch.tensor(slots),
    }
    embedding = model.get_input_embeddings()
    embeds = embed_with_words(batch, embedding)
    torch.testing.assert_close(embeds[0, [0, 2]], embedding(torch.tensor([1, 5])))
    for position, of_slot in ((1, slots[0]), (3, slots[1])):
        words = torch.tensor([i for i in of_slot if i >= 0])
        torch.testing.assert_close(embeds[0, position], embedding(words).sum(0))


def test_jitter_moves_slots_only_and_repeats_with_its_generator(
    model: LlamaForCausalLM, sequences: list[TextSequence]
) -> None:
    batch = batch_of(*sequences)
    embedding = model.get_input_embeddings()
    plain = embed_with_words(batch, embedding)
    first, again = (
        embed_with_words(batch, embedding, jitter=0.3, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(first, again)
    is_slot = batch["input_ids"] == IMAGE_TOKEN_ID
    assert torch.equal(first[~is_slot], plain[~is_slot])
    assert not torch.isclose(first[is_slot], plain[is_slot]).all(dim=1).any()


# --- the loss


def test_the_loss_is_the_weighted_mean_over_all_answers_whatever_the_padding(
    model: LlamaForCausalLM, nano_tokenizer: PreTrainedTokenizerBase, sequences: list[TextSequence]
) -> None:
    weights = target_weights(nano_tokenizer)
    total = total_weight = 0.0
    with torch.no_grad():
        for sequence in sequences:
            batch = batch_of(sequence)
            logits = model(inputs_embeds=embed_with_words(batch, model.get_input_embeddings())).logits[0]
            for position, label in enumerate(sequence.labels[1:]):
                if label != IGNORE_INDEX:
                    total -= weights[label] * logits[position].log_softmax(0)[label]
                    total_weight += weights[label]
        loss = LanguageLoss(model, weights, jitter=0.0)(batch_of(*sequences))
    assert loss.item() == pytest.approx(float(total / total_weight), rel=1e-4)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiling_changes_neither_loss_nor_gradients(
    backend: str,
    model: LlamaForCausalLM,
    nano_tokenizer: PreTrainedTokenizerBase,
    sequences: list[TextSequence],
) -> None:
    weights = target_weights(nano_tokenizer)
    parameters = list(model.parameters())

    def loss_and_gradients(loss_of: LanguageLoss, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        loss = loss_of(batch)
        return [loss, *torch.autograd.grad(loss, parameters)]

    plain = LanguageLoss(model, weights, jitter=0.0)
    compiled = LanguageLoss(model, weights, jitter=0.0, compile_backend=backend)
    for chosen in (sequences, sequences[:2]):
        batch = batch_of(*chosen)
        expected, found = (loss_and_gradients(loss_of, batch) for loss_of in (plain, compiled))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_verdicts_weigh_most_and_facts_more_than_other_words(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    weights = target_weights(nano_tokenizer)
    ids = nano_tokenizer.get_vocab()
    assert {weights[ids["▁" + word]].item() for word in VERDICT_WORDS} == {3.0}
    assert {weights[ids["▁" + word]].item() for word in FACT_WORDS} == {2.0}
    assert (weights != 1).sum() == len({*VERDICT_WORDS, *FACT_WORDS})


def test_a_few_steps_on_one_batch_lower_its_loss(
    nano_tokenizer: PreTrainedTokenizerBase, sequences: list[TextSequence]
) -> None:
    torch.manual_seed(0)
    model = build_language_model(len(nano_tokenizer))
    weights, batch = target_weights(nano_tokenizer), batch_of(*sequences)
    optimizers = build_optimizers(model, lr=3e-3)
    loss_of = LanguageLoss(model, weights, jitter=0.1)
    losses = []
    for _ in range(12):
        loss = loss_of(batch)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_each_parameter_has_one_optimizer_and_muon_has_the_matrices_of_the_layers(
    model: LlamaForCausalLM,
) -> None:
    muon, adamw = ([p for g in o.param_groups for p in g["params"]] for o in build_optimizers(model, 1e-3))
    assert sorted(map(id, [*muon, *adamw])) == sorted(map(id, model.parameters()))
    assert all(parameter.ndim == 2 for parameter in muon)
    assert len(muon) == 7 * model.config.num_hidden_layers


def test_the_model_has_about_a_million_parameters(model: LlamaForCausalLM) -> None:
    assert 0.7e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.3e6


# --- the stream


def a_stream(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> ConversationStream:
    settings: dict[str, Any] = {"tokens_per_batch": 2400, "dialogues": 0.5, "seed": 0, "num_batches": 3}
    return ConversationStream(tokenizer, **settings | changes)


def test_batches_stay_within_their_tokens_and_repeat_with_their_seed(
    nano_tokenizer: PreTrainedTokenizerBase,
) -> None:
    def batches(seed: int) -> list[dict[str, torch.Tensor]]:
        return list(a_stream(nano_tokenizer, tokens_per_batch=2400, seed=seed, num_batches=5))

    first, again, other = batches(1), batches(1), batches(2)
    assert len(first) == 5
    assert all(batch["input_ids"].numel() <= 2400 for batch in first)
    assert all((batch["input_ids"] == IMAGE_TOKEN_ID).sum() == len(batch["slots"]) for batch in first)
    for one, same in zip(first, again, strict=True):
        assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(
        one["input_ids"].shape != two["input_ids"].shape for one, two in zip(first, other, strict=True)
    )


def test_a_conversation_longer_than_a_batch_is_alone_in_one(nano_tokenizer: PreTrainedTokenizerBase) -> None:
    stream = a_stream(nano_tokenizer, tokens_per_batch=10)
    assert [len(batch["input_ids"]) for batch in stream] == [1, 1, 1]


@pytest.mark.parametrize("num_batches", [1, 300])
def test_as_many_batches_come_as_are_asked_for(
    nano_tokenizer: PreTrainedTokenizerBase, num_batches: int
) -> None:
    assert len(list(a_stream(nano_tokenizer, tokens_per_batch=800, num_batches=num_batches))) == num_batches
