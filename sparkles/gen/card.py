"""The data card: what a data set is, where it comes from, what was left out, what it cost, and whose terms apply."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sparkles.types import InputError

FILE_NAME = "README.md"
"""Under which hubs of data sets show it."""
FACTS = (
    "name",
    "description",
    "source",
    "model",
    "prompts",
    "settings",
    "counts",
    "rejects",
    "filters",
    "cost",
    "leakage",
    "files",
    "licence",
)
"""What a card tells, in order. What a data set does not say of itself is shown as not recorded."""
LICENCE = (
    "Captions and pictures are under the terms of their sources. What a language model wrote is under the terms of its "
    "provider; OpenAI's, for example, do not allow it for training models that compete with theirs. Read both before "
    "you pass the data on."
)


def write_card(path: Path, facts: Mapping[str, Any]) -> Path:
    """Write the card, in Markdown, beside the data.

    Args:
        path: `FILE_NAME` in the folder of the data, or where several data sets share one, a name of its own.
        facts: some of `FACTS`. Texts (name, description, licence) are shown as they are; the others are mappings from
            words to numbers or texts, such as `rejects={"no dialogue in the reply": 3}`. `leakage` is the record of a
            `LeakageReport`. A fact may also be a text.

    Raises:
        InputError: a fact that no card has.
    """
    if unknown := set(facts) - set(FACTS):
        raise InputError(
            f"the data card has no place for {', '.join(sorted(unknown))}; it takes {', '.join(FACTS)}"
        )
    environment = Environment(
        loader=PackageLoader("sparkles.gen"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; `cell` escapes what would end a cell
    )
    environment.filters["cell"] = _cell
    known = dict.fromkeys(FACTS) | {"name": path.resolve().parent.name, "licence": LICENCE} | dict(facts)
    text = environment.get_template("card.md.j2").render(known).rstrip() + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _cell(value: object) -> str:
    r"""A value in a cell of a table in Markdown.

    >>> print(_cell({"b": 1.23456, "a|c": 1000}))
    b: 1.235, a\|c: 1,000
    """
    if value is None or value == "":
        return "not recorded"
    if isinstance(value, Mapping):
        return ", ".join(f"{_cell(key)}: {_cell(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    escaped = str(value).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())
