"""What trained weights belong to: the frozen weights, tokenizer and prompt format that they were trained with."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import nn
from transformers import PreTrainedModel

from sparkles.models.checkpoints.files import CheckpointError, state_hash
from sparkles.models.checkpoints.separators import file_of, source_of
from sparkles.prompt_format import PromptFormat

_FORMAT = "sparkles projection 1"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Recorded with every trained projection, so that it is not used with something else by mistake."""

    base_hashes: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each frozen part: vision, qformer, language."""
    language: str = ""
    """Name and dtype of the language model, for the reader of an error."""
    tokenizer: str = ""
    """sha256 of the file with its vocabulary; empty where there is none."""
    prompt_format: Mapping[str, Any] = field(default_factory=dict)
    """Its name and every string of it, but not the system message, which need not be the one of the training."""

    @classmethod
    def of(cls, model: nn.Module, prompt_format: PromptFormat | None = None) -> Self:
        """Of the children of `model` in which nothing is trainable; a projector alone has none.

        Reads every frozen weight: sha256 over the 14 GB of 7B parameters in 16 bit takes from ten seconds to a
        minute. So it is called once per run, by `SparklesModule`.
        """
        children = dict(model.named_children())
        frozen = {
            name: child
            for name, child in children.items()
            if not any(param.requires_grad for param in child.parameters())
        }
        language = children.get("language")
        return cls(
            base_hashes={name: state_hash(child) for name, child in frozen.items()},
            language=_describe(language) if isinstance(language, PreTrainedModel) else "",
            tokenizer=_vocabulary_hash(language) if isinstance(language, PreTrainedModel) else "",
            prompt_format=_trained_strings(prompt_format) if prompt_format else {},
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """From the header of a safetensors file; what it lacks stays empty."""
        return cls(
            base_hashes=json.loads(metadata.get("base_hashes", "{}")),
            language=metadata.get("language", ""),
            tokenizer=metadata.get("tokenizer", ""),
            prompt_format=json.loads(metadata.get("prompt_format", "{}")),
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any]) -> Self:
        """From a run's checkpoint; the original's records nothing."""
        return cls(
            base_hashes=checkpoint.get("frozen_hashes", {}),
            language=checkpoint.get("language", ""),
            tokenizer=checkpoint.get("tokenizer", ""),
            prompt_format=checkpoint.get("prompt_format", {}),
        )

    def checkpoint_entries(self) -> dict[str, Any]:
        """For a run's checkpoint."""
        return {
            "frozen_hashes": dict(self.base_hashes),
            "language": self.language,
            "tokenizer": self.tokenizer,
            "prompt_format": dict(self.prompt_format),
        }

    def metadata(self) -> dict[str, str]:
        """For the header of a safetensors file."""
        return {
            "format": _FORMAT,
            "base_hashes": json.dumps(dict(self.base_hashes)),
            "language": self.language,
            "tokenizer": self.tokenizer,
            "prompt_format": json.dumps(dict(self.prompt_format)),
        }


def check_origin(
    trained: Origin,
    own: Origin,
    where: str,
    *,
    allow_other_base_weights: bool = False,
    allow_other_prompt_format: bool = False,
) -> None:
    """Compare what `where` was trained with (`trained`) with the model that is to use it (`own`).

    What either of them does not record is not compared.

    Raises:
        CheckpointError: names every difference, both sides of it, and how to go on.
    """
    different = [
        f"{name}: trained on sha256 {trained.base_hashes.get(name, 'unknown')}, this model has {digest}"
        for name, digest in own.base_hashes.items()
        if trained.base_hashes and trained.base_hashes.get(name) != digest
    ]
    if trained.tokenizer and own.tokenizer and trained.tokenizer != own.tokenizer:
        different.append(
            f"tokenizer: trained with sha256 {trained.tokenizer}, this model has {own.tokenizer}"
        )
    if different and not allow_other_base_weights:
        if trained.language != own.language:
            different.append(f"the language model was {trained.language}; this one is {own.language}")
        advice = (
            "load the weights (and the dtype) that it was trained on, "
            "or set module.allow_other_base_weights=true to go on regardless"
        )
        raise CheckpointError(
            "\n  ".join([f"{where} was trained on other frozen weights:", *different, advice])
        )

    common = own.prompt_format.keys() & trained.prompt_format.keys() - {"name", "sha256"}
    different = [
        f"{name}: trained with {trained.prompt_format[name]!r}, configured {own.prompt_format[name]!r}"
        for name in sorted(common)
        if trained.prompt_format[name] != own.prompt_format[name]
    ]
    if different and not allow_other_prompt_format:
        advice = (
            f"set prompt_format={trained.prompt_format['name']}, with which it was trained, "
            "or module.allow_other_prompt_format=true to go on regardless"
        )
        raise CheckpointError(
            "\n  ".join([f"{where} was trained with another prompt format:", *different, advice])
        )


def _trained_strings(prompt_format: PromptFormat) -> dict[str, Any]:
    fields = asdict(prompt_format)
    name = fields.pop("name")
    strings = {key: value for key, value in fields.items() if not key.startswith("system_")}
    digest = hashlib.sha256(json.dumps(strings, sort_keys=True).encode()).hexdigest()
    return {"name": name, "sha256": digest, **strings}


def _describe(language: PreTrainedModel) -> str:
    name = Path(source_of(language)).name or type(language).__name__
    return f"{name} in {str(language.dtype).removeprefix('torch.')}"


def _vocabulary_hash(language: PreTrainedModel) -> str:
    """sha256 of sentencepiece's file, or else of the one of `tokenizers`, next to the model's weights."""
    for name in ("tokenizer.model", "tokenizer.json"):
        if path := file_of(language, name):
            return hashlib.sha256(path.read_bytes()).hexdigest()
    return ""
