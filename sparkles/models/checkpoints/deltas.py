"""Vicuna's early releases are differences to LLaMA's weights; this adds the two, one tensor at a time."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from sparkles.models.checkpoints.files import CheckpointError, check_fit
from sparkles.models.checkpoints.projection import write_safetensors
from sparkles.models.checkpoints.separators import CONFIG_KEY, VICUNA_V0, vicuna_separator

_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_COMPUTED = "rotary_emb.inv_freq"
"""Old files hold these buffers; the model computes them."""
_MADE_FROM = "merged_from"


def merge_delta(
    base: str | Path, delta: str | Path, out: str | Path, end_of_answer: str | None = None
) -> None:
    """Write the sum of two folders of weights, with config and tokenizer of the delta, for `transformers` to load.

    Holds the sums of one shard (of the delta's) and two tensors in memory. What is merged already is not merged
    again after an interruption: a shard appears under its name when it is complete, the config comes last.

    Args:
        base: folder of the original LLaMA weights in `transformers` format, safetensors or `.bin`.
        delta: folder of the delta, in the same format; the number format of the sum is the delta's.
        out: folder to write.
        end_of_answer: what the merged model ends an answer with, if neither the delta's name nor its vocabulary
            tells; see `sparkles.models.checkpoints.separators`.

    Raises:
        CheckpointError: a file is missing or cannot be read, the two do not fit together, or `out` holds
            something else.
    """
    console = Console(stderr=True)
    original, difference, folder = _Weights(base), _Weights(delta), Path(out)
    if folder.resolve() in (original.folder.resolve(), difference.folder.resolve()):
        raise CheckpointError(f"out={out} is one of the two folders that are added; choose another")
    config_path = difference.folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(
            f"{config_path}: no such file; expected the delta's config, which the merged model needs"
        )
    added_rows = _check(original, difference)
    if added_rows:
        console.print(
            f"{delta} adds {added_rows} to the vocabulary of {base} (Vicuna v0 has a padding token): "
            "nothing is added to those rows"
        )

    made_from = _fingerprint([*original.files, *difference.files])
    shards = dict(zip(_shard_names(len(difference.files)), difference.files, strict=True))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("merging", total=sum(file.stat().st_size for file in difference.files))
        for name, file in shards.items():
            if not _is_finished(folder / name, made_from):
                write_safetensors(
                    # Held by nobody here, so that it is gone before the next shard is read.
                    {
                        key: _add(original.read(key), difference.read(key))
                        for key in difference.names_in(file)
                    },
                    folder / name,
                    {"format": "pt", _MADE_FROM: made_from},
                )
            progress.advance(task, file.stat().st_size)

    if len(shards) > 1:
        _write_index(
            folder, {key: name for name, file in shards.items() for key in difference.names_in(file)}
        )
    for path in difference.other_files():
        shutil.copy(path, folder)
    taught = end_of_answer or vicuna_separator(str(delta)) or (VICUNA_V0 if added_rows else None)
    if taught is not None:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        _write_json(folder / config_path.name, config | {CONFIG_KEY: taught})
    console.print(f"merged into {folder}; {_told(taught)}")


class _Weights:
    """The tensors of a folder as `transformers` saves it. None of them stays in memory."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files = self._find_files()
        self.shapes: dict[str, Tensor] = {}
        """On the meta device."""
        self.homes: dict[str, Path] = {}
        for file in self.files:
            shapes = {name: shape for name, shape in _shapes(file).items() if not name.endswith(_COMPUTED)}
            self.shapes |= shapes
            self.homes |= dict.fromkeys(shapes, file)

    def read(self, name: str) -> Tensor:
        # The file is opened anew for each tensor, since what was read stays in memory while a mapped file is open.
        file = self.homes[name]
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
                return tensor
        return _map_torch_file(file)[name]

    def names_in(self, file: Path) -> list[str]:
        return [name for name, home in self.homes.items() if home == file]

    def other_files(self) -> Iterable[Path]:
        """Tokenizer, generation config and the like."""
        indices = (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
        suffixes = (".json", ".model", ".jinja", ".txt")
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.is_file() and path.suffix in suffixes and path.name not in indices
        ]

    def _find_files(self) -> list[Path]:
        for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
            index = self.folder / name
            if index.is_file():
                shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                files = [self.folder / shard for shard in sorted(set(shards))]
                if missing := [path.name for path in files if not path.is_file()]:
                    raise CheckpointError(
                        f"{index} lists {len(files)} files of weights; missing: {', '.join(missing)}. "
                        "Finish the download"
                    )
                return files
        for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
            if (self.folder / name).is_file():
                return [self.folder / name]
        raise CheckpointError(
            f"{self.folder}: no weights; expected a folder in the format of transformers, with {SAFE_WEIGHTS_NAME}, "
            f"{WEIGHTS_NAME}, or shards and their index (LLaMA's original files need to be converted first)"
        )


def _shapes(file: Path) -> dict[str, Tensor]:
    """The tensors of a file without their values."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                names = opened.keys()
                return {
                    name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names
                }
        return {
            name: torch.empty_like(tensor, device="meta") for name, tensor in _map_torch_file(file).items()
        }
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{file}: not readable as weights ({error}); "
            "expected a safetensors file, or a torch file (1.6 or later) that holds nothing but tensors"
        ) from error


def _map_torch_file(file: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    return tensors


def _check(base: _Weights, delta: _Weights) -> int:
    """Raise CheckpointError unless the two can be added; returns the rows that the delta adds to the vocabulary."""
    expected = dict(base.shapes)
    added_rows = 0
    for name in _VOCABULARY:
        if name not in base.shapes or name not in delta.shapes:
            continue
        (rows, width), (delta_rows, delta_width) = base.shapes[name].shape, delta.shapes[name].shape
        if width == delta_width and rows > delta_rows:
            raise CheckpointError(
                f"{name} has {rows} rows in {base.folder} but {delta_rows} in {delta.folder}: somebody added "
                f"{rows - delta_rows} to the base's vocabulary, as Vicuna v0 and Alpaca do. "
                "Set base= to the original LLaMA weights"
            )
        if width == delta_width:
            expected[name] = delta.shapes[name]
            added_rows = delta_rows - rows
    check_fit(delta.shapes, expected, f"{delta.folder} is no delta to {base.folder}")
    return added_rows


def _add(base: Tensor, delta: Tensor) -> Tensor:
    """The sum in the delta's number format, as Vicuna's authors computed it; rows that the base lacks count as zero."""
    total = delta.clone()
    total[: len(base)] += base.to(delta.dtype)
    return total


def _fingerprint(files: Iterable[Path]) -> str:
    """Of names, sizes and times, so that another pair of folders is not taken for this one."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _is_finished(path: Path, made_from: str) -> bool:
    if not path.is_file():
        return False
    with safe_open(path, "pt") as opened:
        if (opened.metadata() or {}).get(_MADE_FROM) == made_from:
            return True
    raise CheckpointError(
        f"{path} exists and was not merged from these files; remove it, or set out= to another folder"
    )


def _write_index(folder: Path, weight_map: dict[str, str]) -> None:
    size = sum((folder / name).stat().st_size for name in set(weight_map.values()))
    _write_json(
        folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": {"total_size": size}, "weight_map": weight_map}
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _shard_names(count: int) -> list[str]:
    """
    >>> _shard_names(1), _shard_names(2)
    (['model.safetensors'], ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'])
    """
    if count == 1:
        return [SAFE_WEIGHTS_NAME]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _told(end_of_answer: str | None) -> str:
    if end_of_answer is None:
        return (
            "what it ends an answer with is not known, so no prompt_format will be refused: "
            "give end_of_answer='###' (Vicuna v0) or '</s>' (v1.1) to have it checked"
        )
    return f"it ends an answer with {end_of_answer!r}, and a prompt_format that does not will be refused"
