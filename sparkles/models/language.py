"""The voice: any causal language model that `transformers` loads."""

import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from sparkles.models.checkpoints import CheckpointError
from sparkles.models.checkpoints.files import refuse
from sparkles.types import InputError

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Quantization = Literal["8bit", "4bit"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


def load_language_model(
    path: str | Path,
    *,
    dtype: Dtype = "float32",
    quantization: Quantization | None = None,
    attention: Attention | None = None,
) -> PreTrainedModel:
    """A frozen language model in eval mode; no code that comes with it is run.

    Args:
        path: a folder with `config.json` and weights, or the name of a hub repository.
        dtype: of the weights; `auto` for that of the files.
        quantization: keep linear layers in 8 or 4 bit instead. Needs the extra `quantization` and a CUDA device.
        attention: how it is computed; None for what `transformers` finds best, which is sdpa for most models.

    Raises:
        CheckpointError: `path` is neither, or its files cannot be used or do not fit its `config.json`.
        InputError: this machine cannot quantize, or compute attention in this way.
    """
    options = {} if quantization is None else _quantized(quantization, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are in the report, which is read below
            output_loading_info=True,
            **options,
        )
    except ImportError as error:
        if attention is None:
            raise
        raise InputError(
            f"model.language.attention={attention}: {error}; attention=sdpa or null needs no package"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: no causal language model could be loaded; expected a folder with config.json and "
            f"model.safetensors, or the name of a hub repository within reach ({error})"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    refuse(
        f"{path}: the weights do not fit its config.json",
        {
            "missing: ": sorted(report["missing_keys"]),
            "unexpected: ": sorted(report["unexpected_keys"]),
            "shape of ": [
                f"{name}: got {tuple(got)}, expected {tuple(expected)}"
                for name, got, expected in sorted(report["mismatched_keys"])
            ],
        },
    )
    return model.eval().requires_grad_(False)


def _quantized(quantization: Quantization, dtype: Dtype) -> dict[str, Any]:
    """Arguments for `from_pretrained`."""
    lacking = [name for name in ("bitsandbytes", "accelerate") if find_spec(name) is None]
    if lacking or not torch.cuda.is_available():
        got = f"{' and '.join(lacking)} not installed" if lacking else "no CUDA device"
        raise InputError(
            f"model.language.quantization={quantization}: {got}; expected the extra `quantization` "
            "(pip install 'sparkles[quantization]') and a CUDA device. "
            "model.language.quantization=null model.language.dtype=bfloat16 goes without"
        )
    config = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype="bfloat16" if dtype == "auto" else dtype,
    )
    # Weights are quantized on the device, each process of a run on its own.
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}}
