import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sparkles.serve.terminal.line_input import LineInput, completions
from sparkles.types import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = ("/save ", "/set ", "/set beams ", "/set top_p ", "/quit")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures, others and a folder in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "cat.png",
        "cats/one.jpg",
        "cats/notes.txt",
        "my dog.png",
        "my.gif",
        "notes.txt",
        ".new.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Compare @ca", ["Compare @cat.png", "Compare @cats/"]),
        ("@cats/", ["@cats/one.jpg"]),
        ("(@cat.", ["(@cat.png"]),
        ("@cat.png and @no", []),
        ("@my", ['@"my dog.png"', '@"my.gif"']),
        ('See @"my d', ['See @"my dog.png"']),
        ('See @"ca', ['See @"cat.png"', 'See @"cats/']),
        ("@.", ["@.new.png"]),
        ("@nowhere/", []),
        ("me@ca", []),
        ("a word", []),
        ("/s", ["/save ", "/set "]),
        ("/set ", ["/set beams ", "/set top_p "]),
        ("/set b", ["/set beams "]),
        ("/quit", []),
        ("/save n", ["/save notes.txt"]),
        ("/save my ", ["/save my dog.png"]),
    ],
)
def test_what_a_line_may_go_on_to_be(line: str, expected: list[str]) -> None:
    assert completions(line, WORDS, ("/save ",)) == expected


def test_paths_go_on_at_home_and_at_the_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert completions("@~/cat.") == ["@~/cat.png"]
    assert completions(f"@{folder}/cat.") == [f"@{folder}/cat.png"]


def test_what_comes_from_a_file_is_shown_as_if_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("Is [b]this[/b] red?\n"))
    console = Console(file=StringIO())
    read = LineInput(console)
    assert read("a draft") == "Is [b]this[/b] red?"
    with pytest.raises(EOFError):
        read()
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue() == "You: Is [b]this[/b] red?\nYou: "


def test_without_input_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="no input to read questions from; ask one with message="):
        LineInput(Console(file=StringIO()))


PROGRAM = """
from rich.console import Console
from sparkles.serve.terminal.line_input import LineInput
read = LineInput(Console(force_terminal=True), ["/save ", "/set "])
draft = ""
while True:
    draft = "<" + read(draft) + ">"
    print("READ", draft, flush=True)
"""


class Terminal:
    """PROGRAM at a terminal."""

    def __init__(self, folder: Path) -> None:
        import pty

        self.shown = ""
        self.side, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "INPUTRC": os.devnull},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        os.close(other)

    def type(self, keys: str, until: str) -> None:
        """Wait for what the terminal shows then, and forget all up to there."""
        os.write(self.side, keys.encode())
        deadline = time.monotonic() + 30
        while until not in self.shown:
            assert select.select([self.side], [], [], max(0, deadline - time.monotonic()))[0], self.shown
            self.shown += os.read(self.side, 1_000).decode(errors="replace")
        self.shown = self.shown.partition(until)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.side)


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    pytest.importorskip("readline")
    pytest.importorskip("pty")
    terminal = Terminal(folder)
    yield terminal
    terminal.close()


def test_tab_history_and_drafts_at_a_terminal(terminal: Terminal) -> None:
    terminal.type("", "You: ")
    terminal.type("Is @cat.\t", "@cat.png")
    terminal.type(" red?\r", "READ <Is @cat.png red?>")
    terminal.type("", "You: \x1b[0m<Is @cat.png red?>")
    terminal.type("\x15See @my\t", '"my')  # Ctrl-U takes the draft away
    terminal.type(" d\t\r", 'READ <See @"my dog.png">')
    terminal.type("\x15\x1b[A\x1b[A\r", "READ <Is @cat.png red?>")  # twice the arrow upwards
