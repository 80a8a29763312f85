"""From what a client sends to a prompt of the house: pictures become references at the words where they stand."""

from collections.abc import Sequence
from dataclasses import dataclass

from sparkles.prompt_format import IMAGE_PLACEHOLDER, IMAGE_TAG, image_reference, strip_tags, trailing_id
from sparkles.types import Image, InputError, Message, Role

_OPENING = tuple("([{'\"")


class ConversationError(InputError):
    """Messages that are no conversation which waits for an answer."""


@dataclass(frozen=True)
class Said:
    """One message of a client: pieces of text and, as `None`, the places of pictures."""

    role: Role
    parts: Sequence[str | None]


def without_placeholders(text: str) -> str:
    """A placeholder typed by hand, or by the model, would be taken for a picture that is not there."""
    # A space in its place, so that what stood around it forms no new one.
    return strip_tags(text).replace(IMAGE_PLACEHOLDER, " ")


def to_messages(said: Sequence[Said]) -> tuple[Message, ...]:
    """The dialogue, with images numbered through, or with the names that the text in front of them says.

    Messages of one side in a row become one, a line each.

    Raises:
        ConversationError: it does not begin and end with the user, or the assistant shows a picture.

    >>> messages = to_messages([Said("user", ["Compare", None, "with IMAGE#7", None, "."])])
    >>> print(messages[0].content)
    Compare IMAGE#1<Img><ImageHere></Img> with IMAGE#7<Img><ImageHere></Img>.
    >>> [image.image_id for image in messages[0].images]
    ['1', '7']
    """
    messages: list[Message] = []
    names: list[str] = []
    for one in said:
        if one.role == "assistant" and None in one.parts:
            raise ConversationError("an assistant message holds a picture; only the user's may")
        content, shown = _interleaved(one.parts, names)
        images = tuple(Image(image_id=name) for name in shown)
        names += shown
        if messages and messages[-1].role == one.role:
            last = messages.pop()
            content, images = f"{last.content}\n{content}", last.images + images
        messages.append(Message(role=one.role, content=content, images=images))
    if not messages or {messages[0].role, messages[-1].role} != {"user"}:
        roles = ", ".join(message.role for message in messages) or "none"
        raise ConversationError(f"a conversation begins and ends with a user message; got the roles {roles}")
    return tuple(messages)


def _interleaved(parts: Sequence[str | None], taken: Sequence[str]) -> tuple[str, list[str]]:
    """The text with its references, and their names, of which none is in `taken`."""
    content = ""
    names: list[str] = []
    after_image = False
    for part in parts:
        if part is not None:
            text = without_placeholders(part)
            touches = (after_image or content[-1:].isalnum()) and text[:1].isalnum()
            content += (" " if touches else "") + text
            after_image = after_image and not text
            continue
        named = trailing_id(content)
        if named and named not in (*taken, *names):
            names.append(named)
            content += IMAGE_TAG
        else:
            names.append(_next_number((*taken, *names)))
            touches = bool(content) and not content[-1].isspace() and not content.endswith(_OPENING)
            content += (" " if touches else "") + image_reference(names[-1])
        after_image = True
    return content, names


def _next_number(taken: Sequence[str]) -> str:
    """The number of the next picture, or one that no text gave to another.

    >>> _next_number(["2"]), _next_number(["1", "7"])
    ('3', '3')
    """
    number = len(taken) + 1
    while str(number) in taken:
        number += 1
    return str(number)
