import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from sparkles.eval.rendering import rich_table
from sparkles.eval.table import (
    PAPER_COLUMNS,
    Headline,
    RunFolderError,
    compare,
    main,
    read_paper,
)

REPOSITORY = Path(__file__).parents[2]
BISON = {"bison/accuracy": 0.8825, "bison/accuracy_low": 0.85, "bison/accuracy_high": 0.91, "bison/num": 600}
RATED = {"sparkles_eval/overall": 7.714, "sparkles_eval/overall_low": 7.5, "sparkles_eval/overall_high": 7.9}


def write_run(run_dir: Path, metrics: dict[str, object] | None) -> Path:
    run_dir.mkdir()
    if metrics is not None:
        (run_dir / "metrics.json").write_text(json.dumps(metrics))
    return run_dir


def write_paper(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([",".join(PAPER_COLUMNS), *lines]) + "\n")
    return path


def shown(runs: dict[str, Path], paper: Path | None = None) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(rich_table(compare(runs, paper)))
    return capture.get()


def test_cell_shows_value_interval_and_denominator(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", BISON | {"bison/unscored": 2})
    text = shown({"mine": run})
    assert "88.2 [85.0, 91.0]" in text
    assert "n=600, 2 unscored" in text


def test_ratings_are_not_shown_as_percentages(tmp_path: Path) -> None:
    assert "7.71 [7.50, 7.90]" in shown({"a": write_run(tmp_path / "a", RATED)})


def test_paper_value_stands_in_the_cell_marked_as_another_scale(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", BISON)
    paper = write_paper(tmp_path / "paper.csv", "mine,My Model,bison,56.7,150,Table 3")
    text = shown({"mine": run}, paper)
    assert "My Model" in text
    assert "paper 56.7*" in text
    assert "* paper, other scale" in text


def test_unpublished_value_stays_empty(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine", BISON)
    paper = write_paper(tmp_path / "paper.csv", "mine,My Model,bison,,,not in the paper")
    assert "paper" not in shown({"mine": run}, paper)


def test_absent_benchmarks_and_unfinished_runs_are_shown_as_missing(tmp_path: Path) -> None:
    runs = {"a": write_run(tmp_path / "a", BISON | RATED), "b": write_run(tmp_path / "b", BISON)}
    runs["unfinished"] = write_run(tmp_path / "c", None)
    comparison = compare(runs)
    assert comparison.columns == ("BISON, accuracy, %", "SparklesEval, 1 to 10")
    assert dict(comparison.rows)["b"][1].problem == "missing"
    assert shown(runs).count("missing") == 3


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_mean_over_nothing_is_said_to_be_unscored(value: float | None) -> None:
    headline = Headline.read({"sparkles_eval/overall": value, "sparkles_eval/num": 5}, "sparkles_eval")
    assert headline is not None
    assert (headline.shown, headline.interval, headline.counts) == ("none scored", "", "n=5")


def test_kinds_are_not_taken_for_benchmarks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", BISON | {"bison/kind/place/accuracy": 0.5})
    assert compare({"a": run}).columns == ("BISON, accuracy, %",)


def test_brackets_in_a_run_name_are_not_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", BISON)
    assert "[bold]x[/y]" in shown({"[bold]x[/y]": run})


def test_command_names_rows_by_folder_or_by_argument(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_run(tmp_path / "first", BISON), write_run(tmp_path / "second", BISON)
    main([str(first), f"renamed={second}", "--markdown"])
    assert [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:4]] == [
        "first",
        "renamed",
    ]


def test_command_refuses_two_rows_of_one_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", BISON)
    with pytest.raises(SystemExit, match=r"two runs named 'a'.*NAME="):
        main([str(run), str(run)])


def test_a_run_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run folder at .*typo; expected the run_dir"):
        compare({"typo": tmp_path / "typo"})


def test_runs_without_any_metric_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no benchmark in the metrics.json of .*let a run finish"):
        compare({"a": write_run(tmp_path / "a", None)})


def test_paper_with_other_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    path.write_text("row,value\nmine,1\n")
    with pytest.raises(RunFolderError, match="got the columns row,value, expected row,label,benchmark"):
        read_paper(path)


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("--markdown", "| a | 88.2 [85.0, 91.0] (n=600) | 7.71 [7.50, 7.90] |"),
        (
            "--latex",
            r"a & 88.2 {\scriptsize {[85.0, 91.0]} n=600} &  & 7.71 {\scriptsize {[7.50, 7.90]}} &  \\",
        ),
        ("--csv", '"BISON, accuracy, %",0.8825,0.85,0.91,600,0,,'),
    ],
)
def test_command_prints_other_styles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], style: str, expected: str
) -> None:
    main([str(write_run(tmp_path / "a", BISON | RATED)), style])
    assert expected in capsys.readouterr().out


def test_paper_with_a_number_of_items_that_is_none_is_refused(tmp_path: Path) -> None:
    paper = write_paper(tmp_path / "paper.csv", "mine,My Model,bison,56.7,many,Table 3")
    with pytest.raises(RunFolderError, match=r"line 2: num=many; expected a number of items, or nothing"):
        read_paper(paper)


@pytest.mark.parametrize(
    "path", sorted(REPOSITORY.glob("experiments/*/paper.csv")), ids=lambda p: p.parent.name
)
def test_shipped_published_values_are_numbers_with_a_source(path: Path) -> None:
    assert read_paper(path)
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            assert line["source"]
            assert not line["value"] or float(line["value"]) >= 0
