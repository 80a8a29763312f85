"""How the published code read the replies of its language model, defects included.

It made SparklesDialogue and SparklesEval; recorded results (tests/parity) are what this is held to. Use
`sparkles.gen.parsing` and `sparkles.gen.tagging` for data; they differ where this

* tags an id anywhere: "804 apples in IMAGE#804" behind the first number, 14 at the end of 1414;
* sets two tags for an id listed twice, and accepts user messages whose images the text does not show;
* checks the number of images in the second turn of all dialogues but the first of a reply;
* cuts texts at a "}", leaves escapes in them, and takes fields that stand behind the text for a part of it;
* gives up the whole reply where one message is odd.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparkles.gen.parsing import ROLES, Parsed, Reason, Rejected
from sparkles.gen.tagging import ImageId
from sparkles.prompt_format import IMAGE_TAG
from sparkles.types import Dialogue, Image, Message

NUM_MESSAGES = 4

_ROLE_FIELD = re.compile(r"""(['"])role\1: ?\1(?:assistant|user)\1""")

Fields = dict[str, Any]
"""A message: `role`, `content`, and either `image_ids` or, once tagged, `images`."""


def parse_reply(reply: str, candidates: Iterable[Image], *, num_dialogues: int = 3) -> Parsed:
    """The dialogues that the published code kept, and what it set aside or stumbled over.

    Args:
        num_dialogues: that were asked for; if one, a reply without brackets is a dialogue too.
    """
    pool = {str(image.image_id): image for image in candidates}
    try:
        found = list(_dialogues(reply, pool, num_dialogues))
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        detail = f"{type(error).__name__}: {error}"
        return Parsed(rejected=(Rejected(reason=Reason.UNREADABLE, detail=detail, text=reply),))
    return Parsed(
        dialogues=tuple(_dialogue(messages) for messages, kept in found if kept),
        rejected=tuple(
            Rejected(reason=Reason.UNREADABLE, detail="set aside", text=json.dumps(messages, default=str))
            for messages, kept in found
            if not kept
        ),
    )


def append_tags(content: str, image_ids: Sequence[ImageId]) -> str:
    """The text with a tag behind the first place where each id ends a word.

    >>> append_tags("804 apples in IMAGE#804", [804])
    '804<Img><ImageHere></Img> apples in IMAGE#804'
    """
    for image_id in image_ids:
        content = re.sub(rf"{image_id}\b", f"{image_id}{IMAGE_TAG}", content, count=1, flags=re.IGNORECASE)
    return content


def ids_by_tag(content: str, image_ids: Sequence[ImageId]) -> list[ImageId] | None:
    """The ids in the order of their tags, each once; None if there are more or fewer tags than ids."""
    if content.count(IMAGE_TAG) != len(image_ids):
        return None
    if len(image_ids) < 2:
        return list(image_ids)
    places = {image_id: content.find(f"{image_id}{IMAGE_TAG}") for image_id in image_ids}
    return None if -1 in places.values() else sorted(places, key=lambda image_id: places[image_id])


def _dialogues(reply: str, pool: Mapping[str, Image], num: int) -> Iterator[tuple[Any, bool]]:
    """Each dialogue of the reply and whether it was kept."""
    text = reply.replace("```json", "").replace("```", "")
    if loaded := _load(text):
        if len(loaded) == NUM_MESSAGES and type(loaded[0]) is dict:
            loaded = [loaded]
        for index, messages in enumerate(loaded):
            yield messages, _check_loaded(messages, pool, index)
        return
    parts = re.findall(r"\[\{.*?\}\]", reply, re.DOTALL)
    for index, part in enumerate(parts or [text] * (num == 1)):
        yield _cut(part, pool, index)


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def _check_loaded(messages: Any, pool: Mapping[str, Image], dialogue: int) -> bool:
    if len(messages) != NUM_MESSAGES:
        return False
    for index, message in enumerate(messages):
        if message["role"] not in ROLES:
            return False
        shows = message["role"] == "user" and "image_ids" in message
        if shows and not _show(message, pool, dialogue, index):
            return False
    return True


def _cut(part: str, pool: Mapping[str, Image], dialogue: int) -> tuple[list[Fields], bool]:
    """Messages cut out of a text that is not JSON, by braces and the names of fields."""
    spans = re.findall(r"\{.*?\}", part, re.DOTALL)
    messages: list[Fields] = []
    for index, span in enumerate(spans):
        for name in ("'caption':", '"content":'):
            if "'content':" not in span:
                span = span.replace(name, "'content':")
        content = re.search(r"'content':(.*?)\}", span, re.DOTALL)
        if content is None:
            return messages, False
        text = _ROLE_FIELD.sub("", content[1]).strip().rstrip(",").strip().strip('"').strip("'")
        shows = re.search(r"""(['"])image_ids\1""", span) is not None
        if index not in ((0, 2) if shows else (1, 3)):
            raise AssertionError(f"message {index} {'has' if shows else 'lacks'} image_ids")
        message: Fields = {"role": ROLES[index % 2], "content": text}
        if shows:
            listed = re.findall(r"\[(.*?)\]", span)[0]
            message["image_ids"] = [name.strip().strip("'") for name in listed.split(",")]
            if not _show(message, pool, dialogue, index):
                return messages, False
        messages.append(message)
    return messages, len(messages) == NUM_MESSAGES


def _show(message: Fields, pool: Mapping[str, Image], dialogue: int, index: int) -> bool:
    """Put tags and `images` in place of `image_ids`; whether that went well."""
    ids = message["image_ids"]
    if dialogue and index == 2 and len(ids) != 1:  # `dialogue` is 0 for the first, which is not checked
        return False
    for image_id in ids:
        if str(image_id) not in pool:
            int(image_id)  # was looked for as a number too; what is none raises
            return False
    if IMAGE_TAG not in message["content"]:
        message["content"] = append_tags(message["content"], ids)
    ordered = ids_by_tag(message["content"], ids)
    if ordered is None:
        return False
    message["images"] = tuple(pool[str(image_id)] for image_id in ordered)
    del message["image_ids"]
    return True


def _dialogue(messages: Sequence[Fields]) -> Dialogue:
    return Dialogue(
        messages=tuple(
            Message(role=message["role"], content=message["content"], images=message.get("images", ()))
            for message in messages
        )
    )
