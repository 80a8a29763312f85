"""The command: its plan, its mistakes, its exit code."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.tables import __main__ as command
from sparkles.tables import runs
from sparkles.tables import spec as spec_module
from sparkles.tables.dashboard import dashboard
from sparkles.types import InputError
from tests.tables import stub

Run = Callable[..., str]


@pytest.fixture
def run(
    tmp_path: Path, small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Call the command on the table `mine`; what it printed, and in brackets its exit code if that is not 0."""
    (tmp_path / "mine.yaml").write_text(
        f"""
title: Mine
question: Which is better?
benchmarks: [bison]
num: 150
seeds: [0, 1]
task: {stub.__name__}.work
rows:
  first: {{label: The first, both: []}}
  second: {{label: The second, both: [data.steps=2], seeds: [0]}}
"""
    )
    monkeypatch.setattr(spec_module, "TABLES", tmp_path)
    monkeypatch.setattr(runs, "CONFIG_DIR", small_config)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> str:
        places = [f"store={tmp_path}/store", f"out={tmp_path}/out", "launcher=basic"]
        monkeypatch.setattr(sys, "argv", ["tables", *arguments, *places])
        code = ""
        try:
            command.main()
        except SystemExit as exit_:
            code = f"[{exit_.code}]"
        return "".join(capsys.readouterr()) + code

    return call


def test_a_dry_run_tells_what_would_run_and_runs_nothing(run: Run, tmp_path: Path) -> None:
    said = run("table=mine", "--dry-run", "data.batch_size=3")
    assert "Mine (nano)" in said
    assert said.count("train, measure") == 3
    assert "second: benchmark=[bison] benchmark.num=150 data.steps=2 data.batch_size=3 seed=0" in said
    assert "3 runs to do, 1 at once by basic; nothing was run" in said
    assert not (tmp_path / "store/rows").exists()


def test_rows_seeds_and_items_can_be_chosen(run: Run) -> None:
    said = run("table=mine", "rows=[first]", "seeds=[4,5,6]", "num=600", "dry_run=true")
    assert "3 runs to do" in said
    assert "benchmark.num=600" in said
    assert "benchmark.num=null" in run("table=mine", "num=all", "dry_run=true")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table=mien"], "no table 'mien'; did you mean mine? There are: mine"),
        (
            ["table=mine", "rows=[seconde]"],
            "has no row 'seconde'; did you mean second? Its rows: first, second",
        ),
        (["table=mine", "size=8b"], "size=8b; expected nano or 7b"),
        (["table=mine", "num=many"], "num=many; expected int"),
        (["table=mine", "data.stepps=3"], "unknown override 'data.stepps'"),
        (["table=mine", "sedes=[0]"], "'sedes' is no key of this command; did you mean seeds"),
        (["tabel=mine"], "missing table; give table=..."),
        (["sweep"], "unknown command 'sweep'"),
    ],
)
def test_a_mistake_is_told_with_what_is_near(run: Run, arguments: list[str], message: str) -> None:
    said = run(*arguments, "dry_run=true") if "=" in arguments[0] else run(*arguments)
    assert message in said
    assert "Traceback" not in said


def test_help_explains_the_command(run: Run) -> None:
    said = run("--help")
    assert "python -m sparkles.tables table=table4 --dry-run" in said
    assert "exit code is 1 where a cell is missing" in said


def test_ctrl_c_ends_with_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_missing", interrupted)
    assert "the same command goes on from there" in run("table=mine")


def test_the_panels_of_a_dashboard_are_those_of_the_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dashboard("table4", dry_run=True)
    results, training = json.loads(capsys.readouterr().out)["sections"]
    assert [panel["metric"] for panel in results["panels"]] == [
        *("bison/accuracy", "nlvr2/accuracy", "sparkles_eval/overall")
    ]
    assert {"kind": "curves", "metric": "val/loss"} in training["panels"]


def test_a_dashboard_needs_an_owner() -> None:
    with pytest.raises(InputError, match="set entity=NAME, or dry_run=true"):
        dashboard("table4")
