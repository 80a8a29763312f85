"""A trained projection in every form, and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from huggingface_hub import HfApi
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sparkles.config import CONFIG_DIR
from sparkles.models.checkpoints import (
    CheckpointError,
    Origin,
    PretrainedSparkles,
    export_projection,
    load_projection,
    save_projection,
)
from sparkles.models.checkpoints.export import TARGETS
from sparkles.models.checkpoints.projection import read_projection
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import MINIGPT4, PromptFormatError

MakeModel = Callable[..., SparklesChat]


@pytest.fixture
def config(model: SparklesChat, tmp_path: Path) -> dict[str, Any]:
    """`model` and `prompt_format` of a run, with base weights in files; further keys as a run's config has."""
    torch.save(model.vision.state_dict(), tmp_path / "vision.pt")
    torch.save(model.qformer.state_dict(), tmp_path / "qformer.pt")
    model.language.save_pretrained(tmp_path / "llama")
    part = "sparkles.models"
    return {
        "seed": 0,
        "model": {
            "_target_": f"{part}.sparkles_chat.SparklesChat",
            "vision": {
                "_target_": f"{part}.vision.VisionEncoder",
                "name": "vit_tiny_patch16_224",
                "checkpoint": str(tmp_path / "vision.pt"),
                "img_size": 16,
                "patch_size": 8,
                "embed_dim": 24,
                "depth": 2,
                "num_heads": 2,
            },
            "qformer": {
                "_target_": f"{part}.qformer.QFormer",
                "_partial_": True,
                "checkpoint": str(tmp_path / "qformer.pt"),
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "num_query_tokens": 3,
            },
            "projector": {"_target_": f"{part}.projector.Projector", "_partial_": True},
            "language": {"_target_": f"{part}.language.load_language_model", "path": str(tmp_path / "llama")},
        },
        "prompt_format": OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "prompt_format/minigpt4.yaml")),
    }


@pytest.fixture
def trained(config: dict[str, Any]) -> SparklesChat:
    """The configured model with a projection of its own."""
    torch.manual_seed(1)
    model: SparklesChat = instantiate(config["model"], _convert_="all")
    return model


@pytest.fixture
def run_checkpoint(trained: SparklesChat, config: dict[str, Any], tmp_path: Path) -> Path:
    """As a run leaves it: runs/mine/checkpoints/last.ckpt beside runs/mine/config.yaml."""
    path = tmp_path / "runs/mine/checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    state = trained.projector.state_dict(prefix="model.projector.")
    entries = Origin.of(trained, MINIGPT4).checkpoint_entries()
    torch.save({"state_dict": state, "optimizer_states": [{"state": {}}], **entries}, path)
    OmegaConf.save(OmegaConf.create(config), tmp_path / "runs/mine/config.yaml")
    return path


def assert_same_projection(one: SparklesChat, other: SparklesChat) -> None:
    torch.testing.assert_close(one.projector.state_dict(), other.projector.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "forms", [["mine.pth"], ["mine.safetensors"], ["folder"], ["a.safetensors", "b.pth", "c.safetensors"]]
)
def test_projection_survives_every_form(
    run_checkpoint: Path,
    trained: SparklesChat,
    make_model: MakeModel,
    config: dict[str, Any],
    tmp_path: Path,
    forms: list[str],
) -> None:
    source = run_checkpoint
    for form in forms:
        export_projection(source, tmp_path / form)
        source = tmp_path / form
    other: SparklesChat = instantiate(config["model"], _convert_="all")
    load_projection(other, source)
    assert_same_projection(other, trained)


