from pathlib import Path

import pytest
import torch

from sparkles.models.checkpoints import CheckpointError
from sparkles.models.language import load_language_model
from sparkles.models.sparkles_chat import SparklesChat


def test_model_comes_back_frozen_in_eval_mode_and_the_dtype_asked_for(
    model: SparklesChat, tmp_path: Path
) -> None:
    model.language.save_pretrained(tmp_path)
    language = load_language_model(tmp_path, dtype="float16")
    assert not language.training
    assert {(param.requires_grad, param.dtype) for param in language.parameters()} == {(False, torch.float16)}


def test_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no causal language model could be loaded; expected a folder with config.json"
    ):
        load_language_model(tmp_path)
