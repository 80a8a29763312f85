"""A trained projection in the forms that others read: one file, the original's file, a folder for the hub."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sparkles.config import validate
from sparkles.models.checkpoints.files import CheckpointError
from sparkles.models.checkpoints.origin import Origin
from sparkles.models.checkpoints.projection import (
    PROJECTION_FILE,
    Projection,
    fill,
    read_projection,
    write_safetensors,
)
from sparkles.models.checkpoints.separators import check_separator
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import PromptFormat

_CONFIG_FILE = "config.json"
_ORIGINAL_NAMES = {
    "projector.layers.0.weight": "llama_proj.weight",
    "projector.layers.0.bias": "llama_proj.bias",
}
TARGETS = frozenset(
    {
        "sparkles.data.tokenizer.chat_template_format",
        "sparkles.models.language.load_language_model",
        "sparkles.models.projector.Projector",
        "sparkles.models.qformer.QFormer",
        "sparkles.models.resampler.PatchPooling",
        "sparkles.models.resampler.Resampler",
        "sparkles.models.sparkles_chat.SparklesChat",
        "sparkles.models.vision.VisionEncoder",
        "sparkles.prompt_format.PromptFormat",
    }
)
"""What a folder from elsewhere may have called: its config says what to build, and could name any function."""
_CARD = """---
{{ card_data }}
---

# SparklesChat: a trained projection

What was trained, and the configuration of the model that it belongs to. The frozen parts (vision encoder, Q-Former,
language model) are not in here: `config.json` says which they are, `projection.safetensors` holds their hashes.

