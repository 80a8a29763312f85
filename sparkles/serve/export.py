"""A conversation to take away: as a training dialogue with its pictures, or as one page that needs no network."""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import PIL.Image

from sparkles.data.annotations import dialogue_record
from sparkles.pages.page import Album, Item, Speech, render
from sparkles.serve.conversation import ChatError, Conversation, Turn
from sparkles.types import Dialogue, Image, Message, images_of

IMAGES = Path("images")


def file_stem(conversation: Conversation) -> str:
    """The name of its files, without what says their kind."""
    return f"conversation-{conversation.key}"


def training_zip(conversation: Conversation) -> bytes:
    """An archive with `annotations/<stem>.json`, a dialogue file of `sparkles.data.annotations`, and `images/`.

    Raises:
        ChatError: there is nothing to export, or an answer is being written.
    """
    _check_exportable(conversation)
    stem, uploads = file_stem(conversation), conversation.uploads
    messages = (*conversation.prompt.messages, conversation.messages[-1])
    if not messages[-1].content:  # a question without an answer teaches nothing
        messages = messages[:-2]
    record = dialogue_record(Dialogue(messages=messages, dialogue_id=stem))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        annotations = json.dumps([record], indent=1, ensure_ascii=False) + "\n"
        archive.writestr(f"annotations/{stem}.json", annotations)
        for image in images_of(messages):
            upload = uploads[str(image.image_id)]
            archive.writestr(f"{IMAGES}/{image.image_id}{upload.suffix}", upload.content)
    return file.getvalue()


def html_page(conversation: Conversation, *, name: str) -> str:
    """All of it on one page, pictures between the words.

    Args:
        name: of the model.

    Raises:
        ChatError: there is nothing to export, or an answer is being written.
    """
    _check_exportable(conversation)
    uploads = conversation.uploads
    messages = _with_places(conversation.messages)

    def load(image: Image) -> PIL.Image.Image:
        return PIL.Image.open(io.BytesIO(uploads[str(image.image_id)].content)).convert("RGB")

    album = Album(images_of(messages), load=load)
    shown = Speech(messages, album).turns()
    turns = tuple(
        replace(one, facts=_facts(turn)) for one, turn in zip(shown, conversation.turns, strict=True)
    )
    return render(
        "conversation.html.j2",
        album=album,
        name=name,
        title=conversation.title or "Pictures",
        item=Item(item_id=conversation.key, turns=turns),
    )


def _check_exportable(conversation: Conversation) -> None:
    conversation.check_idle()
    if not any(turn.answer for turn in conversation.turns):
        raise ChatError("there is nothing to export yet: no question has an answer")


def _with_places(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Each image with a path of its own, by which a page tells it from others."""
    return tuple(
        replace(
            message,
            images=tuple(replace(image, path=IMAGES / str(image.image_id)) for image in message.images),
        )
        for message in messages
    )


def _facts(turn: Turn) -> str:
    """How the answer came about, where that is not what one expects of an answer."""
    sampling = turn.sampling
    facts = {
        f"temperature {sampling.temperature:g}": sampling.temperature,
        f"{sampling.beams} beams": sampling.beams > 1,
        f"try {turn.tries}": turn.tries > 1,
        "stopped": turn.ending == "stopped",
        f"ended after {sampling.max_tokens} tokens": turn.ending == "length",
    }
    return ", ".join(fact for fact, holds in facts.items() if holds)
