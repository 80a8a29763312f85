import csv
import json
from pathlib import Path

from rich.console import Console

from sparkles.eval.rendering import rich_table
from sparkles.tables.rendering import comparison_of, difference_text, write_files
from sparkles.tables.results import read_results
from tests.tables.answered import answered

RIGHT, HALF = [True] * 90 + [False] * 10, [True, False] * 50
PAPER = ("ref,Ref,bison,56.7,150,Table 9", "b,B,bison,46.0,150,Table 9", "c,C,bison,,,not in the paper")
ROWS = {
    "ref": [{"bison": RIGHT}, {"bison": RIGHT}],
    "b": [{"bison": HALF}, {"bison": HALF}],
    "c": [{"bison": RIGHT}, "failed"],
}


def shown(tmp_path: Path, **changes: object) -> str:
    console = Console(width=240)
    with console.capture() as capture:
        console.print(
            rich_table(comparison_of(read_results(*answered(tmp_path, ROWS, paper=PAPER, **changes))))
        )
    return " ".join(capture.get().split())


def test_nano_tells_value_counts_finding_and_corrected_p(tmp_path: Path) -> None:
    text = shown(tmp_path)
    for part in (
        "Table 9: <b>rows</b>",
        "90.0 [",
        "n=100, 2 seeds",
        "paper 56.7*",
        "paper 46.0*, compatible†",
    ):
        assert part in text
    assert "<0.001" in text
    assert "seed 1 failed" in text
    assert "finds of a row against Row ref" in text
    assert "not comparable with ours" in text
    assert "within the noise of its items" in text
    assert "over items and seeds; of a row with one seed, over items alone" in text


def test_full_size_is_held_against_the_values(tmp_path: Path) -> None:
    text = shown(tmp_path, size="7b")
    assert "paper 56.7, different" in text
    assert "paper 46.0, " in text
    assert "of one seed like ours" in text
    assert "*" not in text


def test_a_table_of_plain_numbers_has_no_notes_on_intervals(tmp_path: Path) -> None:
    spec, runs = answered(tmp_path, {"a": [{"bison": HALF}]}, columns={"bison/num": "items"}, reference=None)
    comparison = comparison_of(read_results(spec, runs))
    assert comparison.notes == ()
    assert comparison.rows[0][1][0].value == "100"


def test_differences_are_told_with_their_sign(tmp_path: Path) -> None:
    results = read_results(*answered(tmp_path, ROWS))
    assert difference_text(results.rows[0][0]) == ""
    assert difference_text(results.rows[1][0]).startswith("−40.0 [−")


def test_files_have_every_cell(tmp_path: Path) -> None:
    results = read_results(*answered(tmp_path, ROWS, paper=PAPER))
    out = tmp_path / "out"
    assert sorted(path.name for path in write_files(results, out)) == sorted(
        path.name for path in out.iterdir()
    )
    with (out / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines] == ["Row ref", "Row b", "Row c"]
    assert [line["problem"] for line in lines] == ["", "", "seed 1 failed"]
    assert float(lines[1]["difference"]) == -0.4
    assert lines[1]["paper"] == "46.0"
    found = json.loads((out / "table.json").read_text())
    assert (found["table"], found["size"], found["complete"]) == ("table9", "nano", False)
    assert found["cells"][0]["value"] == 0.9
    assert [run["state"] for run in found["runs"]].count("failed") == 1
    assert r"Row b" in (out / "table.tex").read_text()
    assert "| Row b |" in (out / "table.md").read_text()
