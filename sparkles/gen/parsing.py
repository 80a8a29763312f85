"""What a language model replied, read as dialogues. Nothing is dropped in silence: what is rejected has a reason.

Asked for JSON, models send JSON, Python literals with any quotes inside, fences, prose around and between dialogues,
bare messages, "caption" for "content", fields in any order, and replies that end in the middle. Reading goes from
messages, `{"role": ..., "image_ids": [...], "content": ...}`, to dialogues: messages with nothing but commas between
them belong together.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import json_repair

from sparkles.gen.tagging import ImageId, TaggingError, mentioned_ids, tag_images
from sparkles.prompt_format import IMAGE_PLACEHOLDER, image_mention, strip_tags
from sparkles.types import Dialogue, Image, Message, Role

ROLES: tuple[Role, Role] = ("user", "assistant")

_KEY = r"""["'](?:role|image_ids|content|caption)["']\s*:"""
_TEXT = re.compile(
    # The quote that ends a text is the one behind which the next field begins, or the message ends.
    r"""(["'](?:content|caption)["']\s*:\s*)(["'])((?:\\.|[^\\])*?)\2"""
    r"""(?=\s*(?:,\s*["'][\w -]+["']\s*:|,?\s*\}[ \t]*(?:,\s*[\[{\]]|[]{}\n`]|\Z)))""",
    re.DOTALL,
)
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\.", re.DOTALL)
_STRING = r'"(?:[^"\\]++|\\.)*+'
_OBJECT = re.compile(rf'\{{(?:[^{{}}"]++|{_STRING}")*+(?:(?P<end>\}})|(?:{_STRING})?\Z)', re.DOTALL)


class Reason(StrEnum):
    """Why a dialogue was rejected; what rejects are counted by."""

    NO_DIALOGUE = "no dialogue in the reply"
    UNREADABLE = "a message that cannot be read"
    CUT_OFF = "the reply ends within the dialogue"
    NUM_MESSAGES = "wrong number of messages"
    ROLES = "roles do not alternate"
    TEXT = "a text that is empty or unfinished"
    UNKNOWN_IMAGE = "an image that was no candidate"
    NOT_MENTIONED = "an image that the text does not mention"
    NUM_IMAGES = "wrong number of images"
    DECLINED = "declined by the model or its provider"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A part of a reply that is no good dialogue."""

    reason: Reason
    detail: str
    text: str
    """The part, its texts in JSON's spelling; the whole reply if there is no dialogue in it."""


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """All that came of one reply."""

    dialogues: tuple[Dialogue, ...] = ()
    rejected: tuple[Rejected, ...] = ()


def parse_reply(
    reply: str,
    candidates: Iterable[Image],
    *,
    num_turns: int | None = 2,
    images_in_later_turns: int | None = 1,
) -> Parsed:
    """The well-formed dialogues of a reply, with image tags set, and the rest with reasons.

    A user message that lists no images shows the candidates that it is the first to mention. A role that is neither
    user nor assistant is taken for the one whose turn it is.

    Args:
        candidates: the images that the model could choose from; any other id rejects the dialogue.
        num_turns: of each dialogue; None for any.
        images_in_later_turns: new images in each user message after the first, which has one or more; None for any.
    """
    pool = {str(image.image_id): image for image in candidates}
    accepted, rejected = [], []
    for text, messages in _dialogues(reply):
        try:
            dialogue = _dialogue(messages, pool)
            _check_counts(dialogue, num_turns, images_in_later_turns)
        except _Defect as defect:
            rejected.append(Rejected(reason=defect.reason, detail=defect.detail, text=text))
        else:
            accepted.append(dialogue)
    if not accepted and not rejected:
        rejected.append(Rejected(reason=Reason.NO_DIALOGUE, detail="no message found", text=reply))
    return Parsed(dialogues=tuple(accepted), rejected=tuple(rejected))


class _Defect(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def _dialogues(reply: str) -> Iterator[tuple[str, list[Mapping[str, Any] | None]]]:
    """Text and messages of each dialogue; a message is None where the reply ends within it, {} if unreadable."""
    reply = _TEXT.sub(_as_json, reply)
    end = 0
    for group in _groups(reply, [match for match in _OBJECT.finditer(reply) if re.search(_KEY, match[0])]):
        yield from _unread(reply[end : group[0].start()])
        end = group[-1].end()
        yield reply[group[0].start() : end], [_message(match) for match in group]
    yield from _unread(reply[end:])


def _unread(text: str) -> Iterator[tuple[str, list[Mapping[str, Any] | None]]]:
    """What lies between dialogues, if it looks like a message."""
    if re.search(_KEY, text):
        yield text, [{}]


def _groups(reply: str, objects: Sequence[re.Match[str]]) -> Iterator[list[re.Match[str]]]:
    """The objects of each dialogue: those with nothing but commas between them."""
    group: list[re.Match[str]] = []
    for match in objects:
        if group and reply[group[-1].end() : match.start()].strip(", \t\r\n"):
            yield group
            group = []
        group.append(match)
    if group:
        yield group


def _as_json(field: re.Match[str]) -> str:
    """The field with its text in JSON's spelling, whatever quotes and escapes it was written with."""
    key, _, text = field.groups()
    return key + json.dumps(_ESCAPE.sub(_unescaped, text), ensure_ascii=False)


def _unescaped(escape: re.Match[str]) -> str:
    try:
        return json.loads(f'"{escape[0]}"')
    except json.JSONDecodeError:
        return "'" if escape[0] == r"\'" else escape[0]  # Python's, or a backslash that stands for itself


def _message(match: re.Match[str]) -> Mapping[str, Any] | None:
    if not match["end"]:
        return None
    try:
        message = json_repair.loads(match[0])
    except (RecursionError, ValueError):
        return {}
    return message if isinstance(message, dict) else {}


def _dialogue(messages: Sequence[Mapping[str, Any] | None], pool: Mapping[str, Image]) -> Dialogue:
    done: list[Message] = []
    shown: set[ImageId] = set()
    for index, fields in enumerate(messages):
        if fields is None:
            raise _Defect(Reason.CUT_OFF, f"within message {index}")
        role = ROLES[index % 2]
        if (given := fields.get("role", role)) in ROLES and given != role:
            raise _Defect(Reason.ROLES, f"message {index} is of the {given}, expected the {role}")
        content = _content(fields, index)
        images: tuple[Image, ...] = ()
        if role == "user":
            listed = _listed_ids(fields.get("image_ids")) or mentioned_ids(content, pool.keys() - shown)
            content, images = _show(content, listed, pool, index)
            shown |= {str(image.image_id) for image in images}
        done.append(Message(role=role, content=content, images=images))
    return Dialogue(messages=tuple(done))


def _content(fields: Mapping[str, Any], index: int) -> str:
    content = fields.get("content", fields.get("caption"))
    if not isinstance(content, str):
        raise _Defect(
            Reason.UNREADABLE, f"message {index} has no content, but {', '.join(fields) or 'nothing'}"
        )
    content = strip_tags(content).replace(IMAGE_PLACEHOLDER, "").strip()
    if not content or content.endswith(("...", "…")):
        raise _Defect(Reason.TEXT, f"message {index} is {content[-40:]!r}")
    return content


def _listed_ids(listed: object) -> list[str]:
    """Ids as text, each once, from a list, a single id, or ids in one string; `IMAGE#7` is 7."""
    if listed is None:
        return []
    values = listed if isinstance(listed, list) else str(listed).strip("[]").split(",")
    names = (str(value).strip().removeprefix(image_mention("")) for value in values)
    return list(dict.fromkeys(name for name in names if name))


def _show(
    content: str, ids: Sequence[ImageId], pool: Mapping[str, Image], index: int
) -> tuple[str, tuple[Image, ...]]:
    if unknown := [str(image_id) for image_id in ids if image_id not in pool]:
        raise _Defect(
            Reason.UNKNOWN_IMAGE, f"message {index} shows {', '.join(unknown)}, expected of {', '.join(pool)}"
        )
    try:
        content, ids = tag_images(content, ids)
    except TaggingError as error:
        raise _Defect(Reason.NOT_MENTIONED, f"message {index}: {error}") from error
    return content, tuple(pool[str(image_id)] for image_id in ids)


def _check_counts(dialogue: Dialogue, num_turns: int | None, images_in_later_turns: int | None) -> None:
    num_messages = len(dialogue.messages)
    if num_messages % 2 or num_turns not in (None, dialogue.num_turns):
        expected = "an even number" if num_turns is None else 2 * num_turns
        raise _Defect(Reason.NUM_MESSAGES, f"{num_messages} messages, expected {expected}")
    first, *later = (len(message.images) for message in dialogue.messages if message.role == "user")
    if not first:
        raise _Defect(Reason.NUM_IMAGES, "the first message shows no image")
    if images_in_later_turns is not None and any(number != images_in_later_turns for number in later):
        raise _Defect(
            Reason.NUM_IMAGES, f"{later} images in later turns, expected {images_in_later_turns} each"
        )
