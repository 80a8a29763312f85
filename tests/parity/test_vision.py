"""The vision encoder on the recorded pixels, block by block."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder

AssertWithin = Callable[[float, Tensor, Tensor], None]


@pytest.fixture(scope="module")
def layers_pixels(golden: Path, pixels_of: Callable[[str], Tensor]) -> Tensor:
    """float32[N, 3, H, W]: the images of the sample that layers.safetensors was recorded for."""
    with safe_open(golden / "layers.safetensors", "pt") as file:
        return pixels_of(file.metadata()["sample"])


def test_the_file_holds_nothing_more_than_what_the_original_ignores(
    original: SparklesChat, golden: Path, meta: dict[str, Any]
) -> None:
    in_file = torch.load(golden / "eva_vit.pth", weights_only=True).keys()
    used = original.vision.backbone.state_dict().keys()
    assert in_file - used == set(meta["eva_vit_unexpected_keys"])


@torch.no_grad()
def test_patches_and_every_block_are_those_of_the_original(
    original: SparklesChat,
    layers_pixels: Tensor,
    tensors: Callable[[str], dict[str, Tensor]],
    assert_within: AssertWithin,
) -> None:
    backbone = original.vision.backbone
    expected = tensors("layers")
    blocks = backbone.forward_intermediates(
        layers_pixels, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    assert len(blocks) == sum(name.startswith("vit_block_") for name in expected)
    assert_within(1e-5, backbone.patch_embed(layers_pixels), expected["vit_patch_embed"])
    for place, (patches, prefix) in enumerate(blocks):
        assert_within(1e-5, torch.cat([prefix, patches], dim=1), expected[f"vit_block_{place}"])


@torch.no_grad()
def test_image_tokens_before_and_after_ln_vision_are_those_of_the_original(
    original: SparklesChat,
    tensors: Callable[[str], dict[str, Tensor]],
    pixels_of: Callable[[str], Tensor],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    recorded = tensors("samples")
    names = [key.removesuffix("/vit_out") for key in recorded if key.endswith("/vit_out")]
    assert names
    for name in names:
        with subtests.test(name):
            expected = recorded[f"{name}/vit_out"]
            pixels = pixels_of(name)[
                : len(expected)
            ]  # a text that was cut has lost the images behind the cut
            assert_within(1e-5, original.vision.backbone.forward_features(pixels), expected)
            assert_within(1e-5, original.vision(pixels), recorded[f"{name}/ln_vision_out"])


@torch.no_grad()
def test_another_image_size_resamples_the_position_embeddings_as_the_original(
    vision_options: dict[str, Any],
    records: Callable[[str], Any],
    tensors: Callable[[str], dict[str, Tensor]],
    assert_within: AssertWithin,
) -> None:
    recorded = tensors("preprocess")
    size = records("preprocess")["alt_res"]["image_size"]
    vision = VisionEncoder(**vision_options | {"img_size": size}).eval()
    assert_within(1e-5, vision.backbone.pos_embed, recorded["alt_res/pos_embed"])
    tokens = vision.backbone.forward_features(recorded["alt_res/pixel_values"])
    assert_within(1e-5, tokens, recorded["alt_res/vit_out"])
