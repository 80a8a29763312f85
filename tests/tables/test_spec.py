"""A table is a file: what it says at each size, and what is wrong with it."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from sparkles.tables.spec import Size, TableError, read_table, table_names

TABLE: dict[str, Any] = {
    "title": "A table",
    "question": "Which is better?",
    "reference": "second",
    "benchmarks": ["bison"],
    "num": 150,
    "seeds": [0, 1],
    "base": {"both": ["a=1"], "7b": ["b=2"]},
    "rows": {
        "first": {"label": "First", "both": ["c=3"], "nano": ["d=4"], "7b": ["e=5"], "seeds": [0]},
        "second": {"label": "Second", "nano": []},
        "large": {"label": "Large", "7b": [], "prepare": {"7b": [["sparkles.gen", "seed=1"]]}},
    },
}


def written(folder: Path, **changes: Any) -> Path:
    """A folder with one table, `mine`."""
    (folder / "mine.yaml").write_text(yaml.safe_dump({**TABLE, **changes}))
    return folder


def test_a_row_exists_where_it_says_something(tmp_path: Path) -> None:
    written(tmp_path)
    nano, large = read_table("mine", "nano", folder=tmp_path), read_table("mine", "7b", folder=tmp_path)
    assert {row.name: row.overrides for row in nano.rows} == {
        "first": ("a=1", "c=3", "d=4"),
        "second": ("a=1",),
    }
    assert {row.name: row.overrides for row in large.rows} == {
        "first": ("a=1", "b=2", "c=3", "e=5"),
        "large": ("a=1", "b=2"),
    }
    assert [row.prepare for row in large.rows] == [(), (("sparkles.gen", "seed=1"),)]


def test_changes_replace_what_the_file_says_but_for_a_rows_own_seeds(tmp_path: Path) -> None:
    changes = {"num": None, "seeds": [7, 8], "benchmarks": ["nlvr2"]}
    spec = read_table("mine", folder=written(tmp_path), changes=changes, overrides=["f=6"])
    assert (spec.num, spec.seeds, spec.benchmarks) == (None, (7, 8), ("nlvr2",))
    assert [row.seeds for row in spec.rows] == [(0,), (7, 8)]
    assert [row.overrides[-1] for row in spec.rows] == ["f=6", "f=6"]


def test_columns_may_have_titles(tmp_path: Path) -> None:
    assert read_table("mine", folder=written(tmp_path)).columns is None
    assert read_table("mine", folder=written(tmp_path, columns=["a/b"])).columns == {"a/b": ""}
    assert read_table("mine", folder=written(tmp_path, columns={"a/b": "B"})).columns == {"a/b": "B"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"name": "mien"}, "no table 'mien'; did you mean mine? There are: mine"),
        ({"size": "8b"}, "size=8b; expected nano or 7b"),
        (
            {"rows": ["frist"]},
            "mine at size nano has no row 'frist'; did you mean first? Its rows: first, second",
        ),
        ({"rows": ["large"]}, "at size nano has no row 'large'"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(
    tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(TableError, match=re.escape(message)):
        read_table(**{"name": "mine", "folder": written(tmp_path), **asked})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"benchmark": ["bison"]}, "the table has an unknown key 'benchmark'; did you mean benchmarks"),
        ({"rows": {"first": {"both": []}}}, "row 'first' lacks label"),
        (
            {"rows": {"first": {"label": "x", "nanoo": []}}},
            "row 'first' has an unknown key 'nanoo'; did you mean nano",
        ),
        ({"rows": {"a/b": {"label": "x", "both": []}}}, "row 'a/b'; expected letters, digits"),
        ({"rows": {"first": "x"}}, "row 'first' is 'x'; expected keys such as label"),
        ({"base": {"13b": []}}, "base has an unknown key '13b'"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_table("mine", folder=written(tmp_path, **changes))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("rows: [")
    with pytest.raises(TableError, match=r"mine\.yaml: not YAML"):
        read_table("mine", folder=tmp_path)


@pytest.mark.parametrize("size", get_args(Size))
@pytest.mark.parametrize("name", table_names())
def test_each_shipped_table_has_rows_at_both_sizes_and_compares_with_one_of_them(
    name: str, size: str
) -> None:
    spec = read_table(name, size)
    assert spec.rows
    if size == "nano":
        assert spec.reference in {None, *(row.name for row in spec.rows)}
