"""What a run would need, told without its weights: the parts are built on the `meta` device, as shapes alone.

So it takes seconds, also for a model that no machine at hand could hold, and writes nothing.

Symbols of the formula: L layers, d width, q and k the widths of a layer's queries and of its keys (or
values), f width of the feed-forward part, a attention heads, V vocabulary, e bytes of a number while computing.
"""

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import rich
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.filesize import decimal
from rich.table import Table
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from sparkles.config import fill_missing, validate
from sparkles.data.datamodule import SampleDataset, SparklesDataModule, join_turns
from sparkles.data.mixture import SubsetSpec
from sparkles.models.arithmetic import flops_per_image, training_flops
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX, InputError

ACTIVATIONS = "L (8 d + e (2 q + 2 k + 3 f) + 4 a) + V (e + 12)"
"""What `activation_bytes` computes."""

_BATCHES = 50
"""Batches of the mixture whose lengths are looked at."""
_MOST_IMAGES = 4
"""In a sample of the paper's data: three in the first turn, one in the second."""
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.5}


def dry_run(cfg: DictConfig) -> None:
    """Print parameters, memory, tokens and arithmetic of the run that `cfg` describes.

    Paths may still lack their values; lengths are measured where the data are there.

    Raises:
        ConfigError: the config does not fit the code.
        InputError: nothing tells the shapes of the language model.
    """
    cfg = without_weights(cfg)
    validate(cfg)
    model = build_on_meta(cfg)
    lengths = measure_lengths(cfg) if cfg.fit else None
    quantization = {"language": cfg.model.language.get("quantization")}
    parts = {name: measure_part(part, quantization.get(name)) for name, part in model.named_children()}

    rich.print(_table_of_parts(cfg.name, parts))
    if lengths is None:
        rich.print("fit=false: nothing is trained")
    else:
        rich.print(_table_of_memory(cfg, model, parts, lengths), _table_of_work(cfg, model, lengths))


# --- the model without its weights ----------------------------------------------------------------------------


def without_weights(cfg: DictConfig) -> DictConfig:
    """A copy that names no weights and makes no data; what has no value yet gets its own name for one."""
    plain: dict[str, Any] = fill_missing(OmegaConf.to_container(cfg, resolve=False))
    for part in plain["model"].values():
        if isinstance(part, dict):
            part |= {key: None for key in ("checkpoint", "pretrained") if key in part}
    plain["model"]["language"] |= {
        "_target_": f"{__name__}.shapes_of_language_model",
        "config": plain["language_config"],
    }
    plain["data"]["prepare"] = None
    return OmegaConf.create(plain)


def build_on_meta(cfg: DictConfig) -> SparklesChat:
    """The model of a config `without_weights`; its weights take no memory."""
    with torch.device("meta"):
        model: SparklesChat = instantiate(cfg.model, _convert_="all")
    return model


def shapes_of_language_model(
    path: str | Path,
    *,
    dtype: str = "float32",
    quantization: str | None = None,
    attention: str | None = None,
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """What `load_language_model` would return, without its weights: as the folder says, or else as `config` does.

    Raises:
        InputError: neither says anything.
    """
    if config is None or (Path(path) / "config.json").is_file():
        try:
            config = AutoConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"model.language.path={path}: nothing there tells the shapes of a language model ({error}); set it to "
                "a folder with config.json, or name them: 'language_config={_target_:transformers.LlamaConfig}'"
            ) from error
    stored_as = config.dtype or "float32" if dtype == "auto" else dtype
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=stored_as)
    return model.eval()


# --- lengths --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How long the samples of the mixture are, in tokens with their image slots."""

    mean_tokens: float
    most_tokens: int
    mean_square_tokens: float
    """Of the tokens' squares, which attention grows with."""
    mean_labelled: float
    """Tokens with a loss."""
    mean_images: float
    source: str
    """Where these numbers come from."""


