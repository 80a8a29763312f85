"""Prompts are files: one text per prompt beside this module, filled with `string.Template`."""

import hashlib
from functools import cache
from pathlib import Path
from string import Template

PROMPT_DIR = Path(__file__).parent / "prompts"


@cache
def load_prompt(name_or_path: str) -> Template:
    """A shipped prompt by name (`bison`) or any text file by path.

    Raises:
        FileNotFoundError: there is neither, naming what was looked for and which prompts ship.
    """
    path = PROMPT_DIR / f"{name_or_path}.txt"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in PROMPT_DIR.glob("*.txt")))
        raise FileNotFoundError(
            f"no prompt file {name_or_path!r}; give a path to a text file or one of: {shipped}"
        )
    return Template(path.read_text(encoding="utf-8").strip())


def prompt_hash(name_or_path: str) -> str:
    """sha256 of the prompt's text, which goes into every result."""
    return hashlib.sha256(load_prompt(name_or_path).template.encode()).hexdigest()
