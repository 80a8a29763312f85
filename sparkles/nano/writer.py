"""Generating dialogues about drawn scenes: a writer that needs no network, and the pictures it writes about.

It reads captions and answers in JSON, as a language model is asked to, and its replies go through the same parsing.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparkles.gen.candidates import Shape
from sparkles.gen.prompting import reply_entries
from sparkles.gen.recipes import Assignment
from sparkles.llm_client import Completion, Ledger, OnOutcome, Usage
from sparkles.nano.dialogues import PHRASINGS, image_ids, make_dialogue, phrasing_of
from sparkles.nano.language import BiasedCaptioner, caption, parse_caption
from sparkles.nano.world import (
    COLORS,
    NARROW_WORLD,
    SHAPES,
    SIZES,
    WHOLE_WORLD,
    Scene,
    Thing,
    random_scene,
    render,
)
from sparkles.prompt_format import strip_tags
from sparkles.types import Dialogue, Image, InputError

_FIRST_NUMBER = 1000
"""Of dialogues, so that ids of their images have as many digits as the language model has learnt."""


Shown = Sequence[tuple[str, Scene]]
"""Image ids and scenes of a dialogue."""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """How often a writer errs. What it then says is false of the pictures, but well formed all the same.

    Raises:
        InputError: a chance is none.
    """

    wrong_fact: float = 0.0
    """Chance for each object that its size, color or shape is told wrongly."""
    wrong_picture: float = 0.0
    """Chance for each image that it is taken for another one of its dialogue."""

    def __post_init__(self) -> None:
        if not (0 <= self.wrong_fact <= 1 and 0 <= self.wrong_picture <= 1):
            raise InputError(f"mistakes: expected chances between 0 and 1, got {self}")

    def read(self, shown: Shown, rng: random.Random) -> Shown:
        """The scenes as the writer has them in mind."""
        if not (self.wrong_fact or self.wrong_picture):
            return shown
        return [
            (image_id, self._misread(self._mistaken(image_id, scene, shown, rng), rng))
            for image_id, scene in shown
        ]

    def _mistaken(self, image_id: str, scene: Scene, shown: Shown, rng: random.Random) -> Scene:
        others = [other for other_id, other in shown if other_id != image_id]
        return rng.choice(others) if others and rng.random() < self.wrong_picture else scene

    def _misread(self, scene: Scene, rng: random.Random) -> Scene:
        for place, thing in scene.at.items():
            if rng.random() < self.wrong_fact:
                scene = scene.put(place, _another(thing, rng))
        return scene


class SceneWriter:
    """Writes dialogues about scenes, true as far as their captions are and `mistakes` let it.

    It imitates the demonstrations that it is shown: it makes no other requests, in no other words, as far as the images
    allow one of these. Shown none, it makes any.
    """

    prompt_hash = ""

    def __init__(self, *, mistakes: Mistakes | None = None, seed: int = 0) -> None:
        self.mistakes = mistakes or Mistakes()
        self.name = "scenes" if self.mistakes == Mistakes() else f"scenes with {self.mistakes}"
        self.seed = seed
        self.ledger = Ledger({})

    def write(self, assignments: Iterable[Assignment], on_outcome: OnOutcome) -> None:
        for index, assignment in enumerate(assignments):
            reply = Completion(
                text=self.reply(assignment),
                finish_reason="stop",
                usage=Usage(input_tokens=0, output_tokens=0),
                model=self.name,
                seconds=0.0,
                tries=1,
            )
            on_outcome(index, reply)

    def reply(self, assignment: Assignment) -> str:
        """JSON as an endpoint would send it. The same candidates get the same reply."""
        ids = [image.image_id for image in assignment.candidates]
        rng = random.Random(f"{self.seed}/{ids}")
        dialogues = [self._dialogue(assignment, shape, rng) for shape in assignment.shapes]
        return json.dumps({"dialogues": [reply_entries(dialogue) for dialogue in dialogues]})

    def estimate(self, assignments: Iterable[Assignment]) -> str:
        return f"{sum(1 for _ in assignments)} replies, written here: no calls, no cost"

    def close(self) -> None:
        pass

    def _dialogue(self, assignment: Assignment, shape: Shape, rng: random.Random) -> Dialogue:
        """About as many of the candidates as the shape has, in their order."""
        chosen = sorted(rng.sample(range(len(assignment.candidates)), sum(shape)))
        images = [assignment.candidates[index] for index in chosen]
        shown = [(str(image.image_id), parse_caption(image.caption)) for image in images]
        phrasings = _phrasings(assignment.demonstrations) or PHRASINGS
        return make_dialogue(
            self.mistakes.read(shown, rng), shape, rng, kinds=tuple(phrasings), phrasings=phrasings
        )


def demonstrations(
    *,
    num: int,
    kinds: Sequence[str] = tuple(PHRASINGS),
    shapes: Sequence[Shape] = ((2, 1), (3, 1)),
    seed: int = 0,
) -> list[Dialogue]:
    """Dialogues to show a writer: `num` of each shape.

    Args:
        kinds: requests that they make, see `sparkles.nano.dialogues.PHRASINGS`; fewer are less diverse.

    Raises:
        InputError: there is no such kind.
    """
    if unknown := set(kinds) - PHRASINGS.keys():
        raise InputError(
            f"kinds: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(PHRASINGS)}"
        )
    rng = random.Random(f"{seed}/demonstrations")
    return [
        make_dialogue(
            [(image_id, random_scene(rng, "train")) for image_id in image_ids(number, sum(shape))],
            shape,
            rng,
            kinds=kinds,
        )
        for number in range(1, 1 + num)
        for shape in shapes
    ]


def _phrasings(dialogues: Iterable[Dialogue]) -> Mapping[str, Sequence[str]]:
    """The requests of dialogues by kind, each in the words that it is made in."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for message in (message for dialogue in dialogues for message in dialogue.messages):
        if message.role == "user" and (spoken := phrasing_of(strip_tags(message.content))):
            kind, phrasing = spoken
            found[kind].append(phrasing)
    return found


def _another(thing: Thing, rng: random.Random) -> Thing:
    """The thing with one of its attributes changed."""
    attribute, words = rng.choice((("size", SIZES), ("color", tuple(COLORS)), ("shape", SHAPES)))
    other = rng.choice([word for word in words if word != getattr(thing, attribute)])
    return replace(thing, **{attribute: other})


def draw_scenes(
    *,
    num: int,
    folder: Path | None = None,
    per_dialogue: int = 4,
    narrow: bool = True,
    biased: bool = False,
    seed: int = 0,
) -> list[Image]:
    """Images of scenes of the train split with captions, drawn into `folder` unless they are there.

    Args:
        folder: None draws none, for a dry run.
        per_dialogue: so many have ids that begin alike, as `image_ids` has them.
        narrow: of the part of the world that VG shows.
        biased: captions by a captioner that errs, as CC's do; they are exact otherwise.
    """
    rng = random.Random(f"{seed}/scenes")
    numbers = range(_FIRST_NUMBER, _FIRST_NUMBER + -(-num // per_dialogue))
    ids = [image_id for number in numbers for image_id in image_ids(number, per_dialogue)][:num]
    images = []
    for image_id in ids:
        scene = random_scene(rng, "train", NARROW_WORLD if narrow else WHOLE_WORLD)
        seen = BiasedCaptioner().perceive(scene, rng) if biased else scene
        path = Path(folder) / f"{image_id}.png" if folder else None
        if path is not None and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            render(scene).save(path, compress_level=1)
        images.append(Image(image_id=int(image_id), caption=caption(seen), path=path))
    return images
