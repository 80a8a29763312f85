"""The tables that ship: their files are complete, and their rows run."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

import train
from sparkles.config import CONFIG_DIR, command
from sparkles.eval.__main__ import main as evaluate
from sparkles.eval.table import PAPER_COLUMNS, read_paper
from sparkles.gen.__main__ import main as generate
from sparkles.tables.scores import columns_of
from sparkles.tables.spec import Row, Size, TableSpec, read_table, table_names
from sparkles.tables.statistics import count

EXPERIMENTS = CONFIG_DIR.parent / "experiments"
MAINS: dict[str, Callable[[], None]] = {
    "train": train.main,
    "eval": evaluate,
    "statistics": command("statistics")(count),
    "sparkles.gen": generate,
}
"""By the config of a table, or the module of a command that prepares."""
REPRESENTATIVES = {
    ("table2", "eval"),  # data are counted
    ("table5", "minigpt4_blind"),  # answers are judged
    ("turns", "four"),  # data are generated, and recall is measured
}
"""A row of each shape. Those of tables 3 and 4 are trained and measured as tests/test_train.py does."""


def sizes_of(table: str) -> Iterator[TableSpec]:
    return (read_table(table, size) for size in get_args(Size))


def nano_rows() -> Iterator[object]:
    for table in table_names():
        for row in read_table(table).rows:
            slow = () if (table, row.name) in REPRESENTATIVES else pytest.mark.slow
            yield pytest.param(table, row.name, marks=slow, id=f"{table}-{row.name}")


@pytest.mark.parametrize("table", table_names())
def test_each_table_says_what_it_claims_costs_and_how_to_read_it(table: str) -> None:
    text = (EXPERIMENTS / table / "README.md").read_text(encoding="utf-8")
    assert "**Claim**" in text or "**Question**" in text
    assert f"table={table}" in text
    assert not [
        word for word in ("**Command**", "**Cost**", "**Caveats**", "**Reading it**") if word not in text
    ]


@pytest.mark.parametrize("table", table_names())
def test_published_values_are_of_rows_and_columns_of_the_table_and_name_their_source(table: str) -> None:
    paper = read_paper(EXPERIMENTS / table / "paper.csv")
    labels = {row.name: row.label for spec in sizes_of(table) for row in spec.rows}
    columns = {column.name for spec in sizes_of(table) for column in columns_of(spec, set())}
    assert {row for row, _ in paper} == labels.keys()
    assert {column for _, column in paper} <= columns
    assert all(value.source for value in paper.values())
    assert {row: value.label for (row, _), value in paper.items()} == labels
    assert PAPER_COLUMNS[0] == "row"


@pytest.mark.parametrize("table", table_names())
def test_the_reference_is_a_row_at_both_sizes(table: str) -> None:
    for spec in sizes_of(table):
        assert spec.reference is None or spec.reference in {row.name for row in spec.rows}


@pytest.mark.parametrize(("table", "name"), list(nano_rows()))
def test_a_row_runs_on_few_pictures(
    table: str,
    name: str,
    tiny_run: list[str],
    tiny_world: Path,
    run_main: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = read_table(table, rows=[name])
    (row,) = spec.rows
    small = [*tiny_run, f"data_root={tiny_world}"]
    for module, *overrides in row.prepare:
        few = small if module == "train" else ["gen.num_dialogues=4", "gen.recipe.candidates.images.num=16"]
        run_main(MAINS[module], *overrides, *few)
    run_main(MAINS[spec.config], *overrides_of(spec, row), *(small if spec.benchmarks else small[-1:]))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    wanted = {kind_of(column.key) for column in columns_of(spec, set(metrics))}
    assert wanted <= {kind_of(key) for key in metrics}


def kind_of(key: str) -> str:
    """A metric's key without its number of images or turns, of which few items do not have all."""
    return re.sub(r"/\d+/", "/N/", key)


def overrides_of(spec: TableSpec, row: Row) -> list[str]:
    chosen = [f"benchmark=[{','.join(spec.benchmarks)}]"] if spec.benchmarks else []
    if "recall" in spec.benchmarks:
        chosen.append("benchmark.suite.recall.prepare.num=21")
    return [*chosen, *row.overrides, f"seed={row.seeds[0]}", "run_dir=run"]
