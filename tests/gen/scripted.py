"""Captioned images, and replies as a model would write them."""

import json
import re
from collections.abc import Sequence
from typing import Any

from sparkles.gen.candidates import Candidates, Demonstrations
from sparkles.gen.recipes import Recipe
from sparkles.types import Dialogue, Image, Message


def captioned(num: int) -> list[Image]:
    return [Image(image_id=100 + number, caption=f"picture {number}") for number in range(num)]


def dialogue(*shape: int, first_id: int = 1) -> Dialogue:
    """One that is as it should be, with images in turn."""
    messages, next_id = [], first_id
    for turn, count in enumerate(shape, start=1):
        images = tuple(Image(image_id=id_, caption="a thing") for id_ in range(next_id, next_id + count))
        next_id += count
        text = " and ".join(f"IMAGE#{image.image_id}<Img><ImageHere></Img>" for image in images)
        messages.append(Message(role="user", content=f"What of {text}?", images=images))
        messages.append(Message(role="assistant", content=f"Answer {turn}."))
    return Dialogue(messages=tuple(messages))


def make_recipe(**settings: Any) -> Recipe:
    """SparklesDialogueVG's, on 40 images."""
    candidates = {"images": captioned(40), "size": 4} | settings.pop("candidates", {})
    defaults: dict[str, Any] = {"name": "VG", "replies": [[[2, 1]], [[3, 1]]], "num_dialogues": 4}
    return Recipe(candidates=Candidates(**candidates), **defaults | settings)


def demonstrations(**settings: Any) -> Demonstrations:
    """Four that begin with two images and four that begin with three."""
    dialogues = [dialogue(first, 1, first_id=10 * first + number) for first in (2, 3) for number in range(4)]
    return Demonstrations(dialogues=dialogues, **settings)


def written(prompt: str) -> str:
    """What a model replies that does as the prompt says: the candidates in their order."""
    ids = [json.loads(line)["image_id"] for line in prompt.splitlines() if line.startswith('{"image_id"')]
    return reply(ids, [_shape(line) for line in prompt.splitlines() if re.match(r"Dialogue \d+:", line)])


def reply(ids: Sequence[int | str], shapes: Sequence[Sequence[int]]) -> str:
    return json.dumps({"dialogues": [_dialogue(list(map(str, ids)), shape) for shape in shapes]})


def _shape(line: str) -> list[int]:
    numbers = {"no": 0, "one": 1, "two": 2, "three": 3}
    return [numbers[word] for word in re.findall(r"(\w+) (?:new )?images?\b", line) if word in numbers]


def _dialogue(ids: list[str], shape: Sequence[int]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for count in shape:
        new, ids = ids[:count], ids[count:]
        question = f"Compare {' with '.join(f'IMAGE#{id_}' for id_ in new)}."
        messages.append({"role": "user", "image_ids": new, "content": question})
        messages.append({"role": "assistant", "image_ids": [], "content": f"{' '.join(new)} are alike."})
    return messages
