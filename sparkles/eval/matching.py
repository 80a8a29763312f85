"""What items of predictions have in common: the same item in two runs, and pieces of content within one."""

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparkles.eval.benchmark import Prediction
from sparkles.eval.significance import Overlap, overlap

MatchBy = Literal["content", "id"]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The items of two runs."""

    pairs: list[tuple[Prediction, Prediction]]
    only_ours: int = 0
    only_theirs: int = 0
    other_content: int = 0
    """Items with one id in both runs that do not ask the same; they are in no pair."""


def match(ours: Sequence[Prediction], theirs: Sequence[Prediction], by: MatchBy = "content") -> Matched:
    """Pair the items by id. By `content`, they must also have the same prompt, pictures and label.

    By `id` is for runs that are meant to differ there: another prompt file, or a control with other pictures.
    """
    others = {prediction.item_id: prediction for prediction in theirs}
    pairs = [(one, others[one.item_id]) for one in ours if one.item_id in others]
    same = [pair for pair in pairs if by == "id" or content_key(pair[0]) == content_key(pair[1])]
    return Matched(
        pairs=same,
        only_ours=len(ours) - len(pairs),
        only_theirs=len(theirs) - len(pairs),
        other_content=len(pairs) - len(same),
    )


def content_key(prediction: Prediction) -> str:
    """Hash of what was asked: prompt, label, and the pictures by file name, so that the folder may have moved."""
    images = [
        (image["image_id"], Path(image["path"]).name if image["path"] else image["caption"], image["box"])
        for image in _images(prediction)
    ]
    return _hash([prediction.prompt, prediction.label, images])


def dialogue_key(prediction: Prediction) -> str:
    """Hash of a finished dialogue, answers included, that does not tell who answered."""
    messages = [(message["role"], message["content"]) for message in prediction.dialogue]
    return _hash([content_key(prediction), messages])


def shared_content(predictions: Sequence[Prediction]) -> Overlap | None:
    """Which items share a sentence (their whole prompt) or a picture."""
    return overlap([pieces_of(prediction) for prediction in predictions])


def pieces_of(prediction: Prediction) -> list[Hashable]:
    """What an item may share with others: its sentence and its pictures."""
    pictures = [image["path"] or image["caption"] for image in _images(prediction)]
    return [("prompt", prediction.prompt), *(("picture", picture) for picture in pictures if picture)]


def answer_words(prediction: Prediction) -> int:
    """Length of all answers together."""
    return sum(len(said["content"].split()) for said in prediction.dialogue if said["role"] == "assistant")


def _images(prediction: Prediction) -> list[dict[str, Any]]:
    return [image for message in prediction.dialogue for image in message["images"]]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
