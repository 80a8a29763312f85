import csv
import io

import pytest
from rich.console import Console

from sparkles.eval.rendering import Cell, Comparison, csv_text, latex, markdown, rich_table

GOOD = Cell(
    value="86.0",
    interval="[83.0, 88.6]",
    facts=("n=600", "3 seeds"),
    paper="56.7*",
    verdict="compatible",
    p_value="<0.001",
    best=True,
    raw={"value": 0.86, "p": 0.0001},
)
PARTIAL = Cell(value="51.7", interval="[47.7, 55.7]", problem="seed 1 failed", raw={"value": 0.517})
MISSING = Cell(problem="failed", paper="46.0*", raw={"value": None})


def comparison(*cells: Cell, columns: tuple[str, ...] = ("BISON, accuracy, %",)) -> Comparison:
    rows = tuple((f"row_{at}*", (cell,) * len(columns)) for at, cell in enumerate(cells))
    return Comparison(columns=columns, rows=rows, title="A table", notes=("* another scale",))


def shown(table: Comparison) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(rich_table(table))
    return capture.get()


def test_a_terminal_shows_everything_that_is_known() -> None:
    text = shown(comparison(GOOD, PARTIAL, MISSING))
    for part in ("A table", "86.0 [83.0, 88.6]", "n=600, 3 seeds", "paper 56.7*, compatible", "<0.001"):
        assert part in text
    assert "seed 1 failed" in text
    assert "failed" in text
    assert "* another scale" in text


def test_markdown_marks_the_best_and_escapes_the_rest() -> None:
    lines = markdown(comparison(GOOD, PARTIAL, MISSING)).splitlines()
    assert lines[0] == "| run | BISON, accuracy, % | p |"
    assert lines[2] == (
        r"| row\_0\* | **86.0** [83.0, 88.6] (n=600, 3 seeds) paper 56.7\*, compatible | \<0.001 |"
    )
    assert lines[3] == r"| row\_1\* | 51.7 [47.7, 55.7] seed 1 failed |  |"
    assert lines[4] == r"| row\_2\* | failed paper 46.0\* |  |"
    assert lines[-1] == r"\* another scale"


def test_latex_is_escaped_and_has_as_many_cells_in_each_row() -> None:
    text = latex(comparison(GOOD, PARTIAL, MISSING))
    assert (
        r"row\_0* & \textbf{86.0} {\scriptsize {[83.0, 88.6]} n=600, 3 seeds} & 56.7* compatible & $<$0.001 \\"
        in text
    )
    assert r"\multicolumn{3}{c}{BISON, accuracy, \%}" in text
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert {line.count("&") for line in body} == {3}
    assert text.count("{") == text.count("}")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text


def test_csv_has_raw_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(comparison(GOOD, MISSING)))))
    assert lines[0] == {
        "row": "row_0*",
        "column": "BISON, accuracy, %",
        "value": "0.86",
        "p": "0.0001",
        "problem": "",
    }
    assert (lines[1]["value"], lines[1]["problem"]) == ("", "failed")


@pytest.mark.parametrize("render", [markdown, shown, latex])
def test_many_columns_become_rows(render: object) -> None:
    wide = comparison(GOOD, columns=("one", "two", "three", "four", "five"))
    assert wide.upright.columns == ("row_0*",)
    assert [label for label, _ in wide.upright.rows] == ["one", "two", "three", "four", "five"]
    assert callable(render)
    assert all(name in render(wide) for name in wide.columns)


def test_brackets_are_not_markup() -> None:
    table = Comparison(columns=("[bold]c[/y]",), rows=(("[bold]x[/y]", (GOOD,)),), title="[red]")
    for part in ("[bold]c[/y]", "[bold]x[/y]", "[red]"):
        assert part in shown(table)
