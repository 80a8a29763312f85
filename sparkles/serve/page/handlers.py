"""What happens when something on the page is clicked, and what the page shows then."""

import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from sparkles.serve.conversation import Chat, ChatError, Conversation, Conversations, Turn, Visitors
from sparkles.serve.export import file_stem, html_page, training_zip
from sparkles.serve.feedback import Feedback
from sparkles.serve.page.view import view
from sparkles.serve.pictures import data_url
from sparkles.serve.question import Sampling
from sparkles.serve.starters import Example
from sparkles.types import InputError

log = logging.getLogger(__name__)

UNTITLED = "New conversation"
_SECONDS = 0.08
"""Between two looks at an answer that is being written."""

Shown = tuple[Any, Any]
"""Of the chat and the list of conversations."""


@dataclass(frozen=True)
class _Seen:
    """What the page showed when something was done to it: a conversation, with so many turns and tries of the last."""

    key: str
    turns: int
    tries: int

    @classmethod
    def by(cls, event: gr.EventData) -> "_Seen":
        return cls(event.key, event.turns, event.tries)


@dataclass(frozen=True)
class _Visit:
    """Someone looks at one of their conversations."""

    own: Conversations
    conversation: Conversation

    def is_of(self, key: str) -> bool:
        """Whether it is the one that the page shows; not if that was deleted elsewhere, or the server started again."""
        return self.conversation.key == key

    def check(self, key: str) -> None:
        """Raise ChatError if it is another than the page shows."""
        if not self.is_of(key):
            raise ChatError("The server has forgotten this conversation; go on in another one.")

    def check_unchanged(self, seen: _Seen) -> None:
        """Raise ChatError if there is more, or less, than the page shows: what was meant may be something else now."""
        self.check(seen.key)
        turns = self.conversation.turns
        if (len(turns), turns[-1].tries if turns else 0) != (seen.turns, seen.tries):
            raise ChatError("The conversation has changed meanwhile; here it is as it is now.")

    def shown(self, **more: Any) -> Shown:
        """The page shows it, whatever it showed before."""
        return view(self.conversation, opened=True, **more), self._listed(value=self.conversation.key)

    def told(self, key: str, **more: Any) -> Shown:
        """For the page that shows the conversation of this key, and goes on to show it if it is this one."""
        return (view(self.conversation, **more), self._listed()) if self.is_of(key) else self.shown(**more)

    def _listed(self, **more: Any) -> Any:
        return gr.Radio(choices=[(one.title or UNTITLED, one.key) for one in self.own.all], **more)


