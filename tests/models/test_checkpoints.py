import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sparkles.models.checkpoints import (
    CheckpointError,
    Origin,
    check_separator,
    load_part,
    load_projection,
    save_projection,
    state_hash,
)
from sparkles.models.language import load_language_model
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import MINIGPT4, PromptFormatError

MakeModel = Callable[..., SparklesChat]


def assert_same_projection(one: SparklesChat, other: SparklesChat) -> None:
    torch.testing.assert_close(one.projector.state_dict(), other.projector.state_dict(), rtol=0, atol=0)


def test_hash_sees_values_names_and_dtypes_only() -> None:
    layer, changed, renamed = nn.Linear(2, 2), nn.Linear(2, 2), nn.Module()
    changed.load_state_dict({"bias": layer.bias.data, "weight": layer.weight.data})
    assert state_hash(layer) == state_hash(changed)
    changed.bias.data[0] += 1e-6
    renamed.weight, renamed.shift = layer.weight, layer.bias
    hashes = {state_hash(module) for module in (layer, changed, renamed)}
    assert len(hashes | {state_hash(layer.bfloat16())}) == 4


def test_hash_is_of_the_values_whatever_the_memory_layout() -> None:
    layer = nn.Linear(3, 2)
    before = state_hash(layer)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    assert state_hash(layer) == before


