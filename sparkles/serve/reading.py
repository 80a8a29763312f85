"""From a request to a question that the engine can be asked, or to what is wrong with it."""

import asyncio
import copy
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sparkles.data.encoding import Encoded
from sparkles.serve.engine import Engine
from sparkles.serve.errors import ApiError
from sparkles.serve.limits import CHARACTERS_PER_TOKEN, Limits
from sparkles.serve.moderation import Moderation, RefusedError, look
from sparkles.serve.pictures import PictureError, PublicWeb, read_data_url
from sparkles.serve.prompts import ConversationError, Said, to_messages, without_placeholders
from sparkles.serve.protocol import ChatRequest, ImagePart
from sparkles.serve.question import Question, Sampling
from sparkles.types import InputError, Message, Prompt


@dataclass(frozen=True)
class _Conversation:
    messages: tuple[Message, ...]
    instructions: str
    """What the client's system messages say."""
    urls: Sequence[str]
    """Of the pictures, in order."""


class RequestReader:
    """Checks requests against the limits, and reads their text and pictures.

    Args:
        defaults: of what a request does not say.
        image_urls: fetch pictures from http and https URLs, not from data URLs alone.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        limits: Limits,
        defaults: Sampling,
        image_urls: bool = False,
        moderation: Moderation | None = None,
    ) -> None:
        self.engine = engine
        self.limits = limits
        self.defaults = defaults
        self.moderation = moderation
        web = PublicWeb(max_bytes=limits.body_bytes, seconds=limits.body_seconds)
        self.web = web if image_urls else None
        # Few at a time: unpacked, pictures take a hundred times the memory. And text need not wait for pictures.
        self._lookers = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), "pictures")

    async def read(self, request: ChatRequest) -> Question:
        """The question.

        Raises:
            ApiError: it is not to be asked.
        """
        sampling, choices = self._sampling(request), request.n or 1
        if choices > (most := min(self.limits.choices, self.engine.max_batch_size)):
            raise ApiError(400, f"n is {choices}; at most {most} choices are given", param="n")
        try:
            conversation = self._conversation(request)
            # First: to read pictures costs more than to find the text too long.
            encoded = await asyncio.to_thread(self._encode, conversation)
            contents = await self._contents(conversation.urls)
            threads = self._lookers if contents else None
            pixels = await asyncio.get_running_loop().run_in_executor(
                threads, self._look, conversation, contents
            )
        except ConversationError as error:
            raise ApiError(400, str(error), param="messages") from error
        except PictureError as error:
            raise ApiError(400, str(error), param="messages", code="invalid_image") from error
        except RefusedError as error:
            raise ApiError(400, str(error), param="messages", code="content_filter") from error
        return Question(encoded=encoded, pixel_values=pixels, sampling=sampling, choices=choices)

    def _sampling(self, request: ChatRequest) -> Sampling:
        if request.unheeded:
            names = ", ".join(request.unheeded)
            raise ApiError(
                400,
                f"{names} cannot be heeded by this model; leave it out",
                param=request.unheeded[0],
                code="unsupported_parameter",
            )
        if request.top_logprobs is not None and not request.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="logprobs")
        limits = self.limits
        if len(request.stops) > limits.stops or not all(
            1 <= len(stop) <= limits.stop_characters for stop in request.stops
        ):
            raise ApiError(
                400,
                f"stop takes up to {limits.stops} strings of 1 to {limits.stop_characters} characters",
                param="stop",
            )
        given: dict[str, Any] = {
            "max_tokens": request.max_completion_tokens or request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
        }
        try:
            sampling = replace(
                self.defaults,
                stop=request.stops,
                top_log_probs=(request.top_logprobs or 0) if request.logprobs else None,
                **{name: value for name, value in given.items() if value is not None},
            )
        except InputError as error:
            raise ApiError(400, str(error)) from error
        if sampling.max_tokens > limits.tokens:
            raise ApiError(
                400,
                f"max_tokens is {sampling.max_tokens}; at most {limits.tokens} are given",
                param="max_tokens",
            )
        return sampling

    def _conversation(self, request: ChatRequest) -> _Conversation:
        limits = self.limits
        if len(request.messages) > limits.messages:
            raise ApiError(
                400, f"{len(request.messages)} messages; at most {limits.messages} are read", param="messages"
            )
        instructions: list[str] = []
        said: list[Said] = []
        urls: list[str] = []
        for message in request.messages:
            shown = [part.image_url.url for part in message.parts if isinstance(part, ImagePart)]
            parts = [None if isinstance(part, ImagePart) else part.text for part in message.parts]
            if message.role == "user" or message.role == "assistant":
                said.append(Said(message.role, parts))
                urls += shown
            elif shown:
                raise ConversationError(f"a {message.role} message holds a picture; only the user's may")
            else:
                instructions.append(without_placeholders("".join(filter(None, parts))))
        if len(urls) > limits.images:
            raise ApiError(400, f"{len(urls)} images; at most {limits.images} are seen", param="messages")
        return _Conversation(to_messages(said), "\n".join(instructions), urls)

    def _encode(self, conversation: _Conversation) -> Encoded:
        encoder = copy.copy(self.engine.encoder)
        encoder.cut_anywhere = True  # tells how long all is, rather than to leave out turn after turn
        if conversation.instructions:
            # Behind the house's own, which tells the model what an image is.
            system_message = f"{encoder.prompt_format.system_message} {conversation.instructions}".strip()
            encoder.prompt_format = replace(encoder.prompt_format, system_message=system_message)
        texts = [conversation.instructions, *(message.content for message in conversation.messages)]
        room = encoder.max_prompt_length
        if sum(map(len, texts)) > CHARACTERS_PER_TOKEN * room:
            raise _too_long(room, "many more")
        encoded = encoder.encode_prompt(Prompt(messages=conversation.messages))
        if encoded.dropped_tokens:
            raise _too_long(room, str(room + encoded.dropped_tokens))
        return encoded

    def _look(self, conversation: _Conversation, contents: Sequence[bytes]) -> list[Tensor]:
        asked = [message.content for message in conversation.messages]
        return look(
            "\n".join([conversation.instructions, *asked]),
            contents,
            transform=self.engine.transform,
            max_pixels=self.limits.image_pixels,
            moderation=self.moderation,
        )

    async def _contents(self, urls: Sequence[str]) -> list[bytes]:
        """Of all; where one is not to be had, none is waited for."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._content(url)) for url in urls]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _content(self, url: str) -> bytes:
        if url.startswith("data:"):
            return read_data_url(url)
        if self.web is not None:
            return await self.web.fetch(url)
        raise PictureError("images are not fetched from URLs here; send them as data:image/...;base64,...")


def _too_long(room: int, needed: str) -> ApiError:
    return ApiError(
        400,
        f"the conversation needs {needed} tokens, those of its images among them, but this model reads {room}; "
        "leave out its oldest turns",
        param="messages",
        code="context_length_exceeded",
    )
