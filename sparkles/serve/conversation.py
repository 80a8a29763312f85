"""Conversations of the web chat: what was asked and answered, what the model still sees of it, and how it goes on.

    chat = Chat(engine)
    conversation = Conversation()
    question = [{"text": "What is in "}, {"picture": "data:image/png;base64,..."}, {"text": "?"}]
    async for turn in chat.ask(conversation, question, sampling):
        print(turn.answer)

Nothing here knows of the page that shows it, and nothing is written to disk.
"""

import asyncio
import hashlib
import io
import re
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

from sparkles.data.encoding import EncodingError
from sparkles.prompt_format import strip_tags
from sparkles.serve.engine import Engine
from sparkles.serve.limits import CHARACTERS_PER_TOKEN, Limits
from sparkles.serve.moderation import Moderation, look, moderated
from sparkles.serve.pictures import data_url, decode, read_data_url
from sparkles.serve.prompts import Said, to_messages, without_placeholders
from sparkles.serve.question import (
    SEEDS,
    EngineError,
    FinishReason,
    FullError,
    LateError,
    Piece,
    Question,
    Sampling,
)
from sparkles.types import InputError, Message, Prompt, images_of

Part = Mapping[str, str]
"""What the editor holds at one place: `{"text": "..."}`, or `{"picture": "data:image/...;base64,..."}`."""
Ending = FinishReason | Literal["", "stopped"]
"""How an answer ended; "" while it is written, "stopped" if the user wanted no more of it."""
Verdict = Literal["good", "bad", "flagged"]

_TITLE_CHARACTERS = 48
_SECRET = re.compile(r"[\w-]{43}", re.ASCII)
"""32 bytes."""


class ChatError(InputError):
    """What the user is told when something cannot be done; the conversation is as it was."""


@dataclass(frozen=True, eq=False)
class Upload:
    """A picture that the user gave."""

    content: bytes
    """A JPEG if it came as one, else a PNG; upright, and without what cameras write beside the pixels."""

    @property
    def suffix(self) -> str:
        """Of its file."""
        return ".jpg" if _is_jpeg(self.content) else ".png"

    @cached_property
    def digest(self) -> str:
        """The same for the same picture."""
        return hashlib.sha256(self.content).hexdigest()[:16]

    @cached_property
    def data_url(self) -> str:
        """For an <img>, and for the editor."""
        return data_url(self.content, "image/jpeg" if _is_jpeg(self.content) else "image/png")


@dataclass(eq=False)
class Turn:
    """A question and its answer, which grows while it is written."""

    question: tuple[str | Upload, ...]
    sampling: Sampling
    answer: str = ""
    ending: Ending = ""
    tries: int = 1
    """Answers to this question so far, of which the last is kept."""
    verdict: Verdict | None = None
    """What the user said about the answer."""

    @property
    def parts(self) -> list[dict[str, str]]:
        """The question as the editor had it."""
        return [
            {"text": part} if isinstance(part, str) else {"picture": part.data_url} for part in self.question
        ]

    @property
    def uploads(self) -> list[Upload]:
        """The pictures of the question, in order."""
        return [part for part in self.question if isinstance(part, Upload)]

    @property
    def said(self) -> list[Said]:
        """Question and answer."""
        parts = [part if isinstance(part, str) else None for part in self.question]
        return [Said("user", parts), Said("assistant", [self.answer])]


