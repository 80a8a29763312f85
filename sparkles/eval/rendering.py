"""How results side by side look: on a terminal, in Markdown, in LaTeX, and as raw numbers in CSV.

Knows nothing of where numbers come from: a cell holds text that is ready to be shown, and beside it what it is made of.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from rich.table import Table
from rich.text import Text

MOST_COLUMNS = 4

Raw = Mapping[str, float | str | bool | None]

_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"$\dagger$",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is known of one row in one column; text, but for `raw`."""

    value: str = ""
    interval: str = ""
    facts: tuple[str, ...] = ()
    """The denominator and the failures."""
    paper: str = ""
    """What was published, as it was published."""
    verdict: str = ""
    """How the value stands to what was published."""
    p_value: str = ""
    """Of the difference to the row that all are compared with."""
    best: bool = False
    """Distinguishable from the second best of its column."""
    problem: str = ""
    """Why the value is missing or incomplete."""
    raw: Raw = field(default_factory=dict)
    """By the name of a column in the CSV."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows side by side."""

    columns: tuple[str, ...]
    """Headings; what stands behind the first comma is the unit."""
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """Label and cells."""
    corner: str = "run"
    """What the rows are."""
    title: str = ""
    notes: tuple[str, ...] = ()
    """What the marks and numbers mean."""

    @property
    def tested(self) -> tuple[bool, ...]:
        """Of each column, whether it has p-values."""
        return tuple(any(cells[at].p_value for _, cells in self.rows) for at in range(len(self.columns)))

    @property
    def upright(self) -> "Comparison":
        """With rows and columns exchanged where there are more columns than stand beside each other on a page."""
        if len(self.columns) <= MOST_COLUMNS:
            return self
        turned = zip(*(cells for _, cells in self.rows), strict=True)
        return replace(
            self,
            columns=tuple(label for label, _ in self.rows),
            rows=tuple(zip(self.columns, turned, strict=True)),
            corner="",
        )


def rich_table(comparison: Comparison) -> Table:
    """For a terminal. Text and not markup, because intervals and names may hold brackets."""
    comparison = comparison.upright
    table = Table(
        title=Text(comparison.title) if comparison.title else None,
        caption=Text("\n".join(comparison.notes)),
        title_justify="left",
        caption_justify="left",
        show_lines=True,
    )
    table.add_column(comparison.corner, style="bold", overflow="fold")
    for heading, tested in zip(comparison.columns, comparison.tested, strict=True):
        table.add_column(Text(heading.replace(", ", "\n", 1)))
        if tested:
            table.add_column("p", no_wrap=True)
    for label, cells in comparison.rows:
        shown = (
            (_rich_cell(cell), *([Text(cell.p_value, style="dim")] if tested else []))
            for cell, tested in zip(cells, comparison.tested, strict=True)
        )
        table.add_row(Text(label), *(text for texts in shown for text in texts))
    return table


def markdown(comparison: Comparison) -> str:
    """A table with its notes below; the best of a column is bold."""
    comparison = comparison.upright
    headings = [comparison.corner]
    for heading, tested in zip(comparison.columns, comparison.tested, strict=True):
        headings += [_markdown_text(heading), *(["p"] if tested else [])]
    lines = [headings, ["---"] * len(headings)]
    for label, cells in comparison.rows:
        line = [_markdown_text(label)]
        for cell, tested in zip(cells, comparison.tested, strict=True):
            line += [_markdown_cell(cell), *([_markdown_text(cell.p_value)] if tested else [])]
        lines.append(line)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([table, *map(_markdown_text, comparison.notes)])


def latex(comparison: Comparison) -> str:
    """A `tabular` in a `table` whose caption is title and notes; needs the package booktabs."""
    comparison = comparison.upright
    headings, groups, rules, at = [""], [""], [], 2
    for heading, tested in zip(comparison.columns, comparison.tested, strict=True):
        parts = ["ours", "paper", *(["$p$"] if tested else [])]
        title = _latex_text(heading)
        groups.append(rf"\multicolumn{{{len(parts)}}}{{c}}{{{title}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(parts) - 1}}}")
        headings += parts
        at += len(parts)
    body = []
    for label, cells in comparison.rows:
        line = [_latex_text(label)]
        for cell, tested in zip(cells, comparison.tested, strict=True):
            line += [_latex_cell(cell), _latex_text(" ".join(filter(None, [cell.paper, cell.verdict])))]
            line += [_latex_text(cell.p_value)] if tested else []
        body.append(line)
    caption = " ".join([f"{comparison.title}." if comparison.title else "", *comparison.notes]).strip()
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'l' * (len(headings) - 1)}}}",
            r"\toprule",
            " & ".join(groups) + r" \\",
            " ".join(rules),
            " & ".join(headings) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_latex_text(caption)}}}",
            r"\end{table}",
            "",
        ]
    )


def records(comparison: Comparison) -> Iterator[dict[str, float | str | bool | None]]:
    """The raw values of each cell, with its row and column."""
    for label, cells in comparison.rows:
        for heading, cell in zip(comparison.columns, cells, strict=True):
            yield {"row": label, "column": heading, **cell.raw, "problem": cell.problem}


def csv_text(comparison: Comparison) -> str:
    """A line for each cell with its raw numbers, unrounded and in their own unit; a share is not in percent."""
    lines = list(records(comparison))
    names = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _lines(cell: Cell) -> list[str]:
    """All but the value: interval, counts, what is wrong, and what was published with how ours stands to it."""
    paper = f"paper {cell.paper}" if cell.paper else ""
    against = ", ".join(filter(None, [paper, cell.verdict]))
    problem = cell.problem if cell.value else ""
    return [", ".join(cell.facts), problem, against]


def _rich_cell(cell: Cell) -> Text:
    counts, problem, against = _lines(cell)
    if cell.value:
        text = Text.assemble((cell.value, "bold green" if cell.best else "bold"), f" {cell.interval}")
    else:
        text = Text(cell.problem or "missing", style="yellow")
    for line, style in ((counts, "dim"), (problem, "yellow"), (against, "dim")):
        text.append(f"\n{line}" if line else "", style=style)
    return text


def _markdown_cell(cell: Cell) -> str:
    counts, problem, against = map(_markdown_text, _lines(cell))
    value = f"**{cell.value}**" if cell.best else cell.value or _markdown_text(cell.problem or "missing")
    return " ".join(filter(None, [value, cell.interval, counts and f"({counts})", problem, against]))


def _latex_cell(cell: Cell) -> str:
    counts, problem, _ = map(_latex_text, _lines(cell))
    value = _latex_text(cell.value or cell.problem or "missing")
    interval = f"{{{_latex_text(cell.interval)}}}" if cell.interval else ""
    small = " ".join(filter(None, [interval, ", ".join(filter(None, [counts, problem]))]))
    shown = rf"\textbf{{{value}}}" if cell.best else value
    return rf"{shown} {{\scriptsize {small}}}" if small else shown


def _markdown_text(text: str) -> str:
    r"""
    >>> print(_markdown_text("MiniGPT-4*, p<0.001"))
    MiniGPT-4\*, p\<0.001
    """
    return re.sub(r"([\\`*_<|])", r"\\\1", text)


def _latex_text(text: str) -> str:
    r"""
    >>> print(_latex_text("95 % of cc_only"))
    95 \% of cc\_only
    """
    return "".join(_LATEX.get(mark, mark) for mark in text)
