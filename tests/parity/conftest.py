"""Numbers recorded from the original implementation, and this implementation with the original's weights.

`SPARKLES_GOLDEN_DIR` names the folder of recorded numbers. Every size is read from its files, so that a set
recorded with other dimensions is compared in the same way.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparkles.data.encoding import Encoder, Tokenizer
from sparkles.data.tokenizer import load_tokenizer
from sparkles.models.checkpoints import load_projection
from sparkles.models.language import load_language_model
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder
from sparkles.prompt_format import MINIGPT4
from sparkles.types import IMAGE_TOKEN_ID


@pytest.fixture(scope="session")
def records(golden: Path) -> Callable[[str], Any]:
    """records("samples"): what samples.json holds."""
    return lambda name: json.loads((golden / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tensors(golden: Path) -> Callable[[str], dict[str, Tensor]]:
    """tensors("samples"): what samples.safetensors holds."""
    return lambda name: load_file(golden / f"{name}.safetensors")


@pytest.fixture(scope="session")
def meta(records: Callable[[str], Any]) -> dict[str, Any]:
    """Dimensions, token ids and versions of the recorded set."""
    return records("meta")


@pytest.fixture(scope="session")
def assert_within() -> Callable[[float, Tensor, Tensor], None]:
    """assert_within(limit, got, expected): the largest difference, as a part of the largest expected value."""

    def check(limit: float, got: Tensor, expected: Tensor) -> None:
        assert got.shape == expected.shape
        assert float((got - expected).abs().max() / expected.abs().max()) < limit

    return check


@pytest.fixture(scope="session")
def as_slots(meta: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Recorded ids with IMAGE_TOKEN_ID where the original has `<ImageHere>` or `<ImagePad>`."""
    image_ids = torch.tensor([meta["media_token_id"], meta["media_pad_id"]])
    return lambda ids: ids.masked_fill(torch.isin(ids, image_ids), IMAGE_TOKEN_ID)


@pytest.fixture(scope="session")
def tokenizer(golden: Path) -> Tokenizer:
    return load_tokenizer(golden / "llama")


@pytest.fixture(scope="session")
def image_tokenizer(
    golden: Path, meta: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """The tokenizer with the two tokens that the original adds to it when it runs."""
    folder = tmp_path_factory.mktemp("llama")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(golden / "llama" / name, folder / name)
    added = {"<ImageHere>": meta["media_token_id"], "<ImagePad>": meta["media_pad_id"]}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def make_encoder(tokenizer: Tokenizer, meta: dict[str, Any]) -> Callable[..., Encoder]:
    """make_encoder(cut_anywhere=True): an Encoder for the recorded texts, with the limit of the original."""

    def make(**changes: Any) -> Encoder:
        settings: dict[str, Any] = {
            "tokenizer": tokenizer,
            "prompt_format": MINIGPT4,
            "num_query_tokens": meta["dims"]["num_query"],
            "max_length": 1024,
        }
        return Encoder(**settings | changes)

    return make


@pytest.fixture(scope="session")
def pixels_of(
    records: Callable[[str], Any], tensors: Callable[[str], dict[str, Tensor]]
) -> Callable[[str], Tensor]:
    """pixels_of("turn1_2img"): float32[N, 3, H, W] of the images of a sample, also of those behind a cut."""
    annotations, samples = records("annotations"), records("samples")
    pixels = {
        Path(key).stem: value for key, value in tensors("preprocess").items() if key.startswith("eval/")
    }

    def pixels_of_sample(name: str) -> Tensor:
        images = annotations[samples[name].get("case", name)]["tgt_imgs"]
        return torch.stack([pixels[str(image["image_id"])] for image in images])

    return pixels_of_sample


@pytest.fixture(scope="session")
def vision_options(golden: Path, meta: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a VisionEncoder with the original's weights."""
    dims = meta["dims"]
    return {
        "name": "eva_giant_patch14_224",
        "img_size": dims["img"],
        "patch_size": dims["patch"],
        "embed_dim": dims["vit_dim"],
        "depth": dims["vit_depth"],
        "num_heads": dims["vit_heads"],
        "mlp_ratio": 4.3637,
        "use_post_transformer_norm": False,
        "checkpoint": [golden / "eva_vit.pth", golden / "blip2_qformer.pth"],
    }


@pytest.fixture(scope="session")
def original(golden: Path, meta: dict[str, Any], vision_options: dict[str, Any]) -> SparklesChat:
    """Our model with the original's weights, read from its files."""
    dims = meta["dims"]
    model = SparklesChat(
        vision=VisionEncoder(**vision_options),
        qformer=QFormer(
            vision_hidden_size=dims["vit_dim"],
            hidden_size=dims["qf_hidden"],
            num_hidden_layers=dims["qf_layers"],
            num_attention_heads=dims["qf_heads"],
            intermediate_size=dims["qf_inter"],
            num_query_tokens=dims["num_query"],
            checkpoint=golden / "blip2_qformer.pth",
        ),
        projector=Projector(in_features=dims["qf_hidden"], out_features=dims["llama_hidden"]),
        language=load_language_model(golden / "llama"),
    )
    load_projection(model, golden / "minigpt4_stage1.pth")
    return model
