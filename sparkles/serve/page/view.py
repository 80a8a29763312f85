"""What the browser is told of a conversation: values for JSON, in which each word that means a picture says which."""

import re
from collections.abc import Container, Iterator
from typing import Any

from sparkles.pages.page import Album, Mention, Picture, Speech, Text
from sparkles.prompt_format import image_mention
from sparkles.serve.conversation import Conversation

_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_IN_WORDS = re.compile(rf"\b((?:the )?({'|'.join(_ORDINALS)}) (?:picture|image|photo))\b", re.IGNORECASE)

Part = dict[str, str]
"""`{"text": words}`; `{"picture": number}`; or both, where words mean a picture that is shown elsewhere."""


def view(conversation: Conversation, **more: Any) -> dict[str, Any]:
    """The conversation as history.js draws it, with whatever else is to be told to the page."""
    uploads = conversation.uploads
    spoken = Speech(conversation.messages, Album(())).turns()
    return {
        "key": conversation.key,
        "answering": conversation.answering,
        "notice": "",
        "next": len(uploads) + 1,
        "forgotten": conversation.forgotten,
        "pictures": {name: upload.data_url for name, upload in uploads.items()},
        "turns": [
            {
                "question": list(_parts(said.question, uploads.keys())),
                "answer": list(_parts(said.answer or (), uploads.keys())),
                "ending": turn.ending,
                "tries": turn.tries,
                "verdict": turn.verdict,
            }
            for turn, said in zip(conversation.turns, spoken, strict=True)
        ],
        **more,
    }


def _parts(text: Text, names: Container[str]) -> Iterator[Part]:
    for part in text:
        match part:
            case Picture():
                yield {"picture": _name(part.mention)}
            case Mention():
                yield {"text": part.text, "picture": _name(part.text)}
            case str():
                yield from _in_words(part, names)


def _name(mention: str) -> str:
    return mention.removeprefix(image_mention(""))


def _in_words(text: str, names: Container[str]) -> Iterator[Part]:
    """
    >>> list(_in_words("Is the second picture red?", ["1", "2"]))
    [{'text': 'Is '}, {'text': 'the second picture', 'picture': '2'}, {'text': ' red?'}]
    """
    start = 0
    for found in _IN_WORDS.finditer(text):
        name = str(_ORDINALS.index(found[2].lower()) + 1)
        if name in names:
            yield {"text": text[start : found.start()]}
            yield {"text": found[1], "picture": name}
            start = found.end()
    yield {"text": text[start:]}
