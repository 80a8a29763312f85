"""What a dry run says: counts against arithmetic on the config, estimates against what torch measures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rich
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import train
from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.dry_run import (
    activation_bytes,
    build_on_meta,
    count_processes,
    measure_lengths,
    measure_part,
    shapes_of_language_model,
    without_weights,
)
from sparkles.types import IGNORE_INDEX, InputError

RunMain = Callable[..., None]


@pytest.fixture(autouse=True)
def wide_console() -> Iterator[None]:
    """No cell of a table is broken into lines."""
    rich.reconfigure(width=240)
    yield
    rich.reconfigure()


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return without_weights(compose("train", list(overrides)))


def rows(text: str) -> dict[str, list[str]]:
    """The rows of printed tables by their first cell."""
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines()]
    return {first: rest for first, *rest in cells if rest}


def numel(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


# --- the command ----------------------------------------------------------------------------------------------


def test_a_full_size_run_is_told_without_weights_or_data_and_nothing_is_written(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_main(train.main, "experiment=sparkleschat_7b", "dry_run=true", "trainer.devices=8")
    assert list(tmp_path.iterdir()) == []

    told = rows(capsys.readouterr().out)
    llama = LlamaConfig()
    projection = 768 * llama.hidden_size + llama.hidden_size
    assert told["projector"][:3] == [f"{projection:,}", f"{projection:,}", "0"]
    assert told["all"][1] == f"{projection:,}"
    assert told["vision"][1] == told["qformer"][1] == told["language"][1] == "0"
    assert (told["steps"][0], told["batch"][0], told["tokens a step"][0]) == ("1,500", "8", f"{8 * 1024:,}")
    assert "at most" in told["tokens a step"][1]
    assert told["activations"][1].startswith("1 x 1,024 tokens")  # each of the processes has one sample


def test_a_run_with_data_is_measured(
    run_main: RunMain,
    tiny_run: list[str],
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run_main(train.main, *tiny_run, f"data_root={tiny_world}", "dry_run=true")
    assert list(tmp_path.iterdir()) == []
    output = capsys.readouterr().out
    assert "training mixture, drawn per sample, seed 0" in output
    told = rows(output)
    assert told["tokens a step"][1] == "with image slots; measured on the first 12 samples"
    assert told["mixture"][:2] == [
        "per_sample",
        "cc_turn2 50.0%, vg_turn2 50.0%",
    ]


def test_a_run_that_only_measures_trains_nothing(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_main(train.main, "experiment=minigpt4", "dry_run=true")
    output = capsys.readouterr().out
    assert "fit=false: nothing is trained" in output
    assert "optimizer" not in rows(output)


def test_a_mistake_in_the_config_is_told_too(run_main: RunMain, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main(train.main, "experiment=sparkleschat_7b", "dry_run=true", "data.batch_size=many")
    assert "data.batch_size: expected int, got 'many'" in capsys.readouterr().err


# --- shapes ---------------------------------------------------------------------------------------------------


def test_the_full_size_has_the_weights_that_its_numbers_make() -> None:
    cfg = composed("model=sparkles_7b")
    model = build_on_meta(cfg)
    assert all(weight.is_meta for weight in model.parameters())

    width, depth, hidden = 1408, cfg.model.vision.depth, int(1408 * 4.3637)  # ViT-g/14 at 224 pixels
    block = 4 * width + (3 * width**2 + 2 * width) + (width**2 + width) + 2 * width * hidden + hidden + width
    patches = (224 // 14) ** 2 + 1
    assert numel(model.vision.backbone) == depth * block + (3 * 14**2 + 1) * width + (1 + patches) * width
    llama = LlamaConfig()
    layer = 4 * llama.hidden_size**2 + 3 * llama.hidden_size * llama.intermediate_size + 2 * llama.hidden_size
    words = 2 * model.language.config.vocab_size * llama.hidden_size
    assert numel(model.language) == words + llama.num_hidden_layers * layer + llama.hidden_size
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 768 * 4096 + 4096
    assert 7.7e9 < numel(model) < 8.1e9


def test_the_shapes_of_a_folder_win_over_those_of_the_config(tmp_path: Path) -> None:
    tiny_llama().config.save_pretrained(tmp_path)
    model = shapes_of_language_model(tmp_path, dtype="bfloat16", config=LlamaConfig())
    assert model.config.hidden_size == TINY["hidden_size"]
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_a_language_model_without_shapes(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no_model: nothing there tells the shapes .* name them: 'language_config="
    ):
        shapes_of_language_model(tmp_path / "no_model")


def test_weights_and_missing_values_are_taken_out() -> None:
    cfg = composed("data_root=???", "checkpoint=???")
    assert (cfg.data_root, cfg.checkpoint) == ("<data_root>", "<checkpoint>")
    assert cfg.model.vision.checkpoint is None
    assert cfg.model.qformer.checkpoint is None
    assert cfg.data.prepare is None


# --- sizes and estimates --------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def tiny_llama(dtype: torch.dtype = torch.float32, **overrides: Any) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY | overrides), dtype=dtype)
    assert isinstance(model, LlamaForCausalLM)
    return model.eval().requires_grad_(False)


def test_quantised_are_the_linear_layers_but_not_the_output_layer() -> None:
    model = tiny_llama(torch.bfloat16)
    linear = TINY["num_hidden_layers"] * (4 * 128**2 + 3 * 128 * 256)
    full, half = measure_part(model), measure_part(model, "8bit")
    assert (full.parameters, full.trainable, full.stored_as) == (numel(model), 0, "bfloat16")
    assert full.bytes == 2 * full.parameters
    assert full.bytes - half.bytes == linear
    assert half.stored_as == "8bit, bfloat16"


def test_shared_weights_are_counted_once() -> None:
    apart, shared = tiny_llama(), tiny_llama(tie_word_embeddings=True)
    assert measure_part(apart).parameters - measure_part(shared).parameters == 64 * 128


def test_activations_are_those_that_autograd_keeps() -> None:
    tokens = 96

    def kept(num_layers: int) -> int:
        model = tiny_llama(num_hidden_layers=num_layers)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            storages.setdefault(storage.data_ptr(), storage.nbytes())
            return tensor

        embeds = torch.randn(1, tokens, 128, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(inputs_embeds=embeds, use_cache=False)
        assert output.logits.requires_grad  # what was kept is alive, so no address was used twice
        return sum(size for pointer, size in storages.items() if pointer not in weights)

    def estimated(num_layers: int) -> int:
        return tokens * activation_bytes(LlamaConfig(**TINY | {"num_hidden_layers": num_layers}), 4)

    assert kept(5) - kept(2) == pytest.approx(estimated(5) - estimated(2), rel=0.05)


def test_lengths_are_those_of_the_batches(tiny_run: list[str], tiny_world: Path) -> None:
    cfg = composed(*tiny_run, f"data_root={tiny_world}")
    datamodule = instantiate(cfg.data, _convert_="all")
    datamodule.setup("fit")
    batches = list(datamodule.train_dataloader())
    masks = [batch["attention_mask"] for batch in batches]
    lengths = measure_lengths(cfg)
    num_samples = sum(len(mask) for mask in masks)
    assert lengths.mean_tokens == sum(int(mask.sum()) for mask in masks) / num_samples
    assert lengths.most_tokens == max(int(mask.sum(1).max()) for mask in masks)
    assert lengths.mean_square_tokens == sum(int((mask.sum(1) ** 2).sum()) for mask in masks) / num_samples
    labels = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batches)
    assert lengths.mean_labelled == labels / num_samples
    assert lengths.mean_images == sum(len(batch["pixel_values"]) for batch in batches) / num_samples


@pytest.mark.parametrize(
    ("trainer", "processes"),
    [
        ({"devices": 4}, 4),
        ({"devices": [0, 2]}, 2),
        ({"devices": "auto"}, 3),
        ({"devices": -1, "num_nodes": 2}, 6),
    ],
)
def test_processes(trainer: dict[str, Any], processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert count_processes(OmegaConf.create(trainer)) == processes


def test_auto_is_one_process_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert count_processes(OmegaConf.create({"devices": "auto"})) == 1