@dataclass(eq=False)
class Conversation:
    """Turns about pictures, which are numbered through: IMAGE#1, IMAGE#2, ..."""

    turns: list[Turn] = field(default_factory=list)
    forgotten: int = 0
    """Oldest turns that the model did not see when it wrote the last answer, since all would not fit."""
    key: str = field(default_factory=lambda: secrets.token_urlsafe(8))
    _stop: Callable[[], object] | None = field(default=None, init=False)

    @property
    def title(self) -> str:
        """The beginning of the first question; "" before there is one."""
        title = " ".join(strip_tags(self.messages[0].content).split()) if self.turns else ""
        return title if len(title) <= _TITLE_CHARACTERS else title[: _TITLE_CHARACTERS - 1].rstrip() + "…"

    @property
    def answering(self) -> bool:
        """Whether an answer is being written."""
        return self._stop is not None

    @property
    def messages(self) -> tuple[Message, ...]:
        """Two for each turn, question and answer; `messages[2 * i].images` are the pictures of `turns[i]`, numbered."""
        if not self.turns:
            return ()
        *said, last = [one for turn in self.turns for one in turn.said]
        answer = Message(role="assistant", content=without_placeholders("".join(filter(None, last.parts))))
        return (*to_messages(said), answer)

    @property
    def uploads(self) -> dict[str, Upload]:
        """All pictures by number, as `Image.image_id` spells it: "1", "2", ..."""
        uploads = [upload for turn in self.turns for upload in turn.uploads]
        images = images_of(self.messages)
        return {str(image.image_id): upload for image, upload in zip(images, uploads, strict=True)}

    @property
    def prompt(self) -> Prompt:
        """What the last question comes to. One that was never answered is read as the beginning of the next."""
        said = [one for turn in self.turns for one in turn.said]
        heard = [one for one in said[:-1] if one.role == "user" or any(one.parts)]
        return Prompt(messages=to_messages(heard), item_id=self.key)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, roughly."""
        parts = (part for turn in self.turns for part in (turn.answer, *turn.question))
        return sum(map(_num_bytes, parts))

    def stop(self) -> None:
        """End the answer that is being written, from any thread; what there is of it stays."""
        if self._stop is not None:
            self._stop()

    def take_back(self) -> list[dict[str, str]]:
        """Remove the last turn; its question, for the editor ([] if there is none).

        Raises:
            ChatError: its answer is still being written.
        """
        self.check_idle()
        return self.turns.pop().parts if self.turns else []

    def check_idle(self) -> None:
        """Raise ChatError while an answer is being written."""
        if self.answering:
            raise ChatError("an answer is still being written; wait for its end, or stop it")


class Chat:
    """Asks one engine on behalf of all conversations, within limits.

    Args:
        moderation: reads what the model would see, and what it answers. Answers are then shown when they are complete.
    """

    def __init__(
        self, engine: Engine, *, limits: Limits | None = None, moderation: Moderation | None = None
    ) -> None:
        self.engine = engine
        self.limits = limits or Limits()
        self.moderation = moderation

    async def ask(
        self, conversation: Conversation, parts: Sequence[Part], sampling: Sampling
    ) -> AsyncGenerator[Turn]:
        """The new turn, again and again while its answer grows; `turn.ending` is set in the last.

        The first comes before there is an answer. To stop listening, or `Conversation.stop`, stops the answer.

        Raises:
            ChatError: the question cannot be asked or answered; it is not part of the conversation then.
        """
        try:
            question = await asyncio.to_thread(self._read, conversation, parts)
        except InputError as error:
            raise ChatError(str(error)) from error
        async with aclosing(
            self._answer(conversation, [*conversation.turns, Turn(question, sampling)])
        ) as turns:
            async for turn in turns:
                yield turn

    async def retry(self, conversation: Conversation, sampling: Sampling) -> AsyncGenerator[Turn]:
        """Ask the last question again; as `ask`. Where tokens are drawn by a seed, by another one than before.

        Raises:
            ChatError: there is no question, or no other answer; the one that was there stays.
        """
        if not conversation.turns:
            raise ChatError("nothing was asked yet")
        *earlier, last = conversation.turns
        if sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + last.tries) % SEEDS)
        again = Turn(last.question, sampling, tries=last.tries + 1)
        async with aclosing(self._answer(conversation, [*earlier, again])) as turns:
            async for turn in turns:
                yield turn

    async def _answer(self, conversation: Conversation, turns: list[Turn]) -> AsyncGenerator[Turn]:
        """Let `turns` be those of the conversation, and write the answer of the last."""
        conversation.check_idle()
        self.check(turns[-1].sampling)
        stopped = asyncio.Event()
        conversation._stop = partial(asyncio.get_running_loop().call_soon_threadsafe, stopped.set)
        before = conversation.turns, conversation.forgotten
        conversation.turns, turn = turns, turns[-1]
        try:
            yield turn
            question, conversation.forgotten = await asyncio.to_thread(self._encode, conversation)
            with self.engine.place():
                async with aclosing(_until(stopped, self.engine.answer(question))) as pieces:
                    async for written in pieces:
                        piece = await moderated(written, self.moderation)
                        turn.answer += piece.text
                        turn.ending = piece.finish_reason or ""
                        yield turn
            if not turn.ending:
                turn.ending = "stopped"
                yield turn
        except Exception as error:
            conversation.turns, conversation.forgotten = before
            if isinstance(error, InputError | FullError | LateError | EngineError):
                raise ChatError(str(error)) from error
            raise
        finally:
            turn.ending = turn.ending or "stopped"  # nobody listens any more
            conversation._stop = None

    def check(self, sampling: Sampling) -> None:
        """Raise ChatError for what is not to be had; the page's own limits bind those alone who use the page."""
        for name, lowest, highest in (
            ("max_tokens", 1, self.limits.tokens),
            ("temperature", 0, 2),
            ("top_p", 0, 1),
            ("beams", 1, self.limits.beams),
            ("seed", 0, SEEDS - 1),
        ):
            value = getattr(sampling, name)
            if value is not None and not lowest <= value <= highest:
                raise ChatError(f"{name} is {value}; expected {lowest} to {highest}")

    def _read(self, conversation: Conversation, parts: Sequence[Part]) -> tuple[str | Upload, ...]:
        """The question; its pictures are read last, which costs the most."""
        limits = self.limits
        contents = [_content(part) for part in parts]
        texts = [content for part, content in zip(parts, contents, strict=True) if "text" in part]
        num_images = len(parts) - len(texts)
        if not num_images and not "".join(texts).strip():
            raise ChatError("the question is empty; write something, or add a picture")
        if num_images > limits.images:
            raise ChatError(f"{num_images} pictures in a question; at most {limits.images} are seen")
        if sum(map(len, texts)) > CHARACTERS_PER_TOKEN * self.engine.encoder.max_prompt_length:
            raise self._too_long()
        question: list[str | Upload] = []
        num_bytes = conversation.num_bytes
        for part, content in zip(parts, contents, strict=True):
            is_text = "text" in part
            question.append(content.encode(errors="replace").decode() if is_text else self._upload(content))
            num_bytes += _num_bytes(question[-1])
            if num_bytes > limits.body_bytes or 2 * len(conversation.turns) >= limits.messages:
                raise ChatError("the conversation has become too large; begin a new one")
        return tuple(question)

    def _upload(self, url: str) -> Upload:
        content = read_data_url(url)
        picture = decode(content, max_pixels=self.limits.image_pixels)
        is_jpeg = _is_jpeg(content)
        if not is_jpeg or b"Exif\0\0" in content:
            file = io.BytesIO()
            picture.save(file, "JPEG" if is_jpeg else "PNG", quality=95)
            content = file.getvalue()
        return Upload(content)

    def _encode(self, conversation: Conversation) -> tuple[Question, int]:
        """What the engine is asked, and how many turns are no part of it."""
        prompt = conversation.prompt
        messages = prompt.messages
        while len(images_of(messages)) > self.limits.images and len(messages) > 1:
            messages = messages[2:]
        try:
            encoded = self.engine.encoder.encode_prompt(replace(prompt, messages=messages))
        except EncodingError as error:
            raise self._too_long() from error
        uploads = conversation.uploads
        pixels = look(
            "\n".join(message.content for message in messages),
            (uploads[str(image.image_id)].content for image in encoded.images),
            transform=self.engine.transform,
            max_pixels=self.limits.image_pixels,
            moderation=self.moderation,
        )
        question = Question(
            encoded=encoded,
            pixel_values=pixels,
            sampling=conversation.turns[-1].sampling,
            in_pieces=self.moderation is None,
        )
        dropped = encoded.dropped_turns + (len(prompt.messages) - len(messages)) // 2
        answered = [index for index, turn in enumerate(conversation.turns, start=1) if turn.answer]
        return question, answered[dropped - 1] if dropped else 0

    def _too_long(self) -> ChatError:
        encoder = self.engine.encoder
        return ChatError(
            f"the question is too long: the model reads {encoder.max_prompt_length} tokens, "
            f"and a picture takes {encoder.num_query_tokens} of them; shorten it, or leave out pictures"
        )


