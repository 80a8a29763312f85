from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from sparkles.serve.running_batch import RunningBatch
from sparkles.types import InputError

WIDTH, VOCABULARY, NEW = 16, 50, 12
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,  # enough for choices that differ from token to token
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


def alone(language: PreTrainedModel, embeds: Tensor) -> list[int]:
    """The likeliest tokens, by transformers' own loop."""
    new = language.generate(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.int64),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
    return list(new[0].tolist())


@pytest.mark.parametrize("make", [llama, mistral, gpt2])
@torch.inference_mode()
def test_rows_that_come_and_go_say_what_they_say_alone(make: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    language = make().eval()
    prompts = [torch.randn(length, WIDTH) for length in (9, 3, 14, 6, 2)]
    expected = [alone(language, prompt) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) == len(prompts), (
        "a test of order needs rows that differ"
    )

    batch = RunningBatch(language)
    said: dict[int, list[int]] = {}
    rows: list[int] = []
    joining = {0: [0, 1], 3: [2], 5: [3, 4]}  # at which step which prompts join
    for step in range(30):
        if step in joining:
            chosen = [prompts[index] for index in joining[step]]
            length = max(map(len, chosen))
            embeds = torch.stack([torch.cat([torch.zeros(length - len(one), WIDTH), one]) for one in chosen])
            mask = torch.stack([(torch.arange(length) >= length - len(one)).long() for one in chosen])
            logits = batch.join(embeds, mask, [1] * len(chosen))
            rows += joining[step]
            said |= {
                index: [token] for index, token in zip(joining[step], logits.argmax(1).tolist(), strict=True)
            }
        staying = [place for place, index in enumerate(rows) if len(said[index]) < NEW]
        if 0 < len(staying) < len(rows):
            staying = batch.keep(staying)
        rows = [rows[place] for place in staying]
        if not rows:
            break
        for index, token in zip(
            rows, batch.step([said[i][-1] for i in rows]).argmax(1).tolist(), strict=True
        ):
            said[index].append(token)
    assert [said[index] for index in range(len(prompts))] == expected


@torch.inference_mode()
def test_copies_of_a_prompt_are_read_once() -> None:
    torch.manual_seed(0)
    language = llama().eval()
    batch = RunningBatch(language)
    logits = batch.join(torch.randn(2, 4, WIDTH), torch.ones(2, 4, dtype=torch.int64), [1, 3])
    assert logits.shape == (4, VOCABULARY)
    assert torch.equal(logits[1], logits[3])
    assert batch.step([1, 2, 2, 3]).argmax(1).unique().numel() > 1


@torch.inference_mode()
def test_columns_of_a_long_row_that_left_are_read_no_more() -> None:
    batch = RunningBatch(llama().eval())
    mask = torch.tensor([[1] * 8, [0] * 6 + [1] * 2, [0] * 5 + [1] * 3])
    batch.join(torch.randn(3, 8, WIDTH), mask, [1, 1, 1])
    assert batch.keep([1, 2]) == [2, 1]
    assert (batch._window.rows, batch._window.end - batch._window.start) == (2, 3)


def test_a_model_that_remembers_otherwise_is_refused() -> None:
    language = llama()
    language.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match=r"linear_attention layers cannot be served.*model\.language\.path"):
        RunningBatch(language)
