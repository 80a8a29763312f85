"""A user of the original moves over: a full-size model's files, tiny, all the way to a trained projection and back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.launch import build_module
from sparkles.models.checkpoints import PretrainedSparkles, export_projection
from sparkles.models.checkpoints.deltas import merge_delta
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder
from sparkles.prompt_format import PromptFormatError

VISION = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
QUERIES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_query_tokens": 3,
}
LANGUAGE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROWS = 40

Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the original's instructions make a user download, in the published layouts, and the merged Vicuna."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    write_vision_side(folder)
    write_llama(folder / "llama-7b-hf", ROWS)
    write_llama(folder / "vicuna-7b-delta-v0", ROWS + 1)
    merge_delta(folder / "llama-7b-hf", folder / "vicuna-7b-delta-v0", folder / "vicuna-7b-v0")
    projection = nn.Linear(QUERIES["hidden_size"], LANGUAGE["hidden_size"]).state_dict(prefix="llama_proj.")
    torch.save(
        {"model": projection, "optimizer": {"state": {}}, "epoch": 3}, folder / "minigpt4_7b_stage1.pth"
    )
    return folder


def write_vision_side(folder: Path) -> None:
    """EVA's file has one block more than is used, and a norm and a head; BLIP-2's has the projection to its own LM."""
    deeper = VISION | {"depth": VISION["depth"] + 1}
    vision = VisionEncoder(
        name="eva_giant_patch14_224", mlp_ratio=4.3637, use_post_transformer_norm=False, **deeper
    )
    width = vision.hidden_size
    unused = {
        "norm.weight": torch.ones(width),
        "norm.bias": torch.ones(width),
        "head.weight": torch.ones(9, width),
    }
    torch.save(vision.backbone.state_dict() | unused, folder / "eva_vit_g.pth")

    qformer = QFormer(vision_hidden_size=width, **QUERIES)
    originals = {
        "Qformer.bert."
        + name.replace("attention.attention.", "attention.self.").replace(
            "layernorm", "embeddings.LayerNorm"
        ): tensor
        for name, tensor in qformer.transformer.state_dict().items()
    }
    blip2 = {
        "query_tokens": qformer.query_tokens.data,
        "ln_vision.weight": torch.rand(width),
        "ln_vision.bias": torch.rand(width),
        "t5_proj.weight": torch.ones(5, QUERIES["hidden_size"]),
        **originals,
    }
    torch.save({"model": blip2}, folder / "blip2_pretrained_flant5xxl.pth")


def write_llama(folder: Path, rows: int) -> None:
    """Two shards of `.bin`, with the buffers that old releases hold."""
    folder.mkdir()
    config = LlamaConfig(vocab_size=rows, **LANGUAGE)
    weights = dict(LlamaForCausalLM(config).state_dict())
    weights |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    weight_map = {
        name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(weights)
    }
    for file in sorted(set(weight_map.values())):
        torch.save({name: weights[name] for name in weights if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config.save_pretrained(folder)


@pytest.fixture
def compose_full_size(weights_dir: Path) -> Compose:
    """The configuration of the full-size model with the sizes of those files."""

    def make(*overrides: str) -> DictConfig:
        register_resolvers()
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(
                "train",
                [
                    "model=sparkles_7b",
                    f"weights_dir={weights_dir}",
                    *(f"++model.vision.{name}={value}" for name, value in VISION.items()),
                    *(f"model.qformer.{name}={value}" for name, value in QUERIES.items()),
                    *(f"model.{part}.dtype=float32" for part in ("vision", "language")),
                    "module.optimizer.lr=0.01",
                    "module.scheduler.warmup_steps=0",
                    *overrides,
                ],
            )

    return make


@torch.no_grad()
def logits(model: SparklesChat, batch: dict[str, Tensor]) -> Tensor:
    model.eval()
    inputs_embeds = model.embed(batch["input_ids"], batch["pixel_values"])
    output = model.language(inputs_embeds=inputs_embeds, attention_mask=batch["attention_mask"])
    return output.logits


@pytest.fixture
def batch(dialogues, make_batch) -> dict[str, Tensor]:
    return make_batch(dialogues)


@pytest.fixture
def run(compose_full_size: Compose, batch: dict[str, Tensor], tmp_path: Path) -> tuple[Path, Tensor]:
    """A run of three steps from the original's stage 1: its folder, and the logits at its end."""
    cfg = compose_full_size()
    module = build_module(cfg)
    before = logits(module.model, batch)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * 3, batch_size=None))
    trainer.save_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    parts = OmegaConf.masked_copy(cfg, ["model", "prompt_format", "weights_dir"])
    (tmp_path / "run/config.yaml").write_text(OmegaConf.to_yaml(parts, resolve=True))
    after = logits(module.model, batch)
    assert not torch.allclose(after, before, atol=1e-3)
    return tmp_path / "run", after


@pytest.mark.parametrize("form", ["sparkleschat.pth", "sparkleschat.safetensors", "folder"])
def test_exported_projection_gives_the_same_logits(
    run: tuple[Path, Tensor], compose_full_size: Compose, batch: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    folder, expected = run
    export_projection(folder / "checkpoints/last.ckpt", tmp_path / form)
    loaded = build_module(compose_full_size(f"checkpoint={tmp_path / form}"))
    torch.testing.assert_close(logits(loaded.model, batch), expected, rtol=0, atol=0)


def test_pretrained_folder_gives_the_same_logits(
    run: tuple[Path, Tensor], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    folder, expected = run
    export_projection(folder / "checkpoints/last.ckpt", tmp_path / "folder")
    pretrained = PretrainedSparkles.from_pretrained(tmp_path / "folder")
    torch.testing.assert_close(logits(pretrained.model, batch), expected, rtol=0, atol=0)
    assert pretrained.prompt_format.end_of_answer == "###"


def test_stage_1_of_the_original_is_what_training_starts_from(
    compose_full_size: Compose, weights_dir: Path
) -> None:
    linear = build_module(compose_full_size()).model.projector.layers[0]
    original = torch.load(weights_dir / "minigpt4_7b_stage1.pth", weights_only=True)["model"]
    torch.testing.assert_close(linear.state_dict(prefix="llama_proj."), dict(original), rtol=0, atol=0)


def test_prompt_format_of_a_later_vicuna_is_refused(compose_full_size: Compose) -> None:
    with pytest.raises(
        PromptFormatError, match=r"'</s>', but .*vicuna-7b-v0 was trained to end one with '###'"
    ):
        build_module(compose_full_size("prompt_format=vicuna_v11"))
