"""Writes the scenes world as data sets, in the files of the original: dialogues, training turns, benchmarks, images.

    <root>/SparklesDialogueCC/     annotations of a biased captioner, whole world
    <root>/SparklesDialogueVG/     accurate annotations, a part of the world
    <root>/descriptions/           one image, one request to describe it     (baseline "description data")
    <root>/reasoning/              one image, one question about it          (baseline "reasoning data")
    <root>/captions/               coarse alt text, the data of stage 1
    <root>/validation/             dialogues like VG's, for val/loss
    <root>/evaluation/{BISON,NLVR2,SparklesEval}/

BISON and NLVR2 have a `captions.json` besides, with what each picture shows: their records do not say it.

Training data show scenes of the train split only, benchmarks those of the eval split only (see `world.Scene.split`).
The same seed and sizes give the same bytes.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from sparkles.data.annotations import write_dialogues, write_samples, write_training_files
from sparkles.nano.corpus import CAPTION_REQUESTS
from sparkles.nano.dialogues import image_ids, make_dialogue
from sparkles.nano.language import (
    BISON_KINDS,
    STATEMENTS,
    BiasedCaptioner,
    BisonItem,
    Statement,
    bison_item,
    caption,
    coarse_caption,
    statement,
)
from sparkles.nano.world import NARROW_WORLD, WHOLE_WORLD, Scene, Split, Vocabulary, random_scene, render
from sparkles.prompt_format import IMAGE_TAG, image_mention
from sparkles.types import Image, Message, Prompt, Sample

T = TypeVar("T")

CAPTIONS = "captions.json"
_MARKER = "scenes.json"
_WORTH_PROCESSES = 3_000
"""Records from which processes save more time than they take to start."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything to write."""

    cc_dialogues: int = 1500
    vg_dialogues: int = 650
    single_images: int = 600
    """Each for descriptions, reasoning and captions."""
    captions: int = 2000
    validation_dialogues: int = 60
    benchmark_items: int = 600


def ensure(root: str | Path, *, seed: int = 0, sizes: Sizes | None = None) -> Path:
    """Write the data sets unless `root` already holds the same ones; an interrupted writing leaves nothing behind.

    Raises:
        FileExistsError: `root` holds something else.
    """
    sizes = sizes or Sizes()
    wanted = {"seed": seed, "sizes": asdict(sizes), "version": 6}
    return write_once(Path(root), wanted, partial(write, seed=seed, sizes=sizes))


def write_once(root: Path, wanted: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
    """Let `write` fill `root` unless it holds what is `wanted` (as JSON) already.

    Raises:
        FileExistsError: `root` holds something else.
    """
    marker = root / _MARKER
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted:
        return root
    if root.exists() and not marker.is_file() and any(root.iterdir()):
        raise FileExistsError(f"{root} was not written by the scenes world; choose another data.root")
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        with Console().status(f"drawing the scenes world into {root}"):
            write(building)
        (building / _MARKER).write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        if root.exists():
            shutil.rmtree(root)
        building.chmod(0o755)
        building.rename(root)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return root


def write(root: Path, *, seed: int, sizes: Sizes) -> None:
    """Write all data sets under `root`, each from its own stream of random numbers, on all cores if they are large."""
    single, items = sizes.single_images, sizes.benchmark_items
    parts: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
        "SparklesDialogueCC": (_write_cc, (sizes.cc_dialogues,)),
        "SparklesDialogueVG": (_write_vg, (sizes.vg_dialogues,)),
        "validation": (_write_vg, (sizes.validation_dialogues,)),
        "descriptions": (_write_single, (single, ("describe",))),
        "reasoning": (_write_single, (single, ("find", "story"))),
        "captions": (_write_captions, (sizes.captions,)),
        "evaluation/BISON": (_write_bison, (items,)),
        "evaluation/NLVR2": (_write_nlvr2, (items,)),
        "evaluation/SparklesEval": (_write_sparkles_eval, (items,)),
    }
    for name in parts:
        for sub in ("annotations", "images"):
            (root / name / sub).mkdir(parents=True)
    jobs = [
        partial(write_part, root / name, random.Random(f"{seed}/{name}"), *arguments)
        for name, (write_part, arguments) in parts.items()
    ]
    if sum(asdict(sizes).values()) < _WORTH_PROCESSES:
        for job in jobs:
            job()
        return
    # Not forked: the parent may hold threads of torch.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


# --- training data --------------------------------------------------------------------------------------------


def _write_cc(folder: Path, rng: random.Random, count: int) -> None:
    captioner = BiasedCaptioner()
    dialogues = []
    for index, number in enumerate(_dialogue_numbers(rng, count)):
        images_per_turn = (index % 3 + 1, 1)  # the paper: one, two or three images first, then one more
        shown = _draw(folder, number, sum(images_per_turn), rng, "train", WHOLE_WORLD)
        perceived = [(image_id, captioner.perceive(scene, rng)) for image_id, scene in shown]
        dialogues.append(make_dialogue(perceived, images_per_turn, rng))
    write_training_files(folder / "annotations", folder.name, dialogues)


def _write_vg(folder: Path, rng: random.Random, count: int) -> None:
    dialogues = []
    for index, number in enumerate(_dialogue_numbers(rng, count)):
        images_per_turn = (2 + index % 2, 1)
        shown = _draw(folder, number, sum(images_per_turn), rng, "train", NARROW_WORLD)
        dialogues.append(make_dialogue(shown, images_per_turn, rng))
    write_training_files(folder / "annotations", folder.name, dialogues)


