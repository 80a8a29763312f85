"""Imports run one way through the house; this file holds the table (see CONTRIBUTING.md)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = {"types", "prompt_format", "config"}
SHARED = BASE | {"journal", "llm_client"}
MAY_IMPORT = {
    "types": set(),
    "prompt_format": {"types"},
    "config": {"types"},
    "journal": BASE,
    "llm_client": BASE | {"journal"},
    "models": SHARED,
    "data": SHARED,
    "gen": SHARED,
    "pages": SHARED | {"data"},
    "eval": SHARED | {"data", "pages"},
    "dry_run": SHARED | {"models", "data"},
    "launch": SHARED | {"models", "data", "eval", "dry_run"},
    "serve": SHARED | {"models", "data", "gen", "pages", "eval"},
    "nano": SHARED | {"models", "data", "gen", "eval"},
    "tables": SHARED | {"data", "gen", "pages", "eval", "dry_run", "launch"},
}
ON_TOP = MAY_IMPORT.keys() - {"nano"}
"""For train.py, each `__main__` and the commands that it dispatches to.

Nobody imports nano: configuration reaches it by `_target_`.
"""


def violations(root: Path) -> list[str]:
    """Each import between parts of `root`/sparkles, or from train.py, that the table does not allow."""
    found = []
    for path in [*sorted((root / "sparkles").rglob("*.py")), *root.glob("train.py")]:
        place = path.relative_to(root)
        part = place.parts[1].removesuffix(".py") if len(place.parts) > 1 else ""
        if part not in MAY_IMPORT and part not in ("", "__init__", "__main__"):
            found.append(f"{place} is not in the table of layers; add {part!r} to tests/test_layers.py")
            continue
        on_top = place.name in ("train.py", "__main__.py", "commands.py")
        allowed, who = (ON_TOP, place) if on_top else (MAY_IMPORT.get(part, set()), part)
        for line, imported in imported_parts(path, place):
            if imported not in allowed | {part}:
                found.append(f"{place}:{line} imports {imported!r}; {who} may import {sorted(allowed)}")
    return found


def imported_parts(path: Path, place: Path) -> Iterator[tuple[int, str]]:
    """Line and part (`data` for `sparkles.data.encoding`) of every import, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*place.parts[: -node.level]] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "sparkles" else [module]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            part = rest.partition(".")[0]
            if package == "sparkles" and part and not part.startswith("__"):
                yield node.lineno, part


def test_imports_run_one_way() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("sparkles/models/a.py", "import sparkles.data.encoding", "imports 'data'; models may import"),
        ("sparkles/eval/a.py", "from sparkles.models import vision", "imports 'models'; eval may import"),
        ("sparkles/data/a.py", "from sparkles import gen", "imports 'gen'; data may import"),
        ("sparkles/data/deep/a.py", "from ...models import b", "imports 'models'; data may import"),
        ("sparkles/types.py", "from .config import validate", "imports 'config'; types may import []"),
        ("sparkles/serve/a.py", "def f():\n    import sparkles.nano", ":2 imports 'nano'; serve may import"),
        (
            "sparkles/eval/__main__.py",
            "import sparkles.nano",
            "imports 'nano'; sparkles/eval/__main__.py may import",
        ),
        ("train.py", "from sparkles.nano import scenes", "train.py:1 imports 'nano'"),
        ("sparkles/utils.py", "", "is not in the table of layers; add 'utils'"),
    ],
)
def test_a_wrong_import_is_named(tmp_path: Path, file: str, source: str, expected: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(source)
    [message] = violations(tmp_path)
    assert message.startswith(file)
    assert expected in message


def test_allowed_imports_pass(tmp_path: Path) -> None:
    sources = {
        "train.py": "from sparkles.models import vision",
        "sparkles/__init__.py": "import torch",
        "sparkles/eval/__main__.py": "import sparkles.models.vision, sparkles.serve",
        "sparkles/eval/report.py": "from . import metrics\nfrom ..data.images import load_image",
        "sparkles/nano/judge.py": "from sparkles.eval.metrics import mean\nfrom sparkles.nano import scenes",
    }
    for file, source in sources.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []
