"""The runs of a table are found by what they are, whatever table asked for them first."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.tables import runs
from sparkles.tables.runs import CHECKPOINT, Store, Wanted, wanted_runs, write_record
from sparkles.tables.spec import TableError, TableSpec
from tests.tables.conftest import find_runs

MakeSpec = Callable[..., TableSpec]


@pytest.fixture(autouse=True)
def quick(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CONFIG_DIR", small_config)


def finish(store: Store, wanted: Wanted, state: str = "finished") -> Path:
    """Leave what a run leaves at its end."""
    [run] = store.place([wanted])
    (run.run_dir / CHECKPOINT).parent.mkdir(parents=True)
    (run.run_dir / CHECKPOINT).touch()
    (run.run_dir / "metrics.json").write_text("{}")
    write_record(run.run_dir, wanted.identity, state=state, seconds=2.5)
    return run.run_dir


def all_wanted(spec: TableSpec, store: Store) -> list[Wanted]:
    return wanted_runs(spec, store.contents)


def test_a_run_lies_in_a_folder_that_names_row_seed_and_identity(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec({"cc_only": []}, seeds=(3,))
    [run] = find_runs(spec, tmp_path)
    [wanted] = all_wanted(spec, Store(tmp_path))
    assert run.run_dir == tmp_path / "rows" / f"cc_only_seed3_{wanted.identity.results[:8]}"
    assert (run.state, run.log, run.seconds) == ("missing", None, None)


def test_two_tables_share_the_run_of_a_row(make_spec: MakeSpec, tmp_path: Path) -> None:
    first, second = make_spec({"both": []}), make_spec({"sparkleschat": []}, name="other")
    store = Store(tmp_path)
    run_dir = finish(store, *all_wanted(first, store))
    [run] = find_runs(second, tmp_path)
    assert (run.run_dir, run.state, run.seconds) == (run_dir, "finished", 2.5)
    [changed] = find_runs(make_spec({"both": ["data.steps=3"]}), tmp_path)
    assert changed.state == "missing"


def test_a_run_whose_results_are_gone_is_missing(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec, store = make_spec({"row": []}), Store(tmp_path)
    run_dir = finish(store, *all_wanted(spec, store))
    (run_dir / "metrics.json").unlink()
    assert [run.state for run in find_runs(spec, tmp_path)] == ["missing"]


def test_a_failed_run_is_shown_as_that(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec, store = make_spec({"row": []}), Store(tmp_path)
    run_dir = finish(store, *all_wanted(spec, store), state="failed")
    (run_dir / "train.log").touch()
    assert [(run.state, run.log) for run in find_runs(spec, tmp_path)] == [("failed", run_dir / "train.log")]


def test_weights_are_found_for_other_measurements(make_spec: MakeSpec, tmp_path: Path) -> None:
    store = Store(tmp_path)
    [small] = all_wanted(make_spec({"row": []}), store)
    [large] = all_wanted(make_spec({"row": []}, num=600), store)
    assert store.weights_of([large]) == {}
    run_dir = finish(store, small)
    assert store.weights_of([large]) == {small.identity.weights: run_dir}
    (run_dir / CHECKPOINT).unlink()
    assert store.weights_of([large]) == {}


def test_a_misspelt_override_is_told_with_its_row_and_what_is_near(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    message = r"mine, row 'row': unknown override 'data.stepps'.* did you mean data\.steps"
    with pytest.raises(TableError, match=message):
        find_runs(make_spec({"row": ["data.stepps=3"]}), tmp_path)
    with pytest.raises(TableError, match=r"row 'row': .*judge/lmm"):
        find_runs(make_spec({"row": ["judge=lmm"]}), tmp_path)


def test_keys_without_a_value_are_noted(make_spec: MakeSpec, tmp_path: Path) -> None:
    [wanted] = all_wanted(make_spec({"row": ["judge=llm"]}), Store(tmp_path))
    assert wanted.missing == ("judge.model",)


def test_the_record_says_what_a_run_depends_on(make_spec: MakeSpec, tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_dir = finish(store, *all_wanted(make_spec({"row": []}), store))
    identity = json.loads((run_dir / "row.json").read_text())["identity"]
    assert {part: set(hashes) for part, hashes in identity.items()} == {
        "trained": {"config", "files", "code"},
        "measured": {"config", "files", "code"},
    }