def measure_lengths(cfg: DictConfig) -> Lengths:
    """Lengths of the first samples of the mixture, or upper bounds where its data cannot be read.

    Where they can, the mixture and its first sample are printed as at the beginning of a run.
    """
    try:
        if not Path(cfg.model.language.path).is_dir():  # nothing is fetched
            raise FileNotFoundError(
                f"no tokenizer, as model.language.path={cfg.model.language.path} is no folder"
            )
        datamodule: SparklesDataModule = instantiate(cfg.data, _convert_="all")
        datamodule.setup("fit")
    except (InstantiationException, InputError, OSError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, InputError | OSError):
            raise
        return Lengths(
            mean_tokens=cfg.data.max_length,
            most_tokens=cfg.data.max_length,
            mean_square_tokens=cfg.data.max_length**2,
            mean_labelled=cfg.data.max_length,
            mean_images=_MOST_IMAGES,
            source=f"at most (data.max_length, {_MOST_IMAGES} images); not measured: {str(cause).splitlines()[0]}",
        )
    loader = datamodule.train_dataloader()
    dataset: SampleDataset = loader.dataset  # type: ignore[assignment]
    encoded = [
        dataset.encoder.encode_sample(
            dataset.samples[draw.subset][draw.index], dataset.earlier_weights.get(draw.subset, ())
        )
        for draws in islice(loader.batch_sampler, _BATCHES)
        for draw in draws
    ]
    tokens = [len(one.input_ids) for one in encoded]
    return Lengths(
        mean_tokens=mean(tokens),
        most_tokens=max(tokens),
        mean_square_tokens=mean(number**2 for number in tokens),
        mean_labelled=mean(sum(label != IGNORE_INDEX for label in one.labels or ()) for one in encoded),
        mean_images=mean(len(one.images) for one in encoded),
        source=f"measured on the first {len(encoded):,} samples",
    )


# --- memory and arithmetic ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """Size of one part of the model."""

    parameters: int
    trainable: int
    stored_as: str
    """Types of its weights."""
    bytes: float


def measure_part(part: nn.Module, quantization: str | None = None) -> Part:
    """Count a part's weights, shared ones once. Quantised are its linear layers but for the output layer."""
    head = part.get_output_embeddings() if isinstance(part, PreTrainedModel) else None
    quantized = {
        module.weight
        for module in part.modules()
        if quantization and isinstance(module, nn.Linear) and module is not head
    }

    def stored(weight: nn.Parameter) -> tuple[str, float]:
        if quantization and weight in quantized:
            return quantization, _QUANTIZED_BYTES[quantization]
        return str(weight.dtype).removeprefix("torch."), weight.itemsize

    weights = list(part.parameters())
    return Part(
        parameters=sum(weight.numel() for weight in weights),
        trainable=sum(weight.numel() for weight in weights if weight.requires_grad),
        stored_as=", ".join(sorted({stored(weight)[0] for weight in weights})),
        bytes=sum(weight.numel() * stored(weight)[1] for weight in weights),
    )


