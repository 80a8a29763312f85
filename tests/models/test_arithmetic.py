"""Operations by formula are those that torch counts."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sparkles.models.arithmetic import flops_per_image, training_flops
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder

LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def tiny_llama(**overrides: Any) -> LlamaForCausalLM:
    config = LlamaConfig(**LLAMA | overrides, attn_implementation="eager")
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, LlamaForCausalLM)
    return model.eval().requires_grad_(False)


def counted(model: LlamaForCausalLM, tokens: int, labelled: int) -> int:
    """Of one sample, forward and backward to its embeddings."""
    embeds = torch.randn(1, tokens, 128, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeds, use_cache=False, logits_to_keep=labelled).logits.sum().backward()
    return counter.get_total_flops()


def attention(tokens: int) -> float:
    return 6 * LLAMA["num_hidden_layers"] * 128 * tokens**2


@pytest.mark.parametrize(("tokens", "labelled"), [(8, 8), (64, 16), (256, 1)])
def test_text_takes_four_n_a_token_and_attention(tokens: int, labelled: int) -> None:
    model = tiny_llama()
    needed = training_flops(model, tokens=tokens, square_tokens=tokens**2, labelled=labelled)
    # Plain attention computes the half of the scores, too, that nobody looks at.
    assert counted(model, tokens, labelled) == pytest.approx(needed + attention(tokens), rel=0.02)


def test_an_output_layer_that_is_the_words_works_as_any_other() -> None:
    apart, shared = tiny_llama(), tiny_llama(tie_word_embeddings=True)
    sums = {"tokens": 100, "square_tokens": 10_000, "labelled": 40}
    assert training_flops(apart, **sums) == training_flops(shared, **sums)


def test_work_adds_up_over_samples() -> None:
    model = tiny_llama()
    first, second = (
        training_flops(model, tokens=tokens, square_tokens=tokens**2, labelled=5) for tokens in (10, 30)
    )
    assert training_flops(model, tokens=40, square_tokens=1_000, labelled=10) == first + second


def test_an_image_takes_two_n_a_token_and_six_n_of_what_learns() -> None:
    with torch.device("meta"):
        model = SparklesChat(
            vision=VisionEncoder(
                name="eva_giant_patch14_224", img_size=32, patch_size=8, embed_dim=256, depth=4, num_heads=4
            ),
            qformer=QFormer(
                vision_hidden_size=256,
                hidden_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=192,
                num_query_tokens=8,
                cross_attention_frequency=1,
            ),
            projector=Projector(in_features=96, out_features=128),
            language=tiny_llama(),
        )
        pixels = torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model.projector(model.encode_images(pixels)).sum().backward()
    assert flops_per_image(model) == pytest.approx(counter.get_total_flops(), rel=0.2)