def test_original_file_holds_what_the_original_reads(
    run_checkpoint: Path, trained: SparklesChat, tmp_path: Path
) -> None:
    export_projection(run_checkpoint, tmp_path / "new/mine.pth")
    content = torch.load(tmp_path / "new/mine.pth", weights_only=True)
    assert content.keys() == {"model"}
    linear = trained.projector.layers[0].state_dict(prefix="llama_proj.")
    torch.testing.assert_close(content["model"], dict(linear), rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.pth"]


@pytest.mark.parametrize("form", ["mine.safetensors", "folder"])
def test_origin_goes_along(run_checkpoint: Path, trained: SparklesChat, tmp_path: Path, form: str) -> None:
    export_projection(run_checkpoint, tmp_path / form)
    assert read_projection(tmp_path / form).origin == Origin.of(trained, MINIGPT4)


def test_original_file_takes_a_single_linear_layer_only(make_model: MakeModel, tmp_path: Path) -> None:
    mlp = make_model(hidden_features=(8,))
    save_projection(mlp, tmp_path / "mlp.safetensors", {})
    with pytest.raises(
        CheckpointError, match=r"differ in projector\.layers\.2\.bias, projector.* to .*mlp\.safetensors"
    ):
        export_projection(tmp_path / "mlp.safetensors", tmp_path / "mlp.pth")
    with_qformer = make_model()
    with_qformer.qformer.requires_grad_(True)
    save_projection(with_qformer, tmp_path / "both.safetensors", {})
    with pytest.raises(
        CheckpointError, match=r"one linear layer, llama_proj: they differ in qformer\..* and more"
    ):
        export_projection(tmp_path / "both.safetensors", tmp_path / "both.pth")


def test_form_that_nobody_reads_is_refused(run_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"mine\.ckpt: expected NAME\.safetensors, NAME\.pth or the name of"
    ):
        export_projection(run_checkpoint, tmp_path / "mine.ckpt")


def test_folder_needs_a_configuration(run_checkpoint: Path, config: dict[str, Any], tmp_path: Path) -> None:
    export_projection(run_checkpoint, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=r"give config=runs/NAME/config\.yaml"):
        export_projection(tmp_path / "mine.pth", tmp_path / "folder")
    (tmp_path / "other.yaml").write_text("seed: 0")
    with pytest.raises(CheckpointError, match="no model, prompt_format in the config"):
        export_projection(tmp_path / "mine.pth", tmp_path / "folder", tmp_path / "other.yaml")
    export_projection(tmp_path / "mine.pth", tmp_path / "folder", tmp_path / "runs/mine/config.yaml")
    assert json.loads((tmp_path / "folder/config.json").read_text()).keys() == {"model", "prompt_format"}


def test_pretrained_folder_is_the_model_again(
    run_checkpoint: Path, trained: SparklesChat, dialogues, make_batch, tmp_path: Path
) -> None:
    export_projection(run_checkpoint, tmp_path / "one")
    pretrained = PretrainedSparkles.from_pretrained(tmp_path / "one")
    assert pretrained.prompt_format == instantiate(OmegaConf.load(CONFIG_DIR / "prompt_format/minigpt4.yaml"))
    batch = make_batch(dialogues)
    torch.testing.assert_close(pretrained.model(batch), trained(batch), rtol=0, atol=0)

    pretrained.save_pretrained(tmp_path / "two")
    for name in ("README.md", "config.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    one, two = read_projection(tmp_path / "one"), read_projection(tmp_path / "two")
    assert one.origin == two.origin
    torch.testing.assert_close(one.tensors, two.tensors, rtol=0, atol=0)


def test_pretrained_takes_base_weights_from_elsewhere_if_they_are_the_same(
    run_checkpoint: Path, trained: SparklesChat, tmp_path: Path
) -> None:
    export_projection(run_checkpoint, tmp_path / "folder")
    (tmp_path / "llama").rename(tmp_path / "moved")
    overrides = [f"model.language.path={tmp_path / 'moved'}"]
    assert_same_projection(
        PretrainedSparkles.from_pretrained(tmp_path / "folder", overrides=overrides).model, trained
    )

    trained.language.lm_head.weight.data += 1
    trained.language.save_pretrained(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"language: trained on sha256 \w{64}, this model has \w{64}"):
        PretrainedSparkles.from_pretrained(tmp_path / "folder", overrides=overrides)
    PretrainedSparkles.from_pretrained(
        tmp_path / "folder", overrides=overrides, allow_other_base_weights=True
    )


def test_pretrained_refuses_a_language_model_with_another_separator(
    run_checkpoint: Path, tmp_path: Path
) -> None:
    export_projection(run_checkpoint, tmp_path / "folder")
    (tmp_path / "llama").rename(tmp_path / "vicuna-7b-v1.5")
    with pytest.raises(PromptFormatError, match="trained to end one with '</s>'"):
        PretrainedSparkles.from_pretrained(
            tmp_path / "folder", overrides=[f"model.language.path={tmp_path / 'vicuna-7b-v1.5'}"]
        )


def test_folder_from_elsewhere_cannot_call_what_it_likes(run_checkpoint: Path, tmp_path: Path) -> None:
    export_projection(run_checkpoint, tmp_path / "folder")
    path = tmp_path / "folder/config.json"
    content = json.loads(path.read_text())
    content["model"]["vision"] = {"_target_": "os.mkdir", "path": str(tmp_path / "ran")}
    content["trusted_targets"] = ["os.mkdir"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"the config would call os\.mkdir, which is none of the parts"):
        PretrainedSparkles.from_pretrained(tmp_path / "folder")
    assert not (tmp_path / "ran").exists()


def test_every_part_that_ships_may_be_called() -> None:
    files = [
        *CONFIG_DIR.glob("model/*.yaml"),
        *CONFIG_DIR.glob("model/*/*.yaml"),
        *CONFIG_DIR.glob("prompt_format/*.yaml"),
    ]
    called = set()
    for file in files:
        node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        text = json.dumps(node.get("model", node) if file.parent.name == "model" else node)
        called |= {value.split('"')[0] for value in text.split('"_target_": "')[1:]}
    assert "sparkles.models.sparkles_chat.SparklesChat" in called
    assert called <= TARGETS


def test_folder_goes_to_the_hub_as_it_is(run_checkpoint: Path, config: dict[str, Any]) -> None:
    uploaded: dict[str, set[str]] = {}

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        uploaded[repo_id] = {path.name for path in folder_path.iterdir()}
        return "a commit"

    with (
        mock.patch.object(HfApi, "create_repo", lambda self, repo_id, **options: mock.Mock(repo_id=repo_id)),
        mock.patch.object(HfApi, "upload_folder", upload_folder),
    ):
        PretrainedSparkles(read_projection(run_checkpoint), config).push_to_hub("me/sparkles")
    assert uploaded == {"me/sparkles": {"README.md", "config.json", "projection.safetensors"}}
