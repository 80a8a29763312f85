"""Lines that a user types: with history, Tab and a draft to change where there is a terminal and readline."""

import mimetypes
import os
import re
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from types import ModuleType

from rich.console import Console
from rich.markup import escape

from sparkles.serve.terminal.typed_pictures import spell
from sparkles.types import InputError

_BEGUN = re.compile(r'(?<![A-Za-z0-9._%+-])@("?)((?<=")[^"]*|\S*)$')
_PROMPT = "You: "


class LineInput:
    """Reads a line whenever it is called; what is not typed at a terminal is shown, as if it had been.

    Args:
        words: that a line may begin with, several where one follows another: "/set ", "/set beams ".
        paths_after: of these, those that are followed by the path of any file.

    Raises:
        InputError: there is nothing to read from.
    """

    def __init__(self, console: Console, words: Sequence[str] = (), paths_after: Sequence[str] = ()) -> None:
        self._console = console
        self._words = words
        self._paths_after = paths_after
        if sys.stdin is None:  # closed
            raise InputError("there is no input to read questions from; ask one with message=...")
        self._typed = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline = _readline() if self._typed else None
        if self._readline is not None:
            self._readline.set_completer_delims(" \t\n")
            self._readline.set_completer(self._complete)
            libedit = "libedit" in (self._readline.__doc__ or "")
            self._readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

    def __call__(self, draft: str = "") -> str:
        """The next line, which begins as `draft`, as far as it can be changed here.

        Raises:
            EOFError: there is none.
        """
        if self._readline is None:
            if draft and self._typed:
                self._console.print(f"[dim]{escape(draft)}[/]", soft_wrap=True)  # to be copied
            self._console.print(f"[bold cyan]{_PROMPT}[/]", end="")
            line = input()
            if not self._typed:
                self._console.out(line, highlight=False)
            return line
        self._readline.set_startup_hook(partial(self._readline.insert_text, draft))
        try:
            # What lies between \1 and \2 takes no place: readline would count it otherwise, and misplace the cursor.
            colored = self._console.color_system is not None and not self._console.no_color
            return input(f"\1\x1b[1;36m\2{_PROMPT}\1\x1b[0m\2" if colored else _PROMPT)
        finally:
            self._readline.set_startup_hook()

    def _complete(self, _: str, state: int) -> str | None:
        """For readline: the one numbered `state` of what may stand in place of the last word."""
        assert self._readline is not None
        line = self._readline.get_line_buffer()[: self._readline.get_endidx()]
        start = self._readline.get_begidx()
        found = completions(line, self._words, self._paths_after)
        return found[state][start:] if state < len(found) else None


def completions(line: str, words: Sequence[str] = (), paths_after: Sequence[str] = ()) -> list[str]:
    """What the line may go on to be: words by one, paths by one folder.

    >>> completions("/s", ["/save ", "/set ", "/set beams ", "/quit"])
    ['/save ', '/set ']
    """
    if begun := _BEGUN.search(line):
        paths = list(_paths(begun[2], pictures_only=True))
        # All or none, as readline goes on to what they have in common.
        quoted = bool(begun[1]) or any(spell(path).startswith('@"') for path in paths)
        start = line[: begun.start()] + ('@"' if quoted else "@")
        return [start + path + ('"' if quoted and not path.endswith("/") else "") for path in paths]
    for word in paths_after:
        if line.startswith(word):
            return [word + path for path in _paths(line.removeprefix(word), pictures_only=False)]
    going_on = [word for word in words if word.startswith(line) and word != line]
    return list(dict.fromkeys(word[: word.find(" ", len(line)) + 1 or None] for word in going_on))


def _paths(begun: str, *, pictures_only: bool) -> Iterator[str]:
    """The paths that begin so, folders with a slash."""
    folder, slash, start = begun.rpartition("/")
    try:
        with os.scandir(os.path.expanduser(folder + slash) or ".") as entries:  # noqa: PTH111
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found:
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start.startswith(".")):
            continue
        if entry.is_dir():
            yield f"{folder}{slash}{entry.name}/"
        elif not pictures_only or (mimetypes.guess_type(entry.name)[0] or "").startswith("image/"):
            yield f"{folder}{slash}{entry.name}"


def _readline() -> ModuleType | None:
    """Not every system has it, and to import it changes how `input` reads."""
    try:
        import readline
    except ImportError:
        return None
    return readline
