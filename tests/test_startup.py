"""Whoever asks for help, or mistypes, does not wait for libraries that only work needs."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
HEAVY = {"gradio", "lightning", "pandas", "scipy", "sklearn", "timm", "torch", "torchvision", "transformers"}
PROGRAM = """
import runpy, sys
target, sys.argv = sys.argv[1], sys.argv[1:]
try:
    (runpy.run_path if target.endswith(".py") else runpy.run_module)(target, run_name="__main__")
finally:
    print("\\nIMPORTED", *sys.modules)
"""
COMMANDS = [
    "train.py --help",
    "sparkles.data --help",
    "sparkles.data view --help",
    "sparkles.eval --help",
    "sparkles.eval compare --help",
    "sparkles.gen --help",
    "sparkles.gen stats --help",
    "sparkles.models.checkpoints --help",
    "sparkles.nano --help",
    "sparkles.serve --help",
    "sparkles.serve chat --help",
    "sparkles.serve tui --help",
    "sparkles.tables --help",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    told, _, imported = finished.stdout.partition("\nIMPORTED")
    assert len(told.strip().splitlines()) > 1, "some help"
    assert HEAVY.isdisjoint(imported.split())
