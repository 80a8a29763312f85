"""What a table is: `conf/table/<name>.yaml`, read for one size.

A row is a list of overrides of `train.py`, run once for each of its seeds. The file holds what the rows differ in:

    title: Table 4: ...
    question: what the table is to find out, in a sentence
    reference: sparkleschat             # the row that p-values compare with; null for none
    benchmarks: [bison, nlvr2]
    num: 150                            # items of each benchmark; null for all
    seeds: [0, 1, 2]                    # of the training
    columns: null                       # the headline of each benchmark; or keys of metrics.json, or {key: title}
    config: train                       # what the overrides change: conf/<config>.yaml ...
    task: sparkles.launch.launch        # ... and what does the work
    base: {both: [...], nano: [...], 7b: [...]}      # overrides of every row
    rows:
      cc_only: {label: CC only, nano: [...], 7b: [...]}
      minigpt4: {label: MiniGPT-4, both: [experiment=minigpt4], seeds: [0]}

A row without `both` exists at the sizes that it names. `prepare` are commands, by size, that make what a row reads:
`prepare: {nano: [[sparkles.gen, gen=scenes, run_dir=runs/x]]}` is `python -m sparkles.gen gen=scenes run_dir=runs/x`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from sparkles.config import CONFIG_DIR, nearest
from sparkles.types import InputError

Size = Literal["nano", "7b"]

TABLES = CONFIG_DIR / "table"
_SIZES = ("both", *get_args(Size))
_NEEDED = {"title", "question", "benchmarks", "num", "seeds", "rows"}
_OPTIONAL = {"reference", "columns", "config", "task", "base"}
_NAME = re.compile(r"[\w-]+")


class TableError(InputError):
    """A table that does not exist or cannot be read, or a row that it does not have."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    name: str
    label: str
    """As the table shows it."""
    overrides: tuple[str, ...]
    """Of the table's config, those of every row in front; without seed, benchmarks and number of items."""
    seeds: tuple[int, ...]
    prepare: tuple[tuple[str, ...], ...] = ()
    """Commands to run once, before: a module and its arguments each."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table at one size."""

    name: str
    title: str
    question: str
    size: Size
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    benchmarks: tuple[str, ...]
    num: int | None
    """Items of each benchmark; None for all."""
    columns: Mapping[str, str] | None
    """Title (or "" for that of the benchmark) by key of `metrics.json`; None for the headline of each benchmark."""
    reference: str | None
    """Name of the row that others are compared with."""
    paper: Path
    """Published values; the file may not exist."""
    config: str = "train"
    task: str = "sparkles.launch.launch"


def read_table(
    name: str,
    size: str = "nano",
    *,
    rows: Collection[str] = (),
    changes: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> TableSpec:
    """The table `conf/table/<name>.yaml` at `size`.

    Args:
        rows: names of the rows to keep, in the order of the file; all of them if empty.
        changes: what replaces keys of the file: `{"num": 600}`. A row that has its own seeds keeps them.
        overrides: for every row, behind its own.
        folder: where tables lie; `conf/table` by default.

    Raises:
        TableError: no such table, size or row, or a file that says something else than a table.
    """
    folder = folder or TABLES
    names = table_names(folder)
    if name not in names:
        raise TableError(f"no table {name!r}{nearest(name, names)} There are: {', '.join(names)}")
    if size not in get_args(Size):
        raise TableError(f"size={size}; expected {' or '.join(get_args(Size))}")
    path = folder / f"{name}.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TableError(f"{path}: not YAML: {error}") from error
    _check(path, "the table", tree, _NEEDED, _OPTIONAL)
    tree |= changes or {}
    found = {row.name: row for row in _rows(path, tree, size, overrides)}
    if unknown := [row for row in rows if row not in found]:
        raise TableError(
            f"{name} at size {size} has no row {unknown[0]!r}{nearest(unknown[0], found)} "
            f"Its rows: {', '.join(found)}"
        )
    columns = tree.get("columns")
    return TableSpec(
        name=name,
        title=tree["title"],
        question=tree["question"],
        size=cast(Size, size),
        rows=tuple(row for row in found.values() if not rows or row.name in rows),
        seeds=tuple(tree["seeds"]),
        benchmarks=tuple(tree["benchmarks"]),
        num=tree["num"],
        columns=dict.fromkeys(columns, "") if isinstance(columns, list) else columns,
        reference=tree.get("reference"),
        paper=CONFIG_DIR.parent / "experiments" / name / "paper.csv",
        **{key: tree[key] for key in ("config", "task") if key in tree},
    )


def table_names(folder: Path | None = None) -> list[str]:
    """The tables that there are."""
    return sorted(path.stem for path in (folder or TABLES).glob("*.yaml"))


def _rows(path: Path, tree: Mapping[str, Any], size: str, overrides: Sequence[str]) -> Iterator[Row]:
    """The rows that exist at `size`."""
    _check(path, "base", base := tree.get("base", {}), (), _SIZES)
    for name, row in tree["rows"].items():
        where = f"row {name!r}"
        _check(path, where, row, {"label"}, {"seeds", "prepare", *_SIZES})
        _check(path, f"prepare of {where}", prepare := row.get("prepare", {}), (), _SIZES)
        if _NAME.fullmatch(str(name)) is None:
            raise TableError(f"{path}: {where}; expected letters, digits, - and _, since it names a folder")
        if not {"both", size} & row.keys():
            continue
        yield Row(
            name=name,
            label=row["label"],
            overrides=(*_of_size(base, size), *_of_size(row, size), *overrides),
            seeds=tuple(row.get("seeds") or tree["seeds"]),
            prepare=tuple(tuple(map(str, one)) for one in _of_size(prepare, size)),
        )


def _of_size(node: Mapping[str, Any], size: str) -> list[Any]:
    """What `node` says for both sizes, and for this one."""
    return [*node.get("both", []), *node.get(size, [])]


def _check(path: Path, where: str, node: object, needed: Collection[str], optional: Collection[str]) -> None:
    """
    Raises:
        TableError: the node is no mapping, lacks a key, or has one that means nothing.
    """
    if not isinstance(node, dict):
        raise TableError(
            f"{path}: {where} is {node!r:.60}; expected keys such as {', '.join(sorted(needed))}"
        )
    known = {*needed, *optional}
    for key in node:
        if key not in known:
            raise TableError(
                f"{path}: {where} has an unknown key {key!r}{nearest(str(key), known)} "
                f"Expected {', '.join(sorted(known))}"
            )
    if missing := sorted(set(needed) - node.keys()):
        raise TableError(f"{path}: {where} lacks {', '.join(missing)}")
