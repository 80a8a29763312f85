"""The assembled model on the recorded token ids and pixels: embeddings, logits, loss, gradients."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX

Batch = dict[str, Tensor]
AssertWithin = Callable[[float, Tensor, Tensor], None]


@pytest.fixture(scope="module")
def recorded(tensors: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return tensors("samples")


@pytest.fixture(scope="module")
def samples(records: Callable[[str], Any]) -> dict[str, Any]:
    return records("samples")


@pytest.fixture
def make_batch(
    samples: dict[str, Any],
    recorded: dict[str, Tensor],
    as_slots: Callable[[Tensor], Tensor],
    pixels_of: Callable[[str], Tensor],
    meta: dict[str, Any],
) -> Callable[[str], Batch]:
    """make_batch("batch_2img"): a recorded sample or batch as our model reads it, from the recorded ids.

    A text that the original cut is here whole, with the same part of it visible to attention: so the slots of an
    image are never fewer than its vectors.
    """

    def rows(name: str) -> tuple[Tensor, Tensor, Tensor]:
        ids = as_slots(recorded[f"{samples[name].get('case', name)}/input_ids"][0])
        labels = recorded[f"{name}/labels"][0]
        behind = (0, len(ids) - len(labels))
        return (
            ids,
            torch.nn.functional.pad(labels, behind, value=IGNORE_INDEX),
            torch.nn.functional.pad(torch.ones_like(labels), behind),
        )

    def make(name: str) -> Batch:
        members = samples[name].get("members", [name])
        fillings = {"input_ids": meta["pad_token_id"], "labels": IGNORE_INDEX, "attention_mask": 0}
        columns = zip(*map(rows, members), strict=True)
        return {
            key: pad_sequence(list(column), batch_first=True, padding_value=filling)
            for (key, filling), column in zip(fillings.items(), columns, strict=True)
        } | {"pixel_values": torch.cat([pixels_of(member) for member in members])}

    return make


def with_record(recorded: Iterable[str], record: str) -> Iterator[str]:
    """Names of the samples for which `record` is there."""
    return (key.removesuffix(f"/{record}") for key in recorded if key.endswith(f"/{record}"))


def test_parts_hold_the_tensors_of_the_original(
    original: SparklesChat, records: Callable[[str], Any], meta: dict[str, Any]
) -> None:
    part_of = {
        "visual_encoder": "vision",
        "ln_vision": "vision",
        "query_tokens": "qformer",
        "Qformer": "qformer",
        "llama_proj": "projector",
        "llama_model": "language",
    }
    buffers = ("position_ids", "rotary_emb.inv_freq")
    expected = Counter(
        (part_of[name.partition(".")[0]], tuple(shape))
        for name, (shape, _) in records("state_dict_keys").items()
        if not name.endswith(buffers)
    )
    ours = Counter((name.partition(".")[0], tuple(p.shape)) for name, p in original.named_parameters())
    assert ours == expected
    trainable = {name.partition(".")[0] for name, p in original.named_parameters() if p.requires_grad}
    assert trainable == {part_of[name.partition(".")[0]] for name in meta["trainable"]}


def test_norms_use_the_epsilons_of_the_original(original: SparklesChat, meta: dict[str, Any]) -> None:
    block, language = original.vision.backbone.blocks[0], original.language
    assert meta["eps"] == {
        "vit_norm": block.norm1.eps,
        "ln_vision": original.vision.ln_vision.eps,
        "qformer_LayerNorm": original.qformer.transformer.layernorm.eps,
        "llama_rms": language.get_decoder().norm.variance_epsilon,
    }
    assert block.mlp.fc1.out_features == meta["vit_mlp_hidden"]
    assert language.get_input_embeddings().num_embeddings == meta["llama_vocab_size"]


@torch.no_grad()
def test_projected_images_are_those_of_the_original(
    original: SparklesChat,
    recorded: dict[str, Tensor],
    make_batch: Callable[[str], Batch],
    samples: dict[str, Any],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for name in with_record(recorded, "proj_out"):
        with subtests.test(name):
            expected = recorded[f"{name}/proj_out"]
            ours = original.projector(original.encode_images(make_batch(name)["pixel_values"]))
            if samples[name]["kind"] == "truncated":
                ours = ours[: len(expected)]  # the original leaves out images that lie behind the cut
            assert_within(1e-5, ours, expected)


@torch.no_grad()
def test_embeddings_with_images_between_the_words_are_those_of_the_original(
    original: SparklesChat,
    recorded: dict[str, Tensor],
    make_batch: Callable[[str], Batch],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for name in with_record(recorded, "inputs_embeds"):
        with subtests.test(name):
            batch, expected = make_batch(name), recorded[f"{name}/inputs_embeds"]
            embeds = original.embed(batch["input_ids"], batch["pixel_values"])
            assert_within(1e-5, embeds[:, : expected.shape[1]], expected)


@torch.no_grad()
def test_every_layer_of_the_language_model_is_that_of_the_original(
    original: SparklesChat,
    golden: Path,
    tensors: Callable[[str], dict[str, Tensor]],
    make_batch: Callable[[str], Batch],
    assert_within: AssertWithin,
) -> None:
    with safe_open(golden / "layers.safetensors", "pt") as file:
        batch = make_batch(file.metadata()["sample"])
    expected = tensors("layers")
    layers = original.language(
        inputs_embeds=original.embed(batch["input_ids"], batch["pixel_values"]),
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
    ).hidden_states
    assert len(layers) == sum(name.startswith("llama_hidden_") for name in expected)
    for place, hidden in enumerate(layers):
        assert_within(1e-5, hidden, expected[f"llama_hidden_{place}"])


@pytest.mark.parametrize("record", ["logits", "logits_last8"])
@torch.no_grad()
def test_logits_of_visible_tokens_are_those_of_the_original(
    record: str,
    original: SparklesChat,
    recorded: dict[str, Tensor],
    make_batch: Callable[[str], Batch],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for name in with_record(recorded, record):
        with subtests.test(name):
            batch, expected = make_batch(name), recorded[f"{name}/{record}"]
            logits = original.language(
                inputs_embeds=original.embed(batch["input_ids"], batch["pixel_values"]),
                attention_mask=batch["attention_mask"],
            ).logits
            visible = recorded[f"{name}/attention_mask"] == 1  # as long as the original's text
            length = visible.shape[1]
            last = slice(length - expected.shape[1], length)
            assert_within(1e-5, logits[:, last][visible[:, last]], expected[visible[:, last]])


def test_losses_and_gradients_are_those_of_the_original(
    original: SparklesChat,
    recorded: dict[str, Tensor],
    make_batch: Callable[[str], Batch],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    linear = original.projector.layers[0]
    for name in with_record(recorded, "grad_llama_proj_weight"):
        with subtests.test(name):
            original.zero_grad()
            loss = original(make_batch(name))
            loss.backward()
            assert loss.item() == pytest.approx(recorded[f"{name}/loss"].item(), rel=1e-5)
            assert_within(2e-5, linear.weight.grad, recorded[f"{name}/grad_llama_proj_weight"])
            assert_within(2e-5, linear.bias.grad, recorded[f"{name}/grad_llama_proj_bias"])


def test_no_label_is_an_error_where_the_loss_of_the_original_is_not_a_number(
    original: SparklesChat, recorded: dict[str, Tensor], make_batch: Callable[[str], Batch]
) -> None:
    for name in with_record(recorded, "loss"):
        if not recorded[f"{name}/loss"].isnan():
            continue
        with pytest.raises(ValueError, match="no labelled token in the batch"):
            original(make_batch(name))
