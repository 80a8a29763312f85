"""The Q-Former on the recorded image tokens, layer by layer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sparkles.models.sparkles_chat import SparklesChat

AssertWithin = Callable[[float, Tensor, Tensor], None]


@torch.no_grad()
def test_embeddings_and_every_layer_are_those_of_the_original(
    original: SparklesChat,
    golden: Path,
    tensors: Callable[[str], dict[str, Tensor]],
    assert_within: AssertWithin,
) -> None:
    with safe_open(golden / "layers.safetensors", "pt") as file:
        image_tokens = tensors("samples")[f"{file.metadata()['sample']}/ln_vision_out"]
    expected = tensors("layers")
    layers = original.qformer.transformer(
        query_embeds=original.qformer.query_tokens.expand(len(image_tokens), -1, -1),
        encoder_hidden_states=image_tokens,
        output_hidden_states=True,
    ).hidden_states
    assert len(layers) == sum(name.startswith("qformer_hidden_") for name in expected)
    for place, hidden in enumerate(layers):
        assert_within(1e-5, hidden, expected[f"qformer_hidden_{place}"])


@torch.no_grad()
def test_queries_that_read_an_image_are_those_of_the_original(
    original: SparklesChat,
    tensors: Callable[[str], dict[str, Tensor]],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    recorded = tensors("samples")
    names = [key.removesuffix("/qformer_out") for key in recorded if key.endswith("/qformer_out")]
    assert names
    for name in names:
        with subtests.test(name):
            queries = original.qformer(recorded[f"{name}/ln_vision_out"])
            assert_within(1e-5, queries, recorded[f"{name}/qformer_out"])
