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