def _write_single(folder: Path, rng: random.Random, count: int, kinds: Sequence[str]) -> None:
    """One-turn dialogues about one image, accurately annotated as LLaVA's are."""
    dialogues = []
    for number in _dialogue_numbers(rng, count):
        shown = _draw(folder, number, 1, rng, "train", WHOLE_WORLD)
        dialogues.append(make_dialogue(shown, (1,), rng, kinds=kinds))
    write_training_files(folder / "annotations", folder.name, dialogues)


def _write_captions(folder: Path, rng: random.Random, count: int) -> None:
    samples = []
    for image_id in range(1, count + 1):
        scene = random_scene(rng, "train", WHOLE_WORLD)
        _save(folder, image_id, scene)
        seen = list(BiasedCaptioner().perceive(scene, rng).at.values())
        # Alt text names what strikes its author, in any order: no way to learn from it where things are.
        text = coarse_caption(rng.sample(seen, min(2, len(seen))))
        question = Message(
            role="user",
            content=f"{IMAGE_TAG} {rng.choice(CAPTION_REQUESTS)}",
            images=(Image(image_id=image_id, caption=text),),
        )
        samples.append(Sample(prompt=Prompt(messages=(question,)), answer=text))
    write_samples(folder / "annotations" / "captions.json", samples)


# --- benchmarks -----------------------------------------------------------------------------------------------


def _write_bison(folder: Path, rng: random.Random, count: int) -> None:
    records, captions = [], {}
    for index in range(count):
        kind, label = BISON_KINDS[index // 2 % len(BISON_KINDS)], index % 2
        item = until(partial(_bison_item, kind, label, rng))
        ids = (2 * index + 1, 2 * index + 2)
        for image_id, scene in zip(ids, item.scenes, strict=True):
            _save(folder, image_id, scene)
            captions[f"{image_id}.png"] = caption(scene)
        records.append(
            {
                "evaluation_id": index + 1,
                "caption": item.caption,
                "true_image_id": ids[item.label],
                "image_candidates": [{"image_id": i, "image_filename": f"{i}.png"} for i in ids],
                "kind": kind,
            }
        )
    _write_json(folder / "annotations" / "sparkles_evaluation_bison_annotations.json", records)
    _write_json(folder / CAPTIONS, captions)


def _bison_item(kind: str, label: int, rng: random.Random) -> BisonItem | None:
    return bison_item(random_scene(rng, "eval"), kind, label, rng, (image_mention(1), image_mention(2)))


def _write_nlvr2(folder: Path, rng: random.Random, count: int) -> None:
    records, captions = [], {}
    kinds = list(STATEMENTS)
    for index in range(count):
        kind, truth = kinds[index // 2 % len(kinds)], index % 2 == 0
        scenes, made = until(partial(_statement_item, kind, truth, rng))
        for side, scene in enumerate(scenes):
            _save(folder, name := f"eval-{index + 1}-0-img{side}", scene)
            captions[f"{name}.png"] = caption(scene)
        records.append(
            {
                "evaluation_id": index + 1,
                "sentence": made.text,
                "label": str(truth),
                "identifier": f"eval-{index + 1}-0-0",
                "kind": kind,
            }
        )
    _write_json(folder / "annotations" / "sparkles_evaluation_nlvr2_annotations.json", records)
    _write_json(folder / CAPTIONS, captions)


def _statement_item(
    kind: str, truth: bool, rng: random.Random
) -> tuple[tuple[Scene, Scene], Statement] | None:
    scenes = (random_scene(rng, "eval"), random_scene(rng, "eval"))
    made = statement(kind, scenes, rng)
    return (scenes, made) if made and made.truth == truth else None


def _write_sparkles_eval(folder: Path, rng: random.Random, count: int) -> None:
    dialogues = []
    for index, number in enumerate(_dialogue_numbers(rng, count)):
        # The paper: two or three images and then one, but a third of the dialogues with two images in both turns.
        images_per_turn = ((2, 1), (3, 1), (2, 2))[index % 3]
        shown = _draw(folder, number, sum(images_per_turn), rng, "eval", WHOLE_WORLD)
        dialogues.append(make_dialogue(shown, images_per_turn, rng, dialogue_id=str(index + 1)))
    write_dialogues(folder / "annotations" / "sparkles_evaluation_sparkleseval_annotations.json", dialogues)


# --- files ----------------------------------------------------------------------------------------------------


def _dialogue_numbers(rng: random.Random, count: int) -> list[int]:
    """Four digits each, none twice."""
    return rng.sample(range(1000, 10000), count)


def _draw(
    folder: Path, number: int, count: int, rng: random.Random, split: Split, vocabulary: Vocabulary
) -> list[tuple[str, Scene]]:
    """Draw the pictures of one dialogue; their ids and scenes."""
    shown = [(image_id, random_scene(rng, split, vocabulary)) for image_id in image_ids(number, count)]
    for image_id, scene in shown:
        _save(folder, image_id, scene)
    return shown


def until(make: Callable[[], T | None]) -> T:
    """Call until something comes."""
    while (made := make()) is None:
        pass
    return made


def _save(folder: Path, image_id: str | int, scene: Scene) -> None:
    render(scene).save(folder / "images" / f"{image_id}.png", compress_level=1)


def _write_json(path: Path, records: list[dict[str, Any]] | dict[str, str]) -> None:
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
