"""The assembled model against numbers recorded from the original implementation, with its weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparkles.models.checkpoints import load_projection
from sparkles.models.language import load_language_model
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder
from sparkles.types import IMAGE_TOKEN_ID


@pytest.fixture(scope="module")
def original(golden: Path) -> SparklesChat:
    dims = json.loads((golden / "meta.json").read_text())["dims"]
    vision = VisionEncoder(
        name="eva_giant_patch14_224",
        img_size=dims["img"],
        embed_dim=dims["vit_dim"],
        depth=dims["vit_depth"],
        num_heads=dims["vit_heads"],
        mlp_ratio=4.3637,
        use_post_transformer_norm=False,
    )
    qformer = QFormer(
        vision_hidden_size=dims["vit_dim"],
        hidden_size=dims["qf_hidden"],
        num_hidden_layers=dims["qf_layers"],
        num_attention_heads=dims["qf_heads"],
        intermediate_size=dims["qf_inter"],
        num_query_tokens=dims["num_query"],
    )
    eva = torch.load(golden / "eva_vit.pth", weights_only=True)
    blip2 = torch.load(golden / "blip2_qformer.pth", weights_only=True)["model"]
    vision.backbone.load_state_dict({name: eva[name] for name in vision.backbone.state_dict()})
    vision.ln_vision.load_state_dict({name: blip2[f"ln_vision.{name}"] for name in ("weight", "bias")})
    renamed = {
        name.removeprefix("Qformer.bert.")
        .replace("embeddings.LayerNorm", "layernorm")
        .replace("attention.self.", "attention.attention."): tensor
        for name, tensor in blip2.items()
        if name.startswith("Qformer.bert.") and not name.endswith("position_ids")
    }
    qformer.transformer.load_state_dict(renamed)
    qformer.query_tokens.data = blip2["query_tokens"]
    model = SparklesChat(
        vision=vision,
        qformer=qformer,
        projector=Projector(in_features=dims["qf_hidden"], out_features=dims["llama_hidden"]),
        language=load_language_model(golden / "llama"),
    )
    load_projection(model, golden / "minigpt4_stage1.pth")
    return model


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Tensor]:
    """Of a padded batch of three dialogues with two images each."""
    meta = json.loads((golden / "meta.json").read_text())
    tensors = load_file(golden / "samples.safetensors")
    batch = {name.split("/")[1]: tensor for name, tensor in tensors.items() if name.startswith("batch_2img/")}
    image_ids = torch.tensor([meta["media_token_id"], meta["media_pad_id"]])
    batch["input_ids"][torch.isin(batch["input_ids"], image_ids)] = IMAGE_TOKEN_ID
    batch["pixel_values"] = batch["pixel_values"].flatten(0, 1)
    for part in ("ln_vision_out", "qformer_out"):
        batch[part] = tensors[f"turn1_2img/{part}"]  # recorded for single dialogues; this is the first one
    return batch


def assert_within(limit: float, got: Tensor, expected: Tensor) -> None:
    assert float((got - expected).abs().max() / expected.abs().max()) < limit


def test_image_features_are_those_of_the_original(
    original: SparklesChat, recorded: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        tokens = original.vision(recorded["pixel_values"])
        queries = original.encode_images(recorded["pixel_values"])
        projected = original.projector(queries)
    assert_within(1e-5, tokens[:2], recorded["ln_vision_out"])
    assert_within(1e-5, queries[:2], recorded["qformer_out"])
    assert_within(1e-5, projected, recorded["proj_out"])


def test_loss_and_gradients_are_those_of_the_original(
    original: SparklesChat, recorded: dict[str, Tensor]
) -> None:
    original.zero_grad()
    loss = original(recorded)
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"].item(), rel=1e-5)
    linear = original.projector.layers[0]
    assert_within(2e-5, linear.weight.grad, recorded["grad_llama_proj_weight"])
    assert_within(2e-5, linear.bias.grad, recorded["grad_llama_proj_bias"])
