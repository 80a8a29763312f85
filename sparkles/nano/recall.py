"""Dialogues about up to eight scenes that end with a question about an earlier one: the miniature's data for `recall`.

The last question is of a kind that the language model knows, and asks what no question before it does:

* `differ`: how the last picture differs from the earlier one; the answer begins with count and background of that.
* `also`: whether the last picture shows a thing of the earlier one too; the answer begins with its place in that.

Answers before it name neither backgrounds nor, for `also`, colors, unless the model makes them up.
"""

import json
import random
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from sparkles.data.annotations import dialogue_record
from sparkles.eval.files import write_text
from sparkles.nano.dataset import until, write_once
from sparkles.nano.dialogues import Request, Scenes, answer, image_ids, phrase, possible_requests
from sparkles.nano.language import article, caption, noun, objects
from sparkles.nano.world import BACKGROUNDS, COLORS, PLACES, WHOLE_WORLD, Scene, random_scene, render
from sparkles.types import Dialogue, Image, Message

KINDS = ("differ", "also")
MOST_IMAGES, MOST_TURNS = 8, 6

_WITHOUT_COLORS = ("find", "also", "most", "differ")
"""Requests, of shapes, whose answers name no color."""
_COUNTED = tuple(
    f"{objects(count)} on {article(background)} background"
    for count in range(1, 1 + len(PLACES))
    for background in BACKGROUNDS
)


def ensure(root: str | Path, *, seed: int = 0, num: int = 600) -> Path:
    """Write `recall.json` and the images of `num` dialogues unless `root` already holds the same ones.

    All numbers of images from 2 to 8 are equally frequent, and with each the numbers of turns from 2 that it allows,
    up to 6: every turn shows a picture.

    Raises:
        FileExistsError: `root` holds something else.
    """
    wanted = {"recall": 1, "seed": seed, "num": num}
    return write_once(Path(root), wanted, partial(_write, seed=seed, num=num))


def _write(root: Path, *, seed: int, num: int) -> None:
    rng = random.Random(f"{seed}/recall")
    (root / "images").mkdir(parents=True)
    records = []
    numbers = rng.sample(range(1000, 10000), num)
    for index, number in enumerate(numbers):
        round_, num_images = index // (MOST_IMAGES - 1), 2 + index % (MOST_IMAGES - 1)
        lengths = range(2, 1 + min(num_images, MOST_TURNS))
        num_turns = lengths[round_ % len(lengths)]
        kind = KINDS[round_ // len(lengths) % len(KINDS)]
        ids = image_ids(number, num_images)
        shown, dialogue, asked = until(partial(_dialogue, kind, ids, num_turns, rng))
        for image_id, scene in shown.items():
            render(scene).save(root / "images" / f"{image_id}.png", compress_level=1)
        records.append(
            {
                "evaluation_id": index + 1,
                **dialogue_record(dialogue),
                "asked_image_id": int(asked.reference),
                "options": _options(asked),
                "answers": {image_id: _true_of(scene, asked) for image_id, scene in shown.items()},
                "kind": kind,
            }
        )
    write_text(root / "annotations" / "recall.json", json.dumps(records, indent=1))


def _dialogue(
    kind: str, ids: Sequence[str], num_turns: int, rng: random.Random
) -> tuple[dict[str, Scene], Dialogue, Request] | None:
    """A dialogue whose last request is of the kind, with that request; None where the scenes allow none."""
    shown = {image_id: random_scene(rng, "eval", WHOLE_WORLD) for image_id in ids}
    # The first turn shows one picture or more, the last exactly one.
    cuts = sorted(rng.sample(range(1, len(ids) - 1), num_turns - 2))
    bounds = [0, *cuts, len(ids) - 1, len(ids)]
    messages: list[Message] = []
    request = None
    for start, end in pairwise(bounds):
        scenes = {image_id: shown[image_id] for image_id in ids[:end]}
        request = _request(kind, ids[start:end], scenes, rng, is_last=end == len(ids), before=request)
        if request is None:
            return None
        images = tuple(Image(image_id=int(i), caption=caption(shown[i])) for i in ids[start:end])
        messages.append(Message(role="user", content=phrase(request, scenes, rng), images=images))
        messages.append(Message(role="assistant", content=answer(request, scenes)))
    assert request is not None
    answers = [_true_of(scene, request) for scene in shown.values()]
    told_apart = answers.count(_true_of(shown[request.reference], request)) == 1
    return (shown, Dialogue(messages=tuple(messages)), request) if told_apart else None


def _request(
    kind: str,
    new: Sequence[str],
    scenes: Scenes,
    rng: random.Random,
    *,
    is_last: bool,
    before: Request | None,
) -> Request | None:
    """A request that `new` allow: the last is of the kind, those before it do not ask for what it does."""
    possible = possible_requests(new, scenes, rng, told_story=before is not None and before.kind == "story")
    if is_last:
        fitting = [one for one in possible if one.kind == kind and (kind == "differ" or one.word in COLORS)]
    elif kind == "differ":
        fitting = [one for one in possible if one.kind in ("find", "also", "story", "continue")]
    else:
        fitting = [one for one in possible if one.kind in _WITHOUT_COLORS and one.word not in COLORS]
    return rng.choice(fitting) if fitting else None


def _options(asked: Request) -> tuple[str, ...]:
    """What an answer may begin with. That there is no such thing holds of no picture in particular."""
    if asked.kind == "differ":
        return _COUNTED
    thing = noun(asked.word)
    return (*(f"the {thing} is at the {place}" for place in PLACES), f"there is no {thing}")


def _true_of(scene: Scene, asked: Request) -> list[str]:
    """The options that tell the scene from others."""
    if asked.kind == "differ":
        return [f"{objects(scene.count)} on {article(scene.background)} background"]
    return [f"the {noun(asked.word)} is at the {place}" for place in scene.places_with(asked.word)]
