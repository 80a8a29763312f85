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

Shown = tuple[Any, Any, Any]
"""Of the visitor's secret, the chat and the list of conversations."""


@dataclass(frozen=True)
class _Visit:
    """Someone looks at one of their conversations."""

    secret: str
    own: Conversations
    conversation: Conversation

    def check(self, key: str | None) -> None:
        """Raise ChatError if the page shows another: the server was started again, or it was deleted elsewhere.

        A page that has only just come shows none yet.
        """
        if key and self.conversation.key != key:
            raise ChatError("The server has forgotten this conversation; go on in another one.")

    def shown(self, **more: Any) -> Shown:
        """The page shows it, whatever it showed before."""
        titles = [(one.title or UNTITLED, one.key) for one in self.own.all]
        listed = gr.Radio(choices=titles, value=self.conversation.key)
        return self.secret, view(self.conversation, opened=True, **more), listed


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

    def arrive(self, secret: str | None) -> Shown:
        """The page was loaded, for the first time or again."""
        return self._visit(secret, lambda own: own.current).shown()

    def new(self, secret: str | None) -> Shown:
        """Begin a conversation."""
        return self._visit(secret, Conversations.new).shown()

    def open(self, secret: str | None, key: str) -> Shown:
        """Go to a conversation."""
        return self._visit_at(secret, key).shown()

    def delete(self, secret: str | None, key: str) -> Shown:
        """Forget a conversation."""
        return self._visit(secret, lambda own: own.delete(key)).shown()

    def clear(self, secret: str | None) -> Shown:
        """Forget all conversations."""
        self._visit(secret, Conversations.new).own.clear()
        return self.arrive(secret)

    async def ask(self, event: gr.EventData, secret: str | None, *settings: float) -> AsyncIterator[Shown]:
        """Answer a question; one that cannot be asked goes back into the editor."""
        ask, handover = partial(self.chat.ask, parts=event.parts), {"parts": event.parts}
        async for shown in _answer(self._visit_at(secret, event.key), event.key, ask, settings, handover):
            yield shown

    async def retry(self, event: gr.EventData, secret: str | None, *settings: float) -> AsyncIterator[Shown]:
        """Answer the last question again."""
        async for shown in _answer(self._visit_at(secret, event.key), event.key, self.chat.retry, settings):
            yield shown

    async def example(
        self, event: gr.EventData, secret: str | None, *settings: float
    ) -> AsyncIterator[Shown]:
        """Ask the questions of an example, in a conversation of its own."""
        visit = self._visit(secret, Conversations.new)
        turns = visit.conversation.turns
        for question in self.examples[event.index].questions:
            ask = partial(self.chat.ask, parts=question)
            async for shown in _answer(visit, visit.conversation.key, ask, settings):
                yield shown
            if visit.conversation.turns is turns or visit.conversation.turns[-1].ending == "stopped":
                return
            turns = visit.conversation.turns

    def stop(self, event: gr.EventData, secret: str | None) -> None:
        """End the answer that is being written."""
        conversation = self._visit_at(secret, event.key).conversation
        if conversation.key == event.key:
            conversation.stop()

    def edit(self, event: gr.EventData, secret: str | None) -> Shown:
        """Hand the last question back to the editor."""
        return self._attempt(secret, event.key, lambda conversation: _once(parts=conversation.take_back()))

    def rate(self, event: gr.EventData, secret: str | None) -> Shown:
        """Keep what the user says of an answer."""

        def keep(conversation: Conversation) -> None:
            if self.feedback is not None:
                self.feedback.keep(conversation, event.index, event.verdict)

        return self._attempt(secret, event.key, keep)

    def save_zip(self, secret: str | None, key: str) -> Shown:
        """Hand over the conversation as a training dialogue."""
        return self._attempt(
            secret, key, lambda conversation: _file(conversation, ".zip", training_zip(conversation))
        )

    def save_html(self, secret: str | None, key: str) -> Shown:
        """Hand over the conversation as a page."""

        def write(conversation: Conversation) -> dict[str, Any]:
            return _file(conversation, ".html", html_page(conversation, name=self.name).encode())

        return self._attempt(secret, key, write)

    def _attempt(
        self, secret: str | None, key: str, task: Callable[[Conversation], dict[str, Any] | None]
    ) -> Shown:
        """What the task hands over, or why it does not."""
        visit = self._visit_at(secret, key)
        try:
            visit.check(key)
            return visit.shown(handover=task(visit.conversation))
        except InputError as error:
            return visit.shown(notice=str(error))

    def _visit_at(self, secret: str | None, key: str) -> _Visit:
        return self._visit(secret, lambda own: own.open(key))

    def _visit(self, secret: str | None, choose: Callable[[Conversations], Conversation]) -> _Visit:
        secret, own = self.visitors.welcome(secret)
        return _Visit(secret, own, choose(own))


async def _answer(
    visit: _Visit,
    key: str,
    ask: Callable[..., AsyncGenerator[Turn]],
    settings: Sequence[float],
    handover: dict[str, Any] | None = None,
) -> AsyncIterator[Shown]:
    """What the page shows while an answer grows.

    Args:
        key: of the conversation on the screen.
        ask: takes a conversation and `sampling`.
        handover: to the page, if there is no answer.
    """
    looked = None
    handover = handover and _once(**handover)
    try:
        visit.check(key)
        async with aclosing(ask(visit.conversation, sampling=_sampling(*settings))) as turns:
            async for _ in turns:
                if looked is None:
                    yield visit.shown()
                elif time.monotonic() > looked + _SECONDS:
                    yield _grown(visit)
                else:
                    continue
                looked = time.monotonic()
    except InputError as error:
        yield visit.shown(notice=str(error), handover=handover)
    except Exception:  # a bug; the question is not to be lost with it
        log.exception("a question was not answered")
        yield visit.shown(notice="The server failed at this question; its log says why.", handover=handover)
    else:
        yield _grown(visit)


def _grown(visit: _Visit) -> Shown:
    """An answer has grown, which matters only if the page still shows its conversation."""
    return gr.skip(), view(visit.conversation), gr.skip()


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


def _file(conversation: Conversation, suffix: str, content: bytes) -> dict[str, Any]:
    url = data_url(content, "application/octet-stream")
    return _once(file={"name": file_stem(conversation) + suffix, "url": url})


def _once(**given: Any) -> dict[str, Any]:
    """What the page takes but once, however often it is shown."""
    return {"key": secrets.token_urlsafe(8), **given}