class Handlers:
    """One for each thing to click.

    The secret is the visitor's, the key that of the conversation on the screen: a browser may have several open.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        name: str,
        visitors: Visitors,
        examples: Sequence[Example],
        feedback: Feedback | None,
    ) -> None:
        self.chat = chat
        self.name = name
        self.visitors = visitors
        self.examples = examples
        self.feedback = feedback

    def arrive(self, secret: str) -> Shown:
        """The page was loaded, for the first time or again."""
        return self._visit(secret, lambda own: own.current).shown()

    def new(self, secret: str) -> Shown:
        """Begin a conversation."""
        return self._visit(secret, Conversations.new).shown()

    def open(self, secret: str, key: str) -> Shown:
        """Go to a conversation."""
        return self._visit_at(secret, key).shown()

    def delete(self, secret: str, key: str | None) -> Shown:
        """Forget a conversation; without a key the user wants it kept."""
        return self._visit(secret, lambda own: own.delete(key) if key else own.current).shown()

    def clear(self, secret: str, key: str | None) -> Shown:
        """Forget all conversations; without a key the user wants them kept."""
        if key:
            self.visitors.welcome(secret).clear()
        return self.arrive(secret)

    async def ask(self, event: gr.EventData, secret: str, *settings: float) -> AsyncIterator[Shown]:
        """Answer a question; one that cannot be asked goes back into the editor."""
        ask, handover = partial(self.chat.ask, parts=event.parts), {"parts": event.parts}
        async for shown in self._answer(event, secret, ask, settings, handover):
            yield shown

    async def retry(self, event: gr.EventData, secret: str, *settings: float) -> AsyncIterator[Shown]:
        """Answer the last question again."""
        async for shown in self._answer(event, secret, self.chat.retry, settings):
            yield shown

    async def example(self, event: gr.EventData, secret: str, *settings: float) -> AsyncIterator[Shown]:
        """Ask the questions of an example, in a conversation of its own."""
        visit = self._visit(secret, Conversations.new)
        yield visit.shown()
        turns = visit.conversation.turns
        for question in self.examples[event.index].questions:
            ask = partial(self.chat.ask, parts=question)
            async for shown in _answer(visit, visit.conversation.key, ask, settings):
                yield shown
            if visit.conversation.turns is turns or visit.conversation.turns[-1].ending == "stopped":
                return
            turns = visit.conversation.turns

    def stop(self, event: gr.EventData, secret: str) -> None:
        """End the answer that is being written."""
        visit = self._visit_at(secret, event.key)
        if visit.is_of(event.key):
            visit.conversation.stop()

    def look(self, event: gr.EventData, secret: str) -> Shown:
        """Tell a page how far an answer is, of which it has heard nothing for a while."""
        own = self.visitors.welcome(secret)
        visit = _Visit(own, own.find(event.key) or own.current)
        return self._attempt(visit, event.key, lambda: visit.check(event.key))

    def edit(self, event: gr.EventData, secret: str) -> Shown:
        """Hand the last question back to the editor."""
        visit, seen = self._visit_at(secret, event.key), _Seen.by(event)

        def take_back() -> dict[str, Any]:
            visit.check_unchanged(seen)
            return _once(parts=visit.conversation.take_back())

        return self._attempt(visit, seen.key, take_back)

    def rate(self, event: gr.EventData, secret: str) -> Shown:
        """Keep what the user says of an answer."""
        visit, seen = self._visit_at(secret, event.key), _Seen.by(event)

        def keep() -> None:
            visit.check_unchanged(seen)
            if self.feedback is not None:
                self.feedback.keep(visit.conversation, event.index, event.verdict)

        return self._attempt(visit, seen.key, keep)

    def save_zip(self, secret: str, key: str) -> Shown:
        """Hand over the conversation as a training dialogue."""
        return self._save(secret, key, ".zip", training_zip)

    def save_html(self, secret: str, key: str) -> Shown:
        """Hand over the conversation as a page."""
        return self._save(
            secret, key, ".html", lambda conversation: html_page(conversation, name=self.name).encode()
        )

    def _save(self, secret: str, key: str, suffix: str, write: Callable[[Conversation], bytes]) -> Shown:
        visit = self._visit_at(secret, key)

        def hand_over() -> dict[str, Any]:
            visit.check(key)
            url = data_url(write(visit.conversation), "application/octet-stream")
            return _once(file={"name": file_stem(visit.conversation) + suffix, "url": url})

        return self._attempt(visit, key, hand_over)

    def _attempt(self, visit: _Visit, key: str, task: Callable[[], dict[str, Any] | None]) -> Shown:
        """What the task hands over, or why it does not."""
        try:
            return visit.told(key, handover=task())
        except InputError as error:
            return visit.told(key, notice=str(error))

    async def _answer(
        self,
        event: gr.EventData,
        secret: str,
        ask: Callable[..., AsyncGenerator[Turn]],
        settings: Sequence[float],
        handover: dict[str, Any] | None = None,
    ) -> AsyncIterator[Shown]:
        visit, seen = self._visit_at(secret, event.key), _Seen.by(event)
        check = partial(visit.check_unchanged, seen)
        async for shown in _answer(visit, seen.key, ask, settings, handover, check=check):
            yield shown

    def _visit_at(self, secret: str, key: str) -> _Visit:
        return self._visit(secret, lambda own: own.open(key))

    def _visit(self, secret: str, choose: Callable[[Conversations], Conversation]) -> _Visit:
        own = self.visitors.welcome(secret)
        return _Visit(own, choose(own))


async def _answer(
    visit: _Visit,
    key: str,
    ask: Callable[..., AsyncGenerator[Turn]],
    settings: Sequence[float],
    handover: dict[str, Any] | None = None,
    *,
    check: Callable[[], object] = lambda: None,
) -> AsyncIterator[Shown]:
    """What the page shows while an answer grows.

    Args:
        key: of the conversation on the screen.
        ask: takes a conversation and `sampling`.
        handover: to the page, if there is no answer.
        check: raises InputError if there is to be none.
    """
    looked = None
    handover = handover and _once(**handover)
    try:
        check()
        async with aclosing(ask(visit.conversation, sampling=_sampling(*settings))) as turns:
            async for _ in turns:
                if looked is None:
                    yield visit.told(key)
                elif time.monotonic() > looked + _SECONDS:
                    yield _grown(visit)
                else:
                    continue
                looked = time.monotonic()
    except InputError as error:
        yield visit.told(key, notice=str(error), handover=handover)
    except Exception:  # a bug; the question is not to be lost with it
        log.exception("a question was not answered")
        yield visit.told(
            key, notice="The server failed at this question; its log says why.", handover=handover
        )
    else:
        yield _grown(visit)


def _grown(visit: _Visit) -> Shown:
    """An answer has grown, which matters only if the page still shows its conversation."""
    return view(visit.conversation), gr.skip()


def _sampling(
    temperature: float, top_p: float, beams: float, max_tokens: float, seed: float | None
) -> Sampling:
    return Sampling(
        max_tokens=int(max_tokens),
        temperature=temperature,
        top_p=top_p,
        beams=int(beams),
        seed=int(seed or 0) or None,  # None: its field is empty
    )


def _once(**given: Any) -> dict[str, Any]:
    """What the page takes but once, however often it is shown."""
    return {"key": secrets.token_urlsafe(8), **given}