```python
from sparkles.models.checkpoints import PretrainedSparkles

pretrained = PretrainedSparkles.from_pretrained("this/repository", overrides=["model.language.path=my/vicuna-7b-v0"])
pretrained.model, pretrained.prompt_format
```
"""


class PretrainedSparkles(
    ModelHubMixin, library_name="sparkles", tags=["sparkles"], model_card_template=_CARD
):
    """A trained projection with the configuration of its model: a folder, or a repository of the hub.

    `save_pretrained`, `from_pretrained` and `push_to_hub` are those of `huggingface_hub`. The folder holds the
    projection and the configuration. Base weights are not copied: the configuration has their paths, the
    projection their hashes, and a model with others is refused.

    Args:
        projection: what was trained, see `read_projection`.
        config: `model` and `prompt_format`, as in a run's `config.yaml`; other keys are left out.

    Raises:
        CheckpointError: the config lacks one of the two.
    """

    def __init__(self, projection: Projection, config: Mapping[str, Any]) -> None:
        if missing := {"model", "prompt_format"} - config.keys():
            raise CheckpointError(f"no {', '.join(sorted(missing))} in the config; expected that of a run")
        self.projection = projection
        self.config = {key: config[key] for key in ("model", "prompt_format")}

    @cached_property
    def model(self) -> SparklesChat:
        """`build_model` when it is first asked for."""
        return self.build_model()

    @cached_property
    def prompt_format(self) -> PromptFormat:
        prompt_format: PromptFormat = self._build("prompt_format")
        return prompt_format

    def build_model(
        self, *, allow_other_base_weights: bool = False, trusted_targets: Collection[str] = ()
    ) -> SparklesChat:
        """Read the base weights and put the projection between them.

        Args:
            allow_other_base_weights: see `load_projection`.
            trusted_targets: further classes and functions that the config may name as `_target_`.

        Raises:
            CheckpointError: the config names something that is not to be trusted, or files do not fit.
            ConfigError: the config does not fit the code.
            PromptFormatError: the language model was trained with another prompt format.
        """
        model: SparklesChat = self._build("model", trusted_targets)
        check_separator(model.language, self.prompt_format)
        fill(
            model,
            self.projection,
            "the projection",
            origin=Origin.of(model, self.prompt_format),
            allow_other_base_weights=allow_other_base_weights,
        )
        return model.eval()

    def _build(self, key: str, trusted_targets: Collection[str] = ()) -> Any:
        if untrusted := sorted(set(_targets(self.config[key])) - TARGETS - set(trusted_targets)):
            raise CheckpointError(
                f"the config would call {', '.join(untrusted)}, which is none of the parts of Sparkles; "
                f"if you know it and where the config came from, give trusted_targets={untrusted}"
            )
        cfg = OmegaConf.create({key: self.config[key]})
        validate(cfg)
        return instantiate(cfg[key], _convert_="all")

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors, origin = self.projection
        write_safetensors(tensors, save_directory / PROJECTION_FILE, origin.metadata())
        text = json.dumps(self.config, indent=2, ensure_ascii=False) + "\n"
        (save_directory / _CONFIG_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # what it does not know is not to be ignored
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: dict[str, Any] | None = None,
        overrides: Sequence[str] = (),
        allow_other_base_weights: bool = False,
        trusted_targets: Collection[str] = (),
    ) -> Self:
        """What the mixin calls, with what else `from_pretrained` was given.

        The mixin hands over keys of `config.json` as arguments if `__init__` has such. So what a file must not
        decide, as whom to trust, is an argument here and not there.

        Args:
            overrides: of the config, as on the command line: `model.language.path=my/vicuna-7b-v0`.
            allow_other_base_weights: see `build_model`, as for `trusted_targets`.
        """
        if config is None:
            raise CheckpointError(f"{model_id}: no {_CONFIG_FILE}; expected what save_pretrained writes")
        if Path(model_id).is_dir():
            path = model_id
        else:
            path = hf_hub_download(
                model_id,
                PROJECTION_FILE,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        merged: Any = OmegaConf.to_container(OmegaConf.merge(config, OmegaConf.from_dotlist(list(overrides))))
        pretrained = cls(read_projection(path), merged)
        pretrained.model = pretrained.build_model(
            allow_other_base_weights=allow_other_base_weights, trusted_targets=trusted_targets
        )
        return pretrained


def export_projection(checkpoint: str | Path, out: str | Path, config: str | Path | None = None) -> None:
    """Write trained weights in another form; what they belong to goes with them where the form has a place for it.

    Args:
        checkpoint: a run's `.ckpt`, our safetensors or folder, the original's `.pth`.
        out: `NAME.safetensors`; `NAME.pth` for the original's code; any other name is a folder for `from_pretrained`.
        config: for a folder, the run's `config.yaml`; None for the one of the run that `checkpoint` lies in.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no place in that form.
    """
    projection, out = read_projection(checkpoint), Path(out)
    if out.suffix == ".safetensors":
        write_safetensors(projection.tensors, out, projection.origin.metadata())
    elif out.suffix in (".pth", ".pt"):
        _write_original(projection, checkpoint, out)
    elif out.suffix in (".ckpt", ".bin"):
        raise CheckpointError(f"{out}: expected NAME.safetensors, NAME.pth or the name of a folder")
    else:
        PretrainedSparkles(projection, _read_config(Path(checkpoint), config)).save_pretrained(out)


def _write_original(projection: Projection, checkpoint: str | Path, out: Path) -> None:
    if differing := sorted(projection.tensors.keys() ^ _ORIGINAL_NAMES.keys()):
        raise CheckpointError(
            f"{checkpoint} does not fit the original's {out.suffix}, which holds one linear layer, llama_proj: "
            f"they differ in {', '.join(differing[:3])}{' and more' if len(differing) > 3 else ''}. "
            f"Export an MLP, or what was trained besides the projector, to {out.with_suffix('.safetensors')}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.tmp")
    torch.save(
        {"model": {_ORIGINAL_NAMES[name]: tensor for name, tensor in projection.tensors.items()}}, draft
    )
    draft.replace(out)


def _read_config(checkpoint: Path, config: str | Path | None) -> dict[str, Any]:
    """The configuration of the model that `checkpoint` is of: beside a folder's weights, or of the run around it."""
    if config is not None:
        path = Path(config)
    elif checkpoint.is_dir():
        path = checkpoint / _CONFIG_FILE
    else:
        path = checkpoint.absolute().parents[1] / "config.yaml"  # of runs/mine/checkpoints/last.ckpt
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; a folder needs the configuration of the model: give config=runs/NAME/config.yaml"
        )
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(content)


def _targets(node: object) -> Iterator[str]:
    """Every `_target_` of a config."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _targets(child)