def activation_bytes(config: PretrainedConfig, number_bytes: int) -> int:
    """Bytes that a frozen language model keeps of each token for the backward pass.

    Frozen linear layers keep no input. A layer keeps what its two norms read, in float32; queries, keys, values and
    result of an attention that stores no scores, and a float32 a head; gate, activated gate and up projection. The
    end keeps logits and, in float32, a copy, the log-softmax and its gradient, though only of tokens with a loss.
    """
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    numbers = 2 * heads * head_width + 2 * key_heads * head_width + 3 * feed_forward
    layer = 8 * config.hidden_size + number_bytes * numbers + 4 * heads
    return config.num_hidden_layers * layer + config.vocab_size * (number_bytes + 12)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What training takes; all but `steps` is of one step."""

    steps: int
    samples: int
    tokens: float
    images: float
    flops: float


def measure_work(cfg: DictConfig, model: SparklesChat, lengths: Lengths) -> Work:
    """What the training of a config takes."""
    samples = cfg.data.batch_size * cfg.trainer.get("accumulate_grad_batches", 1)
    tokens, images = samples * lengths.mean_tokens, samples * lengths.mean_images
    text = training_flops(
        model.language,
        tokens=tokens,
        square_tokens=samples * lengths.mean_square_tokens,
        labelled=samples * lengths.mean_labelled,
    )
    return Work(
        steps=cfg.data.steps * cfg.trainer.max_epochs,
        samples=samples,
        tokens=tokens,
        images=images,
        flops=text + images * flops_per_image(model),
    )


def count_processes(trainer: DictConfig) -> int:
    """Processes of a run; `auto` and -1 count the GPUs of this machine."""
    devices = trainer.devices
    if isinstance(devices, ListConfig):
        devices = len(devices)
    if devices in ("auto", -1):
        devices = max(1, torch.cuda.device_count())
    return int(devices) * int(trainer.get("num_nodes", 1))


# --- tables ---------------------------------------------------------------------------------------------------


def _table_of_parts(name: str, parts: dict[str, Part]) -> Table:
    total = Part(
        parameters=sum(part.parameters for part in parts.values()),
        trainable=sum(part.trainable for part in parts.values()),
        stored_as="",
        bytes=sum(part.bytes for part in parts.values()),
    )
    table = _table(f"{name}, the model", "part", "parameters", "trainable", "frozen", "stored as", "bytes")
    for title, part in {**parts, "all": total}.items():
        frozen = part.parameters - part.trainable
        counts = (f"{count:,}" for count in (part.parameters, part.trainable, frozen))
        table.add_row(title, *counts, part.stored_as, _bytes(part.bytes))
    return table


def _table_of_memory(cfg: DictConfig, model: SparklesChat, parts: dict[str, Part], lengths: Lengths) -> Table:
    processes = count_processes(cfg.trainer)
    samples = math.ceil(cfg.data.batch_size / processes)
    number_bytes = 2 if "16" in str(cfg.trainer.precision) else model.language.dtype.itemsize
    per_sample = lengths.most_tokens * activation_bytes(model.language.config, number_bytes)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = sum(weight.nbytes for weight in trainable)
    rows = {
        "weights": (sum(part.bytes for part in parts.values()), "all parts, as stored"),
        "gradients": (gradients, "of the trainable weights"),
        "optimizer": (2 * gradients, "two moments of each trainable weight"),
        "activations": (
            samples * per_sample,
            f"{samples} x {lengths.most_tokens:,} tokens ({_bytes(per_sample)} a sample) x {ACTIVATIONS} bytes, "
            f"e = {number_bytes}; frozen encoders keep none",
        ),
    }
    table = _table(f"memory of a process while training (of {processes})", "what", "bytes", "how")
    for title, (size, how) in rows.items():
        table.add_row(title, _bytes(size), how)
    table.add_row(
        "together", _bytes(sum(size for size, _ in rows.values())), "besides what the libraries take"
    )
    return table


def _table_of_work(cfg: DictConfig, model: SparklesChat, lengths: Lengths) -> Table:
    work = measure_work(cfg, model, lengths)
    accumulated = cfg.trainer.get("accumulate_grad_batches", 1)
    subsets: dict[str, SubsetSpec] = instantiate(cfg.data.subsets, _convert_="all")
    if cfg.data.get("turns") == "joint":
        subsets, _ = join_turns(subsets)
    ratios = {name: spec.ratio for name, spec in subsets.items() if spec.ratio > 0}
    shares = ", ".join(f"{name} {ratio / sum(ratios.values()):.1%}" for name, ratio in ratios.items())
    rows = {
        "steps": (f"{work.steps:,}", f"{work.steps * work.samples:,} samples"),
        "batch": (
            f"{work.samples:,}",
            f"{cfg.data.batch_size} over all processes, times {accumulated} accumulated",
        ),
        "tokens a step": (f"{work.tokens:,.0f}", f"with image slots; {lengths.source}"),
        "images a step": (f"{work.images:,.0f}", ""),
        "FLOPs a step": (
            f"{work.flops:.2e}",
            "4 N a token, as N is frozen, and attention; 2 N an image token",
        ),
        "precision": (str(cfg.trainer.precision), f"devices={cfg.trainer.devices}"),
        "mixture": (cfg.data.mix, shares),
    }
    table = _table("the run", "what", "value", "how")
    for title, (value, how) in rows.items():
        table.add_row(title, value, how)
    return table


def _table(title: str, *headings: str) -> Table:
    """A table with the words on the left and the numbers on the right."""
    table = Table(title=title)
    for index, heading in enumerate(headings):
        words = index == 0 or heading in ("how", "stored as")
        table.add_column(heading, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    return table


def _bytes(size: float) -> str:
    """
    >>> _bytes(15_880_000_000), _bytes(49_664)
    ('15.9 GB', '49.7 kB')
    """
    return decimal(int(size))