class Conversations:
    """Those of one visitor, newest first; there is always a current one."""

    MOST = 50
    """Above, the oldest is forgotten."""

    def __init__(self) -> None:
        self.current = Conversation()
        self.all = [self.current]

    @property
    def num_bytes(self) -> int:
        """What they take in memory, roughly."""
        return sum(conversation.num_bytes for conversation in self.all)

    def new(self) -> Conversation:
        """An empty one becomes the current one; there is no more than one such."""
        if empty := next((one for one in self.all if not one.turns), None):
            self.current = empty
        else:
            self.current = Conversation()
            self.all.insert(0, self.current)
            self._forget(self.all[self.MOST :])
        return self.current

    def find(self, key: str) -> Conversation | None:
        return next((one for one in self.all if one.key == key), None)

    def open(self, key: str) -> Conversation:
        """The one of this key becomes the current one; an unknown key changes nothing."""
        self.current = self.find(key) or self.current
        return self.current

    def delete(self, key: str) -> Conversation:
        """Stop and forget it; the current one afterwards."""
        self._forget([one for one in self.all if one.key == key])
        if self.current not in self.all:
            self.current = self.all[0] if self.all else Conversation()
            self.all = self.all or [self.current]
        return self.current

    def clear(self) -> None:
        """Stop and forget all."""
        for conversation in list(self.all):
            self.delete(conversation.key)

    def _forget(self, conversations: Sequence[Conversation]) -> None:
        for conversation in conversations:
            conversation.stop()
            self.all.remove(conversation)


