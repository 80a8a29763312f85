"""The terminal chat: pictures go between words as `@path`, the conversation goes on over turns."""

import os.path
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from sparkles.data.images import load_image
from sparkles.prompt_format import image_reference
from sparkles.serve.prompts import without_placeholders
from sparkles.types import Image, Message, Prompt, Responder

HELP = (
    'Put pictures between words: [bold]Compare @cat.png with @dog.png.[/] Quote a path with spaces: @"my cat.png".\n'
    "They become IMAGE#1, IMAGE#2, ... and can be named so later. /clear starts again, /quit or Ctrl-D leaves."
)
# A path ends where the sentence goes on: at white space, or at punctuation before white space or the end.
_PICTURE = re.compile(r"""@(?:"([^"]+)"|(\S+?)(?=[,;:!?.)\]'"]*(?:\s|$)))""")


def parse_message(text: str, *, first_id: int) -> Message:
    """A user message whose `@path`s have become numbered image references.

    Raises:
        ImageError: a path is no readable picture.

    >>> message = parse_message("Hello!", first_id=1)
    >>> message.content, message.images
    ('Hello!', ())
    """
    images: list[Image] = []

    def place(match: re.Match[str]) -> str:
        # Unlike the method of Path, this leaves the ~ of an unknown user alone.
        name = os.path.expanduser(match[1] or match[2])  # noqa: PTH111
        image = Image(image_id=first_id + len(images), path=Path(name))
        load_image(image)  # an unreadable file is said now, not when the model is asked
        images.append(image)
        return image_reference(image.image_id)

    content = _PICTURE.sub(place, without_placeholders(text))
    return Message(role="user", content=content, images=tuple(images))


class Talk:
    """Turns so far, and what numbers the next pictures get."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder
        self.messages: tuple[Message, ...] = ()

    @property
    def next_image_id(self) -> int:
        return 1 + sum(len(message.images) for message in self.messages)

    def ask(self, text: str) -> str:
        """Answer and remember; a question that fails leaves the conversation as it was."""
        message = parse_message(text, first_id=self.next_image_id)
        (response,) = self.responder.respond([Prompt(messages=(*self.messages, message))])
        answer = without_placeholders(response.text)
        self.messages = (*self.messages, message, Message(role="assistant", content=answer))
        return answer


def run(
    responder: Responder,
    console: Console,
    *,
    hints: Sequence[str] = (),
    read: Callable[[], str] | None = None,
) -> None:
    """Read, answer, until the user leaves."""
    talk = Talk(responder)
    console.print(Panel("\n".join([HELP, *hints]), title="Sparkles"))
    while True:
        try:
            text = (read or (lambda: console.input("[bold cyan]You:[/] ")))().strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text == "/quit":
            return
        if text == "/clear":
            talk = Talk(responder)
            console.print("[dim]A new conversation.[/]")
        elif text:
            try:
                show_answer(talk, text, console)
            except KeyboardInterrupt:  # stops the answer, not the chat
                console.print("[dim]Stopped; the question is forgotten.[/]")


def show_answer(talk: Talk, text: str, console: Console) -> bool:
    """Print the answer, or what is wrong with the question; whether there was an answer."""
    try:
        with console.status("thinking"):
            answer = talk.ask(text)
    except ValueError as error:
        console.print(f"[red]{escape(str(error))}[/]")
        return False
    console.print(f"[bold green]Sparkles:[/] {escape(answer)}")
    return True
