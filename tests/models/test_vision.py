from pathlib import Path

import pytest
import torch

from sparkles.models.vision import VisionEncoder

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
EVA = VIT | {"use_post_transformer_norm": False}


@pytest.mark.parametrize(
    ("name", "options"), [("vit_tiny_patch16_224", VIT), ("eva_giant_patch14_224", EVA)], ids=["vit", "eva"]
)
def test_all_tokens_come_out_normalised(name: str, options: dict) -> None:
    encoder = VisionEncoder(name=name, **options).eval()
    tokens = encoder(torch.randn(2, 3, 32, 32))
    assert (encoder.image_size, encoder.hidden_size) == (32, 24)
    assert tokens.shape == (2, 4 * 4 + 1, 24)
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 17), atol=1e-5, rtol=0)


def test_checkpoint_restores_the_weights(tmp_path: Path) -> None:
    first = VisionEncoder(name="vit_tiny_patch16_224", **VIT).eval()
    torch.save(first.state_dict(), tmp_path / "vision.pt")
    second = VisionEncoder(name="vit_tiny_patch16_224", checkpoint=tmp_path / "vision.pt", **VIT).eval()
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(second(pixels), first(pixels))


def test_transformer_takes_the_dtype_and_ln_vision_stays_exact() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        encoder = VisionEncoder(name="vit_tiny_patch16_224", dtype=str(dtype).removeprefix("torch."), **VIT)
        assert {weight.dtype for weight in encoder.backbone.parameters()} == {dtype}
        assert {weight.dtype for weight in encoder.ln_vision.parameters()} == {torch.float32}


def test_half_precision_changes_little(tmp_path: Path) -> None:
    """In float16: some CPUs lack the instructions that bfloat16 takes."""
    exact = VisionEncoder(name="eva_giant_patch14_224", **EVA).eval()
    torch.save(exact.state_dict(), tmp_path / "vision.pt")
    options = EVA | {"checkpoint": tmp_path / "vision.pt", "dtype": "float16"}
    half = VisionEncoder(name="eva_giant_patch14_224", **options).eval()
    pixels = torch.randn(2, 3, 32, 32)
    assert half(pixels).dtype == torch.float32
    assert 0 < (half(pixels) - exact(pixels)).abs().max() < 0.02


def test_patch_tokens_alone_are_those_behind_class_and_register_tokens() -> None:
    options = VIT | {"name": "vit_base_patch14_reg4_dinov2", "ln_vision": False}
    everything, patches = VisionEncoder(**options), VisionEncoder(patch_tokens_only=True, **options)
    patches.load_state_dict(everything.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    assert everything(pixels).shape == (1, 1 + 4 + 16, 24)
    torch.testing.assert_close(patches(pixels), everything(pixels)[:, 5:])


def test_without_ln_vision_the_tokens_are_those_of_the_transformer() -> None:
    encoder = VisionEncoder(name="vit_tiny_patch16_224", ln_vision=False, **VIT).eval()
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(encoder(pixels), encoder.backbone.forward_features(pixels))
    assert all(name.startswith("backbone.") for name in encoder.state_dict())
