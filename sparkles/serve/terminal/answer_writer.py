"""How an answer appears in a terminal while it is written."""

import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.cells import cell_len
from rich.console import Console

LABEL = "Sparkles:"
_WIDE = r"\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"
"""Characters of scripts without spaces, between which a line may end."""
_UNITS = re.compile(rf"\n|[^\S\n]+|[{_WIDE}]|[^\s{_WIDE}]+")


class AnswerWriter:
    """Prints text that grows. A terminal's lines end between words, so the last word waits for its end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._given = 0  # characters of the text
        self._waiting: deque[str] = deque()
        self._space = ""
        self._column = 0  # in cells

    def write(self, text: str) -> None:
        """The text so far, of which only what is new is printed."""
        if len(text) <= self._given:
            return
        is_first, new, self._given = not self._given, text[self._given :], len(text)
        if is_first:
            self._console.print(f"[bold green]{LABEL}[/] ", end="")
            self._column = len(LABEL) + 1
        if not self._console.is_terminal:
            self._print(new)
            return
        last = self._waiting.pop() if self._waiting else ""
        self._waiting += _UNITS.findall(last + new)
        while len(self._waiting) > 1:
            self._place(self._waiting.popleft())  # taken out first: Ctrl-C may come while it is printed

    def end(self) -> None:
        """Nothing more comes."""
        while self._waiting:
            self._place(self._waiting.popleft())
        if self._given:
            self._print("\n")
        self._given = 0

    def _place(self, unit: str) -> None:
        """A word, a break or the space before the next word, which no line begins with."""
        if unit == "\n":
            self._print("\n")
            self._column, self._space = 0, ""
        elif unit.isspace():
            self._space = unit
        elif unit:
            if self._column and self._column + cell_len(self._space + unit) > self._console.width:
                self._print("\n")
                self._column, self._space = 0, ""
            self._print(self._space + unit)
            self._column += cell_len(self._space + unit)
            self._space = ""

    def _print(self, text: str) -> None:
        # Past the console's own buffer, which would be printed again after Ctrl-C.
        self._console.file.write(text)
        self._console.file.flush()


@contextmanager
def no_echo() -> Iterator[None]:
    """What is typed meanwhile, ^C for one, would stand between the words; it is read when the answer has ended."""
    try:
        import termios
    except ImportError:  # not on every system
        yield
        return
    descriptor = sys.__stdin__.fileno() if sys.__stdin__ is not None else -1
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO  # of the local modes
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
