"""The voice: any causal language model that `transformers` loads."""

from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from sparkles.models.checkpoints import CheckpointError


def load_language_model(path: str | Path, *, dtype: str = "float32") -> PreTrainedModel:
    """A frozen language model in eval mode.

    Args:
        path: a folder with `config.json` and weights, or the name of a hub repository.
        dtype: of the weights: `float32`, `bfloat16`, `float16`, or `auto` for that of the files.

    Raises:
        CheckpointError: `path` is neither, or the files cannot be used.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: no causal language model could be loaded; expected a folder with config.json and "
            f"model.safetensors, or the name of a hub repository within reach ({error})"
        ) from error
    return model.eval().requires_grad_(False)
