"""Who answers in the terminal: the engine of the web chat, word by word, or any `Responder`, whole answers.

Either writes into a `Conversation`. Ctrl-C while it does is a KeyboardInterrupt, after which the turn has `ending`
"stopped" and what there is of the answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from sparkles.serve.conversation import Chat, ChatError, Conversation, Part, Turn, Upload
from sparkles.serve.pictures import read_data_url
from sparkles.serve.prompts import without_placeholders
from sparkles.serve.question import Sampling
from sparkles.types import Message, Prompt, Responder


class Speaker(Protocol):
    """Answers the questions of conversations; see `Chat`, whose methods these are but for `await`."""

    def ask(
        self, conversation: Conversation, parts: Sequence[Part], sampling: Sampling
    ) -> Generator[Turn, None, None]:
        """The new turn, again and again while its answer grows."""
        ...

    def retry(self, conversation: Conversation, sampling: Sampling) -> Generator[Turn, None, None]:
        """Ask the last question again."""
        ...

    def check(self, sampling: Sampling) -> None:
        """Raise ChatError for what is not to be had."""
        ...


class LiveAnswers:
    """A `Chat`, for those who have no event loop."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def ask(
        self, conversation: Conversation, parts: Sequence[Part], sampling: Sampling
    ) -> Generator[Turn, None, None]:
        return _waited_for(self.chat.ask(conversation, parts, sampling))

    def retry(self, conversation: Conversation, sampling: Sampling) -> Generator[Turn, None, None]:
        return _waited_for(self.chat.retry(conversation, sampling))

    def check(self, sampling: Sampling) -> None:
        self.chat.check(sampling)


def _waited_for(turns: AsyncGenerator[Turn]) -> Generator[Turn, None, None]:
    with asyncio.Runner() as runner:
        try:
            while (turn := runner.run(_next(turns))) is not None:
                yield turn
        finally:  # Ctrl-C at any moment, and leaving, end the answer
            runner.run(turns.aclose())


async def _next(turns: AsyncGenerator[Turn]) -> Turn | None:
    return await anext(turns, None)


class WholeAnswers:
    """A `Responder`: one behind an endpoint, say. How it samples is its own affair."""

    def __init__(self, responder: Responder) -> None:
        self.responder = responder

    def ask(
        self, conversation: Conversation, parts: Sequence[Part], sampling: Sampling
    ) -> Generator[Turn, None, None]:
        question = tuple(
            part["text"] if "text" in part else Upload(read_data_url(part["picture"])) for part in parts
        )
        yield from self._answer(conversation, [*conversation.turns, Turn(question, sampling)])

    def retry(self, conversation: Conversation, sampling: Sampling) -> Generator[Turn, None, None]:
        if not conversation.turns:
            raise ChatError("nothing was asked yet")
        *earlier, last = conversation.turns
        again = Turn(last.question, sampling, tries=last.tries + 1)
        yield from self._answer(conversation, [*earlier, again])

    def check(self, sampling: Sampling) -> None:
        """Whatever it is, it is not heeded."""

    def _answer(self, conversation: Conversation, turns: list[Turn]) -> Generator[Turn, None, None]:
        before, conversation.turns, turn = conversation.turns, turns, turns[-1]
        try:
            yield turn
            with TemporaryDirectory(prefix="sparkles-") as folder:
                prompt = _with_files(conversation, Path(folder))
                [response] = self.responder.respond([replace(prompt, try_number=turn.tries)])
            if response.failure:
                raise ChatError(response.failure)
        except Exception:
            conversation.turns = before
            raise
        except BaseException:
            turn.ending = "stopped"
            raise
        turn.answer = without_placeholders(response.text)
        turn.ending = "length" if response.truncated else "stop"
        yield turn


def _with_files(conversation: Conversation, folder: Path) -> Prompt:
    """What is asked, with the pictures as files in `folder`."""
    prompt, uploads = conversation.prompt, conversation.uploads

    def located(message: Message) -> Message:
        images = []
        for image in message.images:
            upload = uploads[str(image.image_id)]
            path = folder / f"{image.image_id}{upload.suffix}"
            path.write_bytes(upload.content)
            images.append(replace(image, path=path))
        return replace(message, images=tuple(images))

    return replace(prompt, messages=tuple(map(located, prompt.messages)))
