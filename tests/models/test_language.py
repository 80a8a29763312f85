import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparkles.models import language as module
from sparkles.models.checkpoints import CheckpointError
from sparkles.models.language import load_language_model
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import InputError


@pytest.fixture
def folder(model: SparklesChat, tmp_path: Path) -> Path:
    model.language.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def edit_weights(folder: Path) -> Callable[[Callable[[dict[str, Tensor]], Any]], None]:
    def edit(change: Callable[[dict[str, Tensor]], Any]) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


def test_model_comes_back_frozen_in_eval_mode_and_the_dtype_asked_for(folder: Path) -> None:
    language = load_language_model(folder, dtype="float16")
    assert not language.training
    assert {(param.requires_grad, param.dtype) for param in language.parameters()} == {(False, torch.float16)}


def test_auto_is_the_dtype_of_the_files(model: SparklesChat, tmp_path: Path) -> None:
    model.language.bfloat16().save_pretrained(tmp_path)
    assert load_language_model(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert load_language_model(tmp_path).dtype == torch.float32


@pytest.mark.parametrize(("attention", "chosen"), [(None, "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_attention_is_computed_as_configured(attention: Any, chosen: str, folder: Path) -> None:
    assert load_language_model(folder, attention=attention).config._attn_implementation == chosen


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have it")
def test_attention_that_this_machine_cannot_compute_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"attention=flash_attention_2: .*attention=sdpa or null needs no"):
        load_language_model(folder, attention="flash_attention_2")


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no causal language model could be loaded; expected a folder with config.json"
    ):
        load_language_model(tmp_path)


def test_weights_that_do_not_fit_their_config_are_refused(folder: Path, edit_weights) -> None:
    def change(weights: dict[str, Tensor]) -> None:
        del weights["model.norm.weight"]
        weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
        weights["lm_head.weight"] = torch.zeros(3, 32)

    edit_weights(change)
    with pytest.raises(CheckpointError) as caught:
        load_language_model(folder)
    assert str(caught.value).split("\n  ")[:-1] == [
        f"{folder}: the weights do not fit its config.json:",
        "missing: model.norm.weight",
        "unexpected: model.layers.7.mlp.up_proj.weight",
        "shape of lm_head.weight: got (3, 32), expected (40, 32)",
    ]


def test_rotary_buffers_of_old_files_are_no_weights(folder: Path, edit_weights) -> None:
    edit_weights(
        lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    load_language_model(folder)


def test_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("raise SystemExit('it ran')")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "modeling_evil.C", "AutoModelForCausalLM": "modeling_evil.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no causal language model could be loaded"):
        load_language_model(folder)


@pytest.mark.parametrize(
    ("installed", "device", "got"),
    [(False, True, "bitsandbytes and accelerate not installed"), (True, False, "no CUDA device")],
)
def test_quantization_says_what_it_lacks(
    installed: bool, device: bool, got: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        module, "find_spec", lambda name: importlib.util.find_spec("torch") if installed else None
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    with pytest.raises(InputError, match=rf"quantization=8bit: {got}; expected the extra `quantization`"):
        load_language_model(folder, quantization="8bit")


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantization_is_left_to_transformers_on_the_device_of_the_process(
    quantization: str, folder: Path, model: SparklesChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def from_pretrained(path: Path, **options: Any) -> tuple[Any, dict[str, set[str]]]:
        asked.update(options)
        return model.language, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}

    monkeypatch.setattr(module, "find_spec", lambda name: importlib.util.find_spec("torch"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setenv("LOCAL_RANK", "3")
    load_language_model(folder, dtype="bfloat16", quantization=quantization)
    config = asked["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit) == (quantization == "8bit", quantization == "4bit")
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert asked["device_map"] == {"": 3}
