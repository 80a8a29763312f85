"""What a run's results depend on, as hashes: a run is done again when one of them changes, and only then.

In two parts: what was *trained* (model, data, optimizer, seed, the code of these) and, with that, what was *measured*
(benchmarks and their files, judge, controls, generation, the code of these). Runs that share the first part share the
weights. Neither holds what changes no result: names, folders, trackers, progress, devices, workers.

A file counts by its content, wherever it lies; data that a `prepare` of the config makes, by the settings of that.
Code counts by its syntax tree: comments, docstrings and layout do not matter, nor whether it is committed.
"""

import ast
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from sparkles.config import CONFIG_DIR
from sparkles.eval.files import file_hash, read_json, write_json

ROOT = CONFIG_DIR.parent

_MACHINE = {
    "trainer": {
        "accelerator",
        "devices",
        "num_nodes",
        "strategy",
        "log_every_n_steps",
        "num_sanity_val_steps",
    }
    | {"enable_model_summary", "enable_progress_bar", "enable_checkpointing", "use_distributed_sampler"},
    "data": {"num_workers", "cache_images", "prepare"},
    "callbacks": {"progress", "checkpoint", "final_checkpoint", "benchmarks"},
}
"""What changes no trained weight. `data.batch_size` is over all devices."""
_MEASURING = {"val_subsets", "eval_transform"}
"""Keys of `data` that training does not look at."""
_TRAINING = {"subsets", "train_transform", "batch_size", "steps", "mix", "turns", "seed", "on_bad_record"} | {
    *("feature_cache", "cached_crops", "system_in_training", "unmask_prompt_end")
}
"""Keys of `data` that nothing but training looks at."""
_SHOWN_ONLY = ("sparkles.eval.report", "sparkles.eval.rendering", "sparkles.eval.table", "sparkles.pages")
"""Code that draws what was found."""
_BY_CONTENT = {
    *(".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".model"),
    *(".json", ".jsonl", ".csv", ".txt", ".jinja", ".yaml"),
}
"""Files of a folder that count by their content; others, such as a hundred thousand pictures, by name and size."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Hashes by what they stand for: `config`, `files` and `code` of either part."""

    trained: Mapping[str, str]
    """Empty where nothing of the run is a model of ours: an endpoint is measured, or data are counted."""
    measured: Mapping[str, str]

    @property
    def weights(self) -> str:
        """Hash of the first part."""
        return _digest(self.trained)

    @property
    def results(self) -> str:
        """Hash of everything."""
        return _digest([self.trained, self.measured])

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Identity":
        """What `asdict` made of one."""
        return cls(trained=record["trained"], measured=record["measured"])


class Contents:
    """Hashes of files and folders, kept in `path` from one call of a command to the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, Any] = read_json(path)
        self._new: dict[str, Any] = {}
        self._found: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """Of a file's bytes; of a folder's files (see `_BY_CONTENT`)."""
        if path not in self._found:
            self._found[path] = self._of_folder(path) if path.is_dir() else self._of_file(path)
        return self._found[path]

    def save(self) -> None:
        """Keep what was read since then; other processes may do the same."""
        if self._new:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock")):
                write_json(self.path, read_json(self.path) | self._new)
            self._new = {}

    def _of_file(self, path: Path) -> str:
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns]
        name = str(path.absolute())
        if self._kept.get(name, [])[:2] != state:
            self._kept[name] = self._new[name] = [*state, file_hash(path)]
        return str(self._kept[name][2])

    def _of_folder(self, folder: Path) -> str:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return _digest(
            [
                (
                    path.relative_to(folder).as_posix(),
                    self._of_file(path) if path.suffix in _BY_CONTENT else path.stat().st_size,
                )
                for path in files
            ]
        )


def identify(
    cfg: Mapping[str, Any],
    contents: Contents,
    *,
    prepare: Iterable[Iterable[str]] = (),
    task: str = "sparkles.launch.launch",
) -> Identity:
    """The identity of the run that a resolved config describes, of which nothing has to exist yet.

    Args:
        prepare: commands that made data for it.
        task: what does the work, where that is not a run of `train.py`, whose configuration names its parts.
    """
    made = {node["root"]: node for node in makings(cfg)}
    made_by = {"prepare": [list(command) for command in prepare]}
    trained, measured = _trained(cfg), _measured(cfg)
    if trained:
        return Identity(
            trained=_part(trained | made_by, made, contents), measured=_part(measured, made, contents)
        )
    targets = () if _is_run(cfg) else (task,)
    return Identity(trained={}, measured=_part(measured | made_by, made, contents, *targets))


def makings(node: Any) -> Iterator[dict[str, Any]]:
    """Each node `prepare` of a config that makes data in a folder, its `root`."""
    if isinstance(node, dict):
        for key, child in node.items():
            if key == "prepare" and isinstance(child, dict) and "root" in child:
                yield child
            else:
                yield from makings(child)


def _is_run(cfg: Mapping[str, Any]) -> bool:
    """Whether this is a config of `train.py` or of an evaluation."""
    return "fit" in cfg


def _trained(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config the weights depend on."""
    if not _is_run(cfg) or cfg.get("responder"):
        return {}
    kept = {name: _without(cfg[name], keys) for name, keys in _MACHINE.items()}
    data = _without(kept["data"], _MEASURING)
    if not cfg["fit"]:
        module = {key: cfg["module"].get(key) for key in ("_target_", "checkpoint", "prompt_format")}
        return {"model": cfg["model"], "module": module, "data": _without(data, _TRAINING)}
    # Features that are kept are rounded, wherever they are kept.
    data["feature_cache"] = data.get("feature_cache") is not None
    return {
        **{"model": cfg["model"], "module": cfg["module"], "seed": cfg["seed"]},
        **{"data": data, "trainer": kept["trainer"], "callbacks": kept["callbacks"]},
    }


def _measured(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config the results depend on, the weights apart."""
    if not _is_run(cfg):
        return _without(cfg, {"name", "run_dir", "data_root", "dry_run", "logger", "budget_usd"})
    asked = _without(
        cfg["callbacks"].get("benchmarks") or {}, {"progress", "batch_size", "every_n_steps", "name"}
    )
    return {
        **{key: cfg.get(key) for key in ("eval", "judge", "responder")},
        "suite": cfg["benchmark"]["suite"],
        "asked": _without(asked, {"benchmarks", "judge", "asking", "run_dir"}),
        "data": {key: cfg["data"].get(key) for key in sorted(_MEASURING)},
        "precision": cfg["trainer"].get("precision"),
    }


def _part(
    tree: Mapping[str, Any], made: Mapping[str, dict[str, Any]], contents: Contents, *targets: str
) -> dict[str, str]:
    """Hashes of configuration, files and code of one part.

    Args:
        made: by folder, the node that makes its data: paths in there stand for the settings of the making.
        targets: code besides that of each `_target_`.
    """
    files: dict[str, str] = {}
    named = {*targets, *_targets(tree)}

    def place(node: Any) -> Any:
        """The node with what a path leads to in place of the path."""
        if isinstance(node, dict):
            return {key: place(child) for key, child in node.items()}
        if isinstance(node, list):
            return [place(child) for child in node]
        if not isinstance(node, str):
            return node
        for root, making in made.items():
            if Path(node).is_relative_to(root):
                named.update(_targets(making))
                return f"{_digest(_without(making, {'root'}))}/{Path(node).relative_to(root)}"
        if found := _files(node):
            files[node] = _digest([(path.name, contents.of(path)) for path in found])
            return f"<file {len(files)}>"
        return node

    return {
        "config": _digest(place(dict(tree))),
        "files": _digest(list(files.values())),
        "code": code_hash(tuple(sorted(named))),
    }


def _files(text: str) -> list[Path]:
    """What a string names if it is the path of something that exists, or a pattern for files."""
    path = Path(text)
    if "/" not in text and not path.suffix:  # a word, even if a folder has that name
        return []
    try:
        return [path] if path.exists() else sorted(path.parent.glob(path.name)) if "*" in path.name else []
    except (OSError, ValueError):  # too long for a path
        return []


def _targets(node: Any) -> Iterator[str]:
    """Every `_target_` in a tree."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for child in node.values():
            yield from _targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from _targets(child)


def _without(node: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# --- code -----------------------------------------------------------------------------------------------------


@cache
def code_hash(names: tuple[str, ...], root: Path = ROOT) -> str:
    """Of the modules under `root` that define these names, and of all that they import there."""
    waiting = [file for name in names if (file := _module_file(name, root)) is not None]
    seen: dict[Path, str] = {}
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen[file], imported = _read_module(file, root)
            waiting += [found for name in imported if (found := _module_file(name, root)) is not None]
    texts = {folder / "prompts" for folder in {file.parent for file in seen}}
    prompts = [path for folder in sorted(texts) for path in sorted(folder.glob("*.txt"))]
    return _digest(
        [*sorted((file.relative_to(root).as_posix(), code) for file, code in seen.items())]
        + [(path.relative_to(root).as_posix(), file_hash(path)) for path in prompts]
    )


def _module_file(name: str, root: Path) -> Path | None:
    """The file under `root` of the module that is or defines `name`; None elsewhere, and for `_SHOWN_ONLY`."""
    if name.startswith(_SHOWN_ONLY):
        return None
    parts = name.split(".")
    while len(parts) > 1:
        path = root.joinpath(*parts)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
        parts.pop()
    return None


@cache
def _read_module(file: Path, root: Path) -> tuple[str, tuple[str, ...]]:
    """Hash of a module's syntax tree without docstrings, and the names that it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = file.relative_to(root).parent.parts
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            imported += [f"{module}.{alias.name}" for alias in node.names]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [one for one in body if not _is_text(one)]
    return _digest(ast.dump(tree)), tuple(imported)


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a string alone, as docstrings are."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
