"""The terminal chat: pictures go between words as `@path`, answers come as they are written.

    run(Talk(LiveAnswers(Chat(engine)), console, sampling=sampling, name=name), LineInput(console, WORDS, PATHS_AFTER))

Conversations are those of the web chat, and go on, are cut and are saved as there.
"""

import os
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sparkles.config import nearest
from sparkles.prompt_format import image_mention
from sparkles.serve.conversation import Conversation, Turn, Upload
from sparkles.serve.export import html_page, training_zip
from sparkles.serve.question import SMALLEST_TEMPERATURE, Sampling
from sparkles.serve.terminal.answer_writer import AnswerWriter, no_echo
from sparkles.serve.terminal.speakers import Speaker
from sparkles.serve.terminal.typed_pictures import parse_question, spell
from sparkles.types import InputError

HELP = (
    'Put pictures between words: [bold]Compare @cat.png with @dog.png.[/] Quote a path with spaces: @"my cat.png".\n'
    "They become IMAGE#1, IMAGE#2, ... and can be named so later. Ctrl-C stops an answer; /help lists the rest."
)
_SETTINGS: dict[str, tuple[Callable[[str], float], str]] = {
    "temperature": (float, "0 takes the likeliest words, more draws them"),
    "top_p": (float, "draws from the likeliest words alone, which have this much of the probability"),
    "beams": (int, "more than 1, at temperature 0, search for the likeliest answer, which comes whole"),
    "max_tokens": (int, "of an answer"),
    "seed": (int, "of what is drawn; none draws anew each time"),
}
# What could move the cursor, recolor or rename the terminal; a model may have learned to write it.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Talk:
    """A conversation in a terminal, and how it goes on.

    Args:
        sampling: of the answers, until the user sets it otherwise.
        name: of the model.
        fixed: the speaker samples as it likes, and heeds no settings.
        aside: gets what is neither question nor answer; the console itself if not given.
    """

    def __init__(
        self,
        speaker: Speaker,
        console: Console,
        *,
        sampling: Sampling,
        name: str,
        fixed: bool = False,
        aside: Console | None = None,
    ) -> None:
        self.speaker = speaker
        self.console = console
        self.sampling = sampling
        self.name = name
        self.fixed = fixed
        self.aside = aside or console
        self.draft = ""
        """What the next line may begin with: a question that was taken back, or could not be asked."""
        self.is_over = False
        self._begin()

    def hear(self, line: str) -> None:
        """Do what a line says: a command, or a question. What is wrong with it is said."""
        word, _, rest = line.partition(" ")
        try:
            if not re.fullmatch(r"/\w*", word):  # a path is none
                self.ask(line)
            elif command := _BY_WORD.get(word):
                command.do(self, rest.strip())
            else:
                raise InputError(f"there is no {word}{nearest(word, _BY_WORD)} /help lists what there is")
        except (InputError, OSError) as error:
            self._complain(error)

    def ask(self, text: str) -> bool:
        """Answer a question; whether the answer came to its end. One that cannot be asked changes nothing."""
        try:
            parts, paths = parse_question(text)
        except InputError as error:
            self.draft = text
            self._complain(error)
            return False
        asked = self._listen(self.speaker.ask(self.conversation, parts, self.sampling), paths)
        if asked is None:
            self.draft = text
        return asked is not None and asked.ending != "stopped"

    def retry(self, _: str = "") -> None:
        """Ask the last question again."""
        before = self.conversation.turns[-1].answer if self.conversation.turns else ""
        turn = self._listen(self.speaker.retry(self.conversation, self.sampling))
        greedy = not self.fixed and self.sampling.temperature < SMALLEST_TEMPERATURE
        if turn and greedy and turn.answer == before and turn.ending != "stopped":
            self._remark("The likeliest answer is the same each time; /set temperature 0.7 draws others.")

    def edit(self, _: str = "") -> None:
        """Take the last question back, to be changed."""
        if not self.conversation.turns:
            raise InputError("nothing was asked yet")
        question = self.conversation.turns[-1].question
        self.conversation.take_back()
        self.draft = "".join(part if isinstance(part, str) else spell(self._paths[part]) for part in question)
        self._remark("Taken back.")

    def clear(self, _: str = "") -> None:
        """Begin a new conversation."""
        self._begin()
        self._remark("A new conversation.")

    def _begin(self) -> None:
        self.conversation = Conversation()
        self._paths: dict[Upload, str] = {}
        self._told_forgotten = 0

    def show_pictures(self, _: str = "") -> None:
        """List the pictures."""
        if not self.conversation.uploads:
            self._remark("No pictures yet; put them between words as @path.")
        gone = {
            upload
            for turn in self.conversation.turns[: self.conversation.forgotten]
            for upload in turn.uploads
        }
        for number, upload in self.conversation.uploads.items():
            note = " (no longer seen by the model)" if upload in gone else ""
            self._say(f"{image_mention(number)} {self._paths[upload]}{note}", "dim" if note else "")

    def set(self, rest: str) -> None:
        """Change a setting, or list them."""
        if self.fixed:
            raise InputError(
                f"{self.name} heeds no settings from here; leave, and set responder.temperature=... or "
                "generation.max_new_tokens=... when you start again"
            )
        if not rest:
            table = Table.grid(padding=(0, 2))
            for name, (_, meaning) in _SETTINGS.items():
                value = getattr(self.sampling, name)
                table.add_row(f"[bold]{name}[/]", str(value).lower(), f"[dim]{meaning}[/]")
            self.aside.print(table)
            return
        name, _, value = rest.partition(" ")
        name = "max_tokens" if name == "length" else name
        if name not in _SETTINGS:
            raise InputError(
                f"/set {name}: no such setting{nearest(name, _SETTINGS)} There are {', '.join(_SETTINGS)}"
            )
        change: Any = {name: _number(name, value.strip())}
        changed = replace(self.sampling, **change)
        self.speaker.check(changed)
        self.sampling = changed
        self._remark(f"{name} is {value.strip()} from now on.")

    def save(self, rest: str) -> None:
        """Write the conversation to a file."""
        path = Path(os.path.expanduser(rest.strip("\"'")))  # noqa: PTH111  # leaves the ~ of an unknown user alone
        if path.suffix == ".html":
            content = html_page(self.conversation, name=self.name).encode()
        elif path.suffix == ".zip":
            content = training_zip(self.conversation)
        else:
            raise InputError(
                f"/save {rest}: expected a name that ends in .html (one page, to read) or .zip (a training dialogue)"
            )
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            raise InputError(f"{path} is there already; choose another name") from None
        self._remark(f"Saved to {path}.")

    def quit(self, _: str = "") -> None:
        """Leave."""
        self.is_over = True

    def help(self, _: str = "") -> None:
        """Say what there is."""
        self.aside.print(HELP)
        table = Table.grid(padding=(0, 2))
        for command in COMMANDS:
            table.add_row(f"[bold]{command.usage}[/]", command.meaning)
        self.aside.print(table)

    def _listen(self, turns: Generator[Turn, None, None], paths: Sequence[str] = ()) -> Turn | None:
        """Write the answer while it comes; the turn as it ended, or None if there is none."""
        turn: Turn | None = None
        answer = AnswerWriter(self.console)
        status = self.console.status("thinking; Ctrl-C stops")
        try:
            with closing(turns), no_echo():
                for number, turn in enumerate(turns):
                    if number == 0 and paths:
                        self._paths.update(zip(turn.uploads, paths, strict=True))
                        self._introduce(turn)
                    if turn.answer:
                        status.stop()
                        answer.write(_plain(turn.answer))
                    elif not turn.ending:
                        status.start()
        except KeyboardInterrupt:
            pass  # stops the answer, not the chat
        except InputError as error:
            status.stop()
            answer.end()
            self._complain(error)
            return None
        finally:
            status.stop()
        if turn is None:
            self._remark("Stopped before the question was read.")
            return None
        answer.write(_plain(turn.answer))
        answer.end()
        self._comment(turn)
        return turn

    def _introduce(self, turn: Turn) -> None:
        """Say which numbers its pictures got."""
        numbers = {upload: number for number, upload in self.conversation.uploads.items()}
        told = [f"{image_mention(numbers[upload])} {self._paths[upload]}" for upload in turn.uploads]
        if self.aside is self.console:
            self._remark(", ".join(told))

    def _comment(self, turn: Turn) -> None:
        """Say how the answer ended, and what was not seen for it."""
        if turn.ending == "stopped":
            self._remark(
                "Stopped."
                if turn.answer
                else "Stopped; the question will be read with the next, or /edit it."
            )
        elif turn.ending == "length":
            more = (
                "" if self.fixed else f" after {turn.sampling.max_tokens} tokens; /set max_tokens allows more"
            )
            self._remark(f"The answer was cut off{more}.")
        elif not turn.answer:
            self._remark("No answer.")
        forgotten = self.conversation.forgotten
        if forgotten and forgotten != self._told_forgotten:
            turns = "first question" if forgotten == 1 else f"first {forgotten} questions"
            uploads = [upload for one in self.conversation.turns[:forgotten] for upload in one.uploads]
            numbers = list(self.conversation.uploads)[: len(uploads)]
            pictures = f" ({', '.join(map(image_mention, numbers))})" if numbers else ""
            self._remark(
                f"The conversation has become too long for the model: it no longer sees the {turns}{pictures}."
            )
        self._told_forgotten = forgotten

    def _remark(self, text: str) -> None:
        self._say(text, "dim")

    def _complain(self, error: Exception) -> None:
        self._say(str(error), "red")

    def _say(self, text: str, style: str) -> None:
        # A file has no width.
        self.aside.print(Text(_plain(text), style), soft_wrap=not self.aside.is_terminal)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a line that begins with a slash does."""

    usage: str
    meaning: str
    do: Callable[[Talk, str], None]
    """Takes what stands behind the word."""
    alias: str = ""

    @property
    def word(self) -> str:
        return self.usage.partition(" ")[0]


COMMANDS = (
    Command(usage="/retry", meaning="asks the last question again", do=Talk.retry),
    Command(
        usage="/edit",
        meaning="takes the last question back, to be changed (/undo too)",
        do=Talk.edit,
        alias="/undo",
    ),
    Command(usage="/clear", meaning="begins a new conversation", do=Talk.clear),
    Command(usage="/pictures", meaning="lists the pictures with their numbers", do=Talk.show_pictures),
    Command(
        usage="/set NAME VALUE",
        meaning=f"changes a setting ({', '.join(_SETTINGS)}); /set alone lists them",
        do=Talk.set,
    ),
    Command(
        usage="/save FILE",
        meaning="saves the conversation: as a page (.html), or as a training dialogue (.zip)",
        do=Talk.save,
    ),
    Command(usage="/help", meaning="lists this", do=Talk.help),
    Command(usage="/quit", meaning="leaves, as Ctrl-D and a second Ctrl-C do where you type", do=Talk.quit),
)
_BY_WORD = {word: command for command in COMMANDS for word in (command.word, command.alias) if word}
WORDS = (
    *(command.word + (" " if " " in command.usage else "") for command in COMMANDS),
    *(f"/set {name} " for name in _SETTINGS),
)
"""For `LineInput`."""
PATHS_AFTER = ("/save ",)


def run(talk: Talk, read: Callable[[str], str], *, hints: Sequence[str] = ()) -> None:
    """Read, answer, until the user leaves.

    Args:
        read: gives the next line, which may begin with a draft.
        hints: to be shown first.
    """
    talk.console.print(Panel("\n".join([HELP, *hints]), title="Sparkles"))
    is_leaving = False
    while not talk.is_over:
        draft, talk.draft = talk.draft, ""
        try:
            line = read(draft).strip()
            is_leaving = False
            if line:
                talk.hear(line)
        except EOFError:
            talk.console.print()
            return
        except KeyboardInterrupt:  # at the prompt, or when the answer that it was to stop had just ended
            talk.console.print()
            if is_leaving:
                return
            is_leaving = True
            talk._remark("Ctrl-C once more, or Ctrl-D, leaves.")


def _number(name: str, value: str) -> float | None:
    if name == "seed" and value == "none":
        return None
    kind, _ = _SETTINGS[name]
    try:
        return kind(value)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise InputError(f"/set {name} {value}: expected {expected}, as in /set {name} 1") from None


def _plain(text: str) -> str:
    return _CONTROLS.sub("", text)
