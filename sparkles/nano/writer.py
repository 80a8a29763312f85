"""Generating dialogues about drawn scenes: a writer that needs no network, and the pictures it writes about.

It reads captions and answers in JSON, as a language model is asked to, and its replies go through the same parsing.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path

from sparkles.gen.candidates import Shape
from sparkles.gen.prompting import reply_entries
from sparkles.gen.recipes import Assignment
from sparkles.gen.writers import OnOutcome
from sparkles.llm_client import Completion, Ledger, Usage
from sparkles.nano.dialogues import image_ids, make_dialogue
from sparkles.nano.language import BiasedCaptioner, caption, parse_caption
from sparkles.nano.world import NARROW_WORLD, WHOLE_WORLD, random_scene, render
from sparkles.types import Dialogue, Image

_FIRST_NUMBER = 1000
"""Of dialogues, so that ids of their images have as many digits as the language model has learnt."""


class SceneWriter:
    """Writes true dialogues about scenes, as far as their captions are true."""

    name = "scenes"
    prompt_hash = ""

    def __init__(self, *, seed: int = 0) -> None:
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
        dialogues = [_dialogue(assignment, shape, rng) for shape in assignment.shapes]
        return json.dumps({"dialogues": [reply_entries(dialogue) for dialogue in dialogues]})

    def estimate(self, assignments: Iterable[Assignment]) -> str:
        return f"{sum(1 for _ in assignments)} replies, written here: no calls, no cost"

    def close(self) -> None:
        pass


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


def _dialogue(assignment: Assignment, shape: Shape, rng: random.Random) -> Dialogue:
    """About as many of the candidates as the shape has, in their order."""
    chosen = sorted(rng.sample(range(len(assignment.candidates)), sum(shape)))
    images = [assignment.candidates[index] for index in chosen]
    shown = [(str(image.image_id), parse_caption(image.caption)) for image in images]
    return make_dialogue(shown, shape, rng)