def test_saved_projection_comes_back_with_its_metadata(make_model: MakeModel, tmp_path: Path) -> None:
    trained, other = make_model(seed=0), make_model(seed=1)
    path = tmp_path / "new" / "projection.safetensors"
    save_projection(trained, path, {"run": "table2"})
    load_projection(other, path)
    assert_same_projection(trained, other)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"run": "table2"}
        assert set(file.keys()) == {"projector.layers.0.weight", "projector.layers.0.bias"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_projection_of_the_original_is_read(make_model: MakeModel, tmp_path: Path) -> None:
    trained, other = make_model(seed=0), make_model(seed=1)
    linear = trained.projector.layers[0].state_dict(prefix="llama_proj.")
    torch.save({"model": linear, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "original.pth")
    load_projection(other, tmp_path / "original.pth")
    assert_same_projection(trained, other)


def test_one_error_lists_everything_that_does_not_fit(make_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "projection.safetensors"
    save_file({"projector.layers.0.weight": torch.zeros(32, 99), "projector.scale": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError) as caught:
        load_projection(make_model(), path)
    message = str(caught.value)
    assert str(path) in message
    assert "missing: projector.layers.0.bias (32,)" in message
    assert "unexpected: projector.scale (1,)" in message
    assert "shape of projector.layers.0.weight: got (32, 99), expected (32, 16)" in message


def test_long_list_of_problems_is_cut(make_model: MakeModel, tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "part.safetensors"
    save_file({"other": torch.zeros(1)}, path)
    missing = len(model.vision.state_dict())
    with pytest.raises(CheckpointError, match=rf"does not fit VisionEncoder(?s:.*)and {missing - 8} more"):
        load_part(model.vision, path)


@pytest.fixture
def language_folder(model: SparklesChat, tmp_path: Path) -> Path:
    """A language model with a tokenizer's file beside it."""
    folder = tmp_path / "llama-tiny"
    model.language.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


@pytest.fixture
def from_folder(make_model: MakeModel, language_folder: Path) -> SparklesChat:
    """The model with the language model of that folder."""
    model = make_model()
    model.language = load_language_model(language_folder)
    return model


def test_origin_comes_back_from_either_kind_of_file(from_folder: SparklesChat) -> None:
    origin = Origin.of(from_folder, MINIGPT4)
    assert origin.base_hashes == {
        name: state_hash(from_folder.get_submodule(name)) for name in ("vision", "qformer", "language")
    }
    assert origin.tokenizer == sha256(b"pieces").hexdigest()
    assert origin.language == "llama-tiny in float32"
    assert origin.prompt_format.items() > {"name": "minigpt4", "end_of_answer": "###"}.items()
    assert Origin.from_metadata(origin.metadata()) == origin
    assert Origin.from_checkpoint(origin.checkpoint_entries()) == origin


def test_what_is_trainable_is_no_base(make_model: MakeModel) -> None:
    model = make_model()
    model.qformer.requires_grad_(True)
    assert Origin.of(model).base_hashes.keys() == {"vision", "language"}
    assert Origin.of(nn.ModuleDict({"projector": model.projector})) == Origin()


def test_other_base_weights_are_refused_and_both_named(
    from_folder: SparklesChat, make_model: MakeModel, tmp_path: Path
) -> None:
    path, other = tmp_path / "projection.safetensors", make_model(seed=1)
    save_projection(from_folder, path, Origin.of(from_folder).metadata())
    with pytest.raises(CheckpointError) as caught:
        load_projection(other, path)
    message = str(caught.value)
    for name in ("vision", "qformer", "language"):
        trained, own = state_hash(from_folder.get_submodule(name)), state_hash(other.get_submodule(name))
        assert f"{name}: trained on sha256 {trained}, this model has {own}" in message
    assert "the language model was llama-tiny in float32; this one is LlamaForCausalLM in float32" in message
    assert "module.allow_other_base_weights=true" in message
    load_projection(other, path, allow_other_base_weights=True)
    assert_same_projection(from_folder, other)


def test_another_tokenizer_is_refused(
    from_folder: SparklesChat, language_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "projection.safetensors"
    save_projection(from_folder, path, Origin.of(from_folder).metadata())
    load_projection(from_folder, path)
    (language_folder / "tokenizer.model").write_bytes(b"other pieces")
    with pytest.raises(
        CheckpointError, match=r"tokenizer: trained with sha256 \w{64}, this model has \w{64}"
    ):
        load_projection(from_folder, path)


def test_another_prompt_format_is_refused_unless_only_the_system_message_differs(
    model: SparklesChat, tmp_path: Path
) -> None:
    path = tmp_path / "projection.safetensors"
    save_projection(model, path, Origin.of(model, MINIGPT4).metadata())
    load_projection(
        model, path, origin=Origin.of(model, replace(MINIGPT4, name="mine", system_message="Hi."))
    )
    other = Origin.of(model, replace(MINIGPT4, end_of_answer="</s>"))
    with pytest.raises(
        CheckpointError, match="end_of_answer: trained with '###', configured '</s>'"
    ) as caught:
        load_projection(model, path, origin=other)
    assert "set prompt_format=minigpt4, with which it was trained" in str(caught.value)
    load_projection(model, path, origin=other, allow_other_prompt_format=True)


def test_file_without_hashes_is_taken_and_the_log_says_so(
    make_model: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained, path = make_model(), tmp_path / "original.pth"
    torch.save({"model": trained.projector.layers[0].state_dict(prefix="llama_proj.")}, path)
    with caplog.at_level("INFO"):
        load_projection(make_model(seed=1), path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} does not say which base weights it was trained on; nothing was compared"
    ]


def test_trainable_query_part_is_saved_with_the_projector(make_model: MakeModel, tmp_path: Path) -> None:
    trained, other = make_model(), make_model()
    for model in (trained, other):
        model.qformer.requires_grad_(True)
    trained.qformer.query_tokens.data += 1
    save_projection(trained, tmp_path / "projection.safetensors", Origin.of(trained).metadata())
    load_projection(other, tmp_path / "projection.safetensors")
    torch.testing.assert_close(other.qformer.state_dict(), trained.qformer.state_dict(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"unexpected: qformer\."):
        load_projection(make_model(), tmp_path / "projection.safetensors")


def language_model(name: str, end_of_answer: str | None = None) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    config.name_or_path = name
    if end_of_answer is not None:
        config.end_of_answer = end_of_answer
    return LlamaForCausalLM(config)


def chat_template_folder(folder: Path, template: str) -> str:
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": template, "eos_token": "</s>"})
    )
    return str(folder)


CHATML = replace(MINIGPT4, name="chatml", end_of_answer="<|im_end|>")


@pytest.mark.parametrize("name", ["llama-7b-hf", "vicuna-7b-v0", "lmsys/vicuna-7b-delta-v0", "", "my-vicuna"])
def test_separator_that_nothing_speaks_against_is_taken(name: str) -> None:
    check_separator(language_model(name), MINIGPT4)


def test_separator_of_a_vicuna_release_is_known_by_its_name() -> None:
    with pytest.raises(PromptFormatError) as caught:
        check_separator(language_model("lmsys/vicuna-7b-v1.5"), MINIGPT4)
    message = str(caught.value)
    assert "'minigpt4' ends an answer with '###'" in message
    assert "lmsys/vicuna-7b-v1.5 was trained to end one with '</s>'" in message
    assert "Set prompt_format=vicuna_v11" in message
    assert "module.allow_other_prompt_format=true" in message
    with pytest.raises(PromptFormatError, match=r"'###' (?s:.*)Set prompt_format=minigpt4"):
        check_separator(language_model("vicuna-7b-v0"), replace(MINIGPT4, end_of_answer="</s>"))


def test_separator_in_the_config_counts_more_than_the_name(tmp_path: Path) -> None:
    check_separator(language_model("vicuna-7b-v1.5", "###"), MINIGPT4)
    language_model("", "</s>").save_pretrained(tmp_path)
    with pytest.raises(PromptFormatError, match=r"told by end_of_answer in its config\.json"):
        check_separator(load_language_model(tmp_path), MINIGPT4)


def test_separator_has_to_stand_in_the_chat_template(tmp_path: Path) -> None:
    chatml = language_model(chat_template_folder(tmp_path / "chatml", "<|im_start|>{{ x }}<|im_end|>\n"))
    check_separator(chatml, CHATML)
    with pytest.raises(
        PromptFormatError, match=r"its chat template(?s:.*)Set prompt_format=chat_template or .*=chatml"
    ):
        check_separator(chatml, MINIGPT4)
    ends_with_eos = language_model(chat_template_folder(tmp_path / "eos", "{{ x + eos_token }}"))
    check_separator(ends_with_eos, replace(MINIGPT4, end_of_answer="</s>"))
    with pytest.raises(PromptFormatError, match="its chat template"):
        check_separator(ends_with_eos, CHATML)


def test_missing_file_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file; expected weights as"):
        load_projection(make_model(), tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_broken_file_is_named(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match=rf"{name}: not readable as weights"):
        load_projection(make_model(), tmp_path / name)


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (Path.touch, (Path("ran"),))  # type: ignore[return-value]


def test_checkpoint_cannot_run_code(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": RunsCode()}, "evil.pth")
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_projection(make_model(), "evil.pth")
    assert not Path("ran").exists()
