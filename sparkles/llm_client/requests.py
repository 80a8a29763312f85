"""What is asked of an endpoint: messages with pictures at their word positions, and how to sample the reply."""

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import PIL.Image

from sparkles.prompt_format import IMAGE_TAG, check_tags
from sparkles.types import Image, InputError, Message

_SENT_AS_THEY_ARE = {"JPEG", "PNG", "WEBP", "GIF"}
"""Formats that every vision endpoint takes; others are sent as PNG."""


class RequestError(InputError):
    """A request that cannot be sent: a picture that is not there, a caption that is missing."""


@dataclass(frozen=True)
class ChatMessage:
    """One message as endpoints know it: pieces of text and pictures, in reading order."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | Image, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call: what is asked, of which model, with which settings.

    Pictures are named by their files and read when the call is made, so that ten thousand requests stay small.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    max_tokens: int
    """Limit on the reply; the budget reserves as much as this may cost."""
    temperature: float | None = 0.0
    """None leaves it to the endpoint: some models refuse to be told."""
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    """JSON schema of the reply, used where the endpoint has structured output. The messages must say it too."""
    try_number: int = 1
    """Another number asks the same again; the journal keeps each try."""
    draw_for: str = ""
    """Whom a sampled reply is for: requests that differ in nothing else are then drawn each for itself."""

    @cached_property
    def key(self) -> str:
        """sha256 of all that may change the reply, pictures by their bytes; the same for every endpoint.

        Raises:
            RequestError: a picture has no file or cannot be read.
        """
        described = {
            **self._sampling(),
            "model": self.model,
            "messages": [[message.role, *map(_described, message.content)] for message in self.messages],
            "max_tokens": self.max_tokens,
            "schema": self.schema,
            "try": self.try_number,
            **({"draw_for": self.draw_for} if self.draw_for else {}),
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(part for message in self.messages for part in message.content if isinstance(part, Image))

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of text and schema. No tokenizer that covers all bytes makes more tokens of them."""
        texts = [part for message in self.messages for part in message.content if isinstance(part, str)]
        schema = json.dumps(self.schema) if self.schema else ""
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in [*texts, schema])

    def payload(self, *, limit_name: str = "max_tokens", structured: bool = True) -> dict[str, Any]:
        """The body of the call, as `chat.completions.create` takes it.

        Raises:
            RequestError: a picture has no file or cannot be read.
        """
        body = {
            **self._sampling(),
            "model": self.model,
            "messages": [_message(message) for message in self.messages],
            limit_name: self.max_tokens,
        }
        if structured and self.schema is not None:
            form = {"name": "reply", "schema": self.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        return body

    def _sampling(self) -> dict[str, Any]:
        """The settings that are given."""
        given: dict[str, Any] = {"stop": list(self.stop)} if self.stop else {}
        for name, value in [("temperature", self.temperature), ("top_p", self.top_p)]:
            if value is not None:
                given[name] = float(value)  # 0 and 0.0 are one setting, and one key
        return given if self.seed is None else given | {"seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class ModerationRequest(Request):
    """Asks a provider's classifier what in a text is unfit to be published (OpenAI's `/moderations`)."""

    @classmethod
    def of(cls, model: str, text: str) -> "ModerationRequest":
        return cls(model=model, messages=(ChatMessage("user", (text,)),), max_tokens=0, temperature=None)

    def payload(self, *, limit_name: str = "", structured: bool = False) -> dict[str, Any]:
        """The body of the call, as `moderations.create` takes it."""
        (message,) = self.messages
        return {"model": self.model, "input": "".join(map(str, message.content))}


def chat_messages(
    messages: Sequence[Message], *, system: str = "", captions: bool = False
) -> tuple[ChatMessage, ...]:
    """A dialogue as an endpoint takes it: each tag becomes its picture, or with `captions` what it shows in words.

    Raises:
        RequestError: `captions`, and an image has none.
        PromptFormatError: tags and images of a message do not match.

    >>> cat = Image(image_id=7, caption="A cat.")
    >>> asked = Message(role="user", content="Is IMAGE#7<Img><ImageHere></Img> a dog?", images=(cat,))
    >>> chat_messages([asked], captions=True)[0].content
    ('Is IMAGE#7 [caption: A cat.] a dog?',)
    >>> [type(part).__name__ for part in chat_messages([asked])[0].content]
    ['str', 'Image', 'str']
    """
    start = (ChatMessage("system", (system,)),) if system else ()
    return start + tuple(
        ChatMessage(message.role, _content(message, f"message {index}", captions))
        for index, message in enumerate(messages)
    )


def _content(message: Message, where: str, captions: bool) -> tuple[str | Image, ...]:
    check_tags(message.content, message.images, where)
    first, *rest = message.content.split(IMAGE_TAG)
    if captions:
        pairs = zip(message.images, rest, strict=True)
        return (first + "".join(f" [caption: {_caption(image)}]{text}" for image, text in pairs),)
    parts: list[str | Image] = [first]
    for image, text in zip(message.images, rest, strict=True):
        parts += [image, text]
    return tuple(part for part in parts if part != "")


def _caption(image: Image) -> str:
    if not image.caption.strip():
        raise RequestError(
            f"image {image.image_id} has no caption to stand in its place; "
            "add one to its annotations, or ask a model that sees pictures"
        )
    return " ".join(image.caption.split())


def _message(message: ChatMessage) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.content):  # text-only endpoints know no parts
        return {"role": message.role, "content": _encodable("".join(map(str, message.content)))}
    return {"role": message.role, "content": [_part(part) for part in message.content]}


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": _encodable(part)}
    return {"type": "image_url", "image_url": {"url": _data_url(part)}}


def _encodable(text: str) -> str:
    r"""The text with halves of surrogate pairs, which a model's answer may hold, replaced: UTF-8 has none.

    >>> _encodable("a cat \ud83d").encode()
    b'a cat \xef\xbf\xbd'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _described(part: str | Image) -> Any:
    """A piece of content as it enters the key."""
    if isinstance(part, str):
        return part
    return {"sha256": hashlib.sha256(_file_bytes(part)).hexdigest(), "box": part.box}


def _data_url(image: Image) -> str:
    """The picture's file as it is, or as PNG where it is cropped or of a rare format."""
    content = _file_bytes(image)
    try:
        with PIL.Image.open(io.BytesIO(content)) as picture:
            kind = picture.format
            if image.box is not None or kind not in _SENT_AS_THEY_ARE:
                file = io.BytesIO()
                picture.convert("RGB").crop(image.box).save(file, "PNG")
                content, kind = file.getvalue(), "PNG"
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise RequestError(
            f"cannot read {image.path} (image {image.image_id}) as a picture: {error}"
        ) from error
    return f"data:{PIL.Image.MIME[kind]};base64,{base64.b64encode(content).decode()}"


def _file_bytes(image: Image) -> bytes:
    if image.path is None:
        raise RequestError(f"image {image.image_id} has no path; read its annotations with an image folder")
    try:
        return image.path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {image.path} (image {image.image_id}): {error.strerror}") from error
