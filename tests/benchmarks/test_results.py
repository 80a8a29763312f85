"""RESULTS.md: what benchmarks told, by device and script, beside what other devices have told."""

import json
from pathlib import Path
from typing import Any

import _results
import pytest
from _line import processor
from _results import Told, bench, merged, read_lines, run, scripts

from sparkles.types import InputError

PRINTING = """
import sys
from _line import print_line
print("not a line", flush=True)
print_line("speed", "plain", figure=1.0, unit="things/s", threads=2)
print_line("speed", "+ better", figure=2.0, unit="things/s", threads=2)
sys.exit({code})
"""


def line(
    config: str, figure: float, *, what: str = "speed", device: str = "GPU", **told: Any
) -> dict[str, Any]:
    return {
        "what": what,
        "config": config,
        "figure": figure,
        "unit": "things/s",
        "device": device,
        "versions": {"python": "3.12.3", "torch": "2.11.0"},
        "date": "2026-11-21",
        "script": "one.py",
        "command": "python benchmarks/one.py",
        **told,
    }


def told(*lines: dict[str, Any], script: str = "one.py", exit_code: int = 0) -> Told:
    return Told(script=script, lines=lines, exit_code=exit_code)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of benchmarks: `one` tells something, `two` does too and then fails."""
    library = Path(_results.__file__).with_name("_line.py")
    (tmp_path / "_line.py").write_text(library.read_text())
    (tmp_path / "one.py").write_text(PRINTING.format(code=0))
    (tmp_path / "two.py").write_text(PRINTING.format(code=3))
    return tmp_path


# --- the file -------------------------------------------------------------------------------------------------


def test_a_table_has_a_row_for_each_way_with_what_it_gains() -> None:
    text = merged(
        "",
        [told(line("plain", 10, ratio=1.0), line("+ a", 20, ratio=2.0), line("+ b", 30, ratio=3.0))],
    )
    assert (
        "## GPU\n\n### one.py\n\n2026-11-21, python 3.12.3, torch 2.11.0: `python benchmarks/one.py`" in text
    )
    assert text.rstrip().splitlines()[-6:] == [
        "",
        "| | figure | gain | over the last |",
        "|---|---|---|---|",
        "| plain | 10 things/s | 1.0 |  |",
        "| + a | 20 things/s | 2.0 | 2.0 |",
        "| + b | 30 things/s | 3.0 | 1.5 |",
    ]


def test_what_all_rows_share_stands_above_the_table_and_what_differs_in_columns() -> None:
    rows = [
        line("plain", 10, threads=2, loss=0.5, utilisation=0.55, spread_s=[0.1, 0.2], peak_mb=12_000),
        line("other", 11, threads=2, loss=0.6, utilisation=0.61, spread_s=[0.1, 0.3], peak_mb=13_000),
    ]
    text = merged("", [told(*rows)])
    assert "**speed** (threads 2)" in text
    assert "| | figure | utilisation | peak memory, MB | s, least to most | loss |" in text
    assert "| other | 11 things/s | 61.0% | 13,000 | 0.1 to 0.3 | 0.6 |" in text


def test_each_thing_measured_has_a_table_of_its_own_even_if_its_lines_come_scattered() -> None:
    rows = [line("a", 1, what="first"), line("a", 2, what="second"), line("b", 3, what="first")]
    text = merged("", [told(*rows)])
    assert text.count("**first**") == text.count("**second**") == 1
    assert text.index("| b | 3 things/s |") < text.index("**second**")


def test_a_figure_of_another_unit_is_no_gain() -> None:
    text = merged("", [told(line("plain", 10), line("+ copy", 20, unit="GB/s"))])
    assert "over the last |" not in text.split("## GPU")[1]


def test_what_no_row_tells_has_no_column() -> None:
    text = merged("", [told(line("plain", 1, peak_mb=None), line("other", 2, peak_mb=None))])
    assert "| | figure |" in text


def test_a_bar_in_a_name_does_not_break_the_table() -> None:
    assert "| a &#124; b | 1 things/s |" in merged("", [told(line("a | b", 1))])


def test_results_of_other_devices_and_scripts_stay() -> None:
    first = merged(
        "",
        [
            told(line("plain", 1, device="CPU")),
            told(line("plain", 2), script="one.py"),
            told(line("plain", 3), script="floor.py"),
        ],
    )
    again = merged(first, [told(line("plain", 4))])
    assert [figure for figure in "1234" if f"| {figure} things/s |" in again] == ["1", "3", "4"]
    assert again.index("## CPU") < again.index("## GPU") < again.index("### floor.py", again.index("## GPU"))
    assert merged(again, []) == again


def test_the_floor_comes_first() -> None:
    text = merged("", [told(line("plain", 1), script=name) for name in ("evaluation.py", "floor.py")])
    assert text.index("### floor.py") < text.index("### evaluation.py")


def test_a_failure_is_told_with_what_was_measured_before_it() -> None:
    text = merged("", [told(line("plain", 1), exit_code=3)])
    assert "**Failed** with exit code 3 on " in text
    assert "| plain | 1 things/s |" in text
    assert f"## {processor()}\n" in merged("", [told(exit_code=1)])


# --- the runs -------------------------------------------------------------------------------------------------


def test_only_lines_of_benchmarks_are_read() -> None:
    text = f'progress\n{json.dumps(line("plain", 1))}\n{{"what": "else"}}\n[1]\n'
    assert [one["config"] for one in read_lines(text)] == ["plain"]


def test_a_script_tells_its_command_versions_and_device(folder: Path) -> None:
    outcome = run(folder / "one.py")
    assert (outcome.script, outcome.exit_code, len(outcome.lines)) == ("one.py", 0, 2)
    assert outcome.lines[0]["command"] == "python benchmarks/one.py"
    assert outcome.lines[0]["device"] == processor()
    assert {"python", "torch"} <= outcome.lines[0]["versions"].keys()


def test_a_script_that_fails_is_reported_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scripts(folder=folder)
    monkeypatch.setattr(_results, "scripts", lambda names: sorted(found, reverse=True))
    out = folder / "RESULTS.md"
    with pytest.raises(InputError, match=r"failed: two\.py; what the others told is in .*RESULTS\.md"):
        bench(out=str(out))
    text = out.read_text()
    assert text.count("| + better | 2.0 things/s | 2.0 |") == 2
    assert text.count("**Failed** with exit code 3") == 1


def test_lines_of_another_machine_are_filed_under_its_device(tmp_path: Path) -> None:
    lines, out = tmp_path / "lines", tmp_path / "RESULTS.md"
    lines.write_text(f"{json.dumps(line('plain', 7, device='NVIDIA H200'))}\n")
    bench(lines=str(lines), out=str(out))
    assert "## NVIDIA H200\n\n### one.py" in out.read_text()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"script=training: no such benchmark; expected floor, "):
        scripts(["training"])
    with pytest.raises(InputError, match=r"lines=.*absent: no such file"):
        bench(lines=str(tmp_path / "absent"))
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match=r"lines=.*empty: no line of a benchmark in it"):
        bench(lines=str(tmp_path / "empty"))


def test_all_benchmarks_are_found_and_no_library_of_theirs() -> None:
    names = [path.stem for path in scripts()]
    assert names[0] == "floor"
    assert {"evaluation", "full_size", "scale", "serving", "training_step"} <= set(names)
    assert not any(name.startswith("_") for name in names)
