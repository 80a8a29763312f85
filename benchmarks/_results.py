"""Run benchmarks and keep what they tell in RESULTS.md, beside what other devices have told.

    python benchmarks/_results.py                                            all of them, as `make bench` does
    python benchmarks/_results.py script=floor script=training_step          these
    python benchmarks/_results.py lines=FILE                                 none: what one printed on another machine

A script that fails does not keep the others from running; the command then ends with exit code 1.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

from _line import processor

from sparkles.config import call
from sparkles.types import InputError

FOLDER = Path(__file__).parent
FIRST = "floor"
"""What the other scripts' figures are held against."""
HEAD = """\
# Results of the benchmarks

Written by `make bench`, on a machine that does nothing else: for each device what each script told last. The ways that
a table compares were measured in one run.

* **gain**: how many times as fast as the first row; **over the last**: as the row before, for a row that adds one
  technique ("+") to it.
* **utilisation**: operations that the training needs, a second, as a part of those of a matrix product on the same
  device in the same run (`floor`). Needed are, of the frozen language model of N weights, **4 N a token** and not 6 N
  (2 N forward, and 2 N backward to the inputs alone; the output layer only for tokens with a loss), for attention
  6 L q T² a sample (L layers, queries of width q, T tokens), 2 N for each token of an image, and 6 N of what is trained
  (`sparkles/models/arithmetic.py`). Padding, and logits that no loss reads, are work but not needed work.
* **part of the floors speed**: of writing answers, which has to read all weights for each token, and keys and values of
  all tokens before it: the time that this takes at the speed of the copy, as a part of the time that was taken.
* **peak memory**: on a GPU what torch held at most, else what the process did.
"""
_HEADINGS = {
    "figure": "figure",
    "ratio": "gain",
    "over_last": "over the last",
    "utilisation": "utilisation",
    "peak_mb": "peak memory, MB",
    "spread_s": "s, least to most",
}
"""Columns in this order; any other comes behind them."""
_OF_THE_RUN = {"what", "config", "unit", "device", "versions", "date", "script", "command", "torch", "python"}
"""Keys of a line that are no column."""

Line = dict[str, Any]
Sections = dict[str, dict[str, str]]
"""Text by device and script."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a script told."""

    script: str
    lines: Sequence[Line]
    exit_code: int = 0


def run(script: Path) -> Told:
    """Run one script; its lines are printed as they come, and what it says besides is left to the terminal."""
    lines = []
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for text in process.stdout:
            print(text, end="", flush=True)
            lines += read_lines(text)
    return Told(script=script.name, lines=lines, exit_code=process.returncode)


def read_lines(text: str) -> list[Line]:
    """The lines of a benchmark among others, such as a progress bar's."""
    lines = []
    for line in text.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and {"what", "config", "script"} <= told.keys():
            lines.append(told)
    return lines


def merged(text: str, told: Sequence[Told]) -> str:
    """RESULTS.md with the sections of the scripts that told something, or failed, in place of their former ones."""
    sections = _sections(text)
    for one in told:
        by_device: dict[str, list[Line]] = {}
        for line in one.lines:
            by_device.setdefault(line["device"], []).append(line)
        if one.exit_code:
            by_device.setdefault(processor(), [])
        for device, lines in by_device.items():
            sections.setdefault(device, {})[one.script] = _section(one, lines)
    blocks = [HEAD.strip()]
    for device, scripts in sorted(sections.items()):
        blocks.append(f"## {device}")
        blocks += [f"### {script}\n\n{body}" for script, body in sorted(scripts.items(), key=_floor_first)]
    return "\n\n".join(blocks) + "\n"


def _floor_first(section: tuple[str, str]) -> tuple[bool, str]:
    return section[0] != f"{FIRST}.py", section[0]


def _sections(text: str) -> Sections:
    sections: Sections = {}
    for device in f"\n{text}".split("\n## ")[1:]:
        name, _, scripts = device.partition("\n")
        parts = (script.partition("\n") for script in scripts.split("\n### ")[1:])
        sections[name] = {script: body.strip() for script, _, body in parts}
    return sections


def _section(told: Told, lines: Sequence[Line]) -> str:
    blocks = []
    if told.exit_code:
        blocks.append(
            f"**Failed** with exit code {told.exit_code} on {date.today()}; below is what it told before."
            if lines
            else f"**Failed** with exit code {told.exit_code} on {date.today()} before it told anything."
        )
    if lines:
        versions = ", ".join(f"{name} {number}" for name, number in lines[0]["versions"].items())
        blocks.append(f"{lines[0]['date']}, {versions}: `{lines[0]['command']}`")
    for what, rows in groupby(sorted(lines, key=_order(lines)), key=lambda line: line["what"]):
        blocks.append("\n".join(_table(what, list(rows))))
    return "\n\n".join(blocks)