class Visitors:
    """Who talks, by a secret that the browser makes and keeps: conversations are there again when a page is reloaded.

    Args:
        most: visitors that are known.
        max_bytes: of the conversations of all. Above either, who was longest not seen is forgotten.
    """

    def __init__(self, *, most: int = 1_000, max_bytes: int = 1_000_000_000) -> None:
        self.most = most
        self.max_bytes = max_bytes
        self._known: OrderedDict[str, Conversations] = OrderedDict()

    def welcome(self, secret: str) -> Conversations:
        """The conversations behind a secret; none yet, if it is not known.

        Raises:
            ChatError: others could guess it.
        """
        if not _SECRET.fullmatch(secret or ""):
            raise ChatError("expected a secret of 43 letters, digits, - and _; load the page again")
        if secret not in self._known:
            self._known[secret] = Conversations()
        self._known.move_to_end(secret)
        excess = sum(one.num_bytes for one in self._known.values()) - self.max_bytes
        while len(self._known) > self.most or (excess > 0 and len(self._known) > 1):
            _, longest_gone = self._known.popitem(last=False)
            excess -= longest_gone.num_bytes
            longest_gone.clear()
        return self._known[secret]

    def stop(self) -> None:
        """End all answers that are being written; from any thread."""
        for conversations in list(self._known.values()):
            for conversation in list(conversations.all):
                conversation.stop()


async def _until(stopped: asyncio.Event, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    """The pieces, until there are no more or the event is set."""
    stopping = asyncio.ensure_future(stopped.wait())
    following = asyncio.ensure_future(anext(pieces))
    try:
        while True:
            await asyncio.wait([following, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            yield following.result()
            following = asyncio.ensure_future(anext(pieces))
    except StopAsyncIteration:
        return
    finally:
        stopping.cancel()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await pieces.aclose()


def _content(part: Part) -> str:
    """The text or the data URL that stands there."""
    match part:
        case {"text": str(content)} | {"picture": str(content)}:
            return content
    raise ChatError(f"a question consists of texts and pictures, got {part!r:.60}")


def _num_bytes(part: str | Upload) -> int:
    return len(part if isinstance(part, str) else part.content)


def _is_jpeg(content: bytes) -> bool:
    return content.startswith(b"\xff\xd8")