def _order(lines: Sequence[Line]) -> Any:
    """By what is measured, in the order in which each was first told; the rows of each as they came."""
    order = {what: place for place, what in reversed(list(enumerate(line["what"] for line in lines)))}
    return lambda line: order[line["what"]]


def _table(what: str, rows: list[Line]) -> Iterator[str]:
    """The rows, with a column for each key in which they differ; what they share stands above."""
    rows = [
        {key: value for key, value in {**row, **_gain(row, before)}.items() if value is not None}
        for before, row in zip([{}, *rows], rows, strict=False)
    ]
    keys = dict.fromkeys([*_HEADINGS, *(key for row in rows for key in row if key not in _OF_THE_RUN)])
    differing = [key for key in keys if any(row.get(key) != rows[0].get(key) for row in rows)]
    columns = [key for key in keys if key in differing or (key in _HEADINGS and key in rows[0])]
    shared = [
        f"{_heading(key)} {_cell(rows[0], key)}" for key in keys if key not in columns and key in rows[0]
    ]
    yield f"**{what}**" + (f" ({', '.join(shared)})" if shared else "") + "\n"
    yield f"| | {' | '.join(map(_heading, columns))} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in rows:
        cells = [row["config"], *(_cell(row, key) for key in columns)]
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _gain(row: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    comparable = row.get("figure") and before.get("figure") and row.get("unit") == before.get("unit")
    if not comparable or not row["config"].startswith("+"):
        return {}
    return {"over_last": round(row["figure"] / before["figure"], 2)}


def _heading(key: str) -> str:
    return _HEADINGS.get(key, key.replace("_", " "))


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if key == "figure":
        return f"{_number(value)} {row.get('unit', '')}".strip()
    if key == "utilisation":
        return f"{value:.1%}"
    if isinstance(value, list):
        return " to ".join(map(_number, value))
    return _number(value)


def _number(value: Any) -> str:
    """
    >>> _number(1234.5), _number(7), _number("fp32")
    ('1,234.5', '7', 'fp32')
    """
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def scripts(names: Sequence[str] = (), folder: Path = FOLDER) -> list[Path]:
    """The benchmarks of a folder, `FIRST` first; those of `names` alone if there are any.

    Raises:
        InputError: there is none of such a name.
    """
    found = {
        path.stem: path
        for path in sorted(folder.glob("[a-z]*.py"), key=lambda path: (path.stem != FIRST, path))
    }
    if unknown := set(names) - found.keys():
        raise InputError(f"script={unknown.pop()}: no such benchmark; expected {', '.join(found)}")
    return [path for name, path in found.items() if not names or name in names]


def bench(
    script: Sequence[str] = (), lines: str | None = None, out: str = str(FOLDER / "RESULTS.md")
) -> None:
    """Run benchmarks, or read what they printed, and write the results.

    Args:
        script: names of benchmarks; none for all.
        lines: file with the output of benchmarks that ran elsewhere.
        out: file of the results.

    Raises:
        InputError: there is no such benchmark or file, or there are no lines in it.
    """
    path = Path(out)
    told = [run(one) for one in scripts(script)] if lines is None else _elsewhere(Path(lines))
    path.write_text(
        merged(path.read_text(encoding="utf-8") if path.is_file() else "", told), encoding="utf-8"
    )
    for one in told:
        if not one.lines:
            print(f"{one.script} told nothing", file=sys.stderr)
    if failed := [one.script for one in told if one.exit_code]:
        raise InputError(f"failed: {', '.join(failed)}; what the others told is in {path}")


def _elsewhere(path: Path) -> list[Told]:
    if not path.is_file():
        raise InputError(f"lines={path}: no such file; give what a benchmark printed")
    lines = read_lines(path.read_text(encoding="utf-8"))
    if not lines:
        raise InputError(f"lines={path}: no line of a benchmark in it; give what a benchmark printed")
    by_script = groupby(sorted(lines, key=lambda line: line["script"]), key=lambda line: line["script"])
    return [Told(script=script, lines=list(of_script)) for script, of_script in by_script]


if __name__ == "__main__":
    try:
        call("_results.py", bench, sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
