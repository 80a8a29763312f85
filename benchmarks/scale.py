"""Time to the first training batch, and memory, with many dialogues of annotations.

    python benchmarks/scale.py [dialogues=1000000] [workers=2] [folder=runs/scale]

Writes a training file of so many two-turn dialogues (those of the scenes world, again and again) unless `folder` holds
it, and opens it several times, each time in a process of its own: the first reads it through, and has it checked beside
the training; the second finds its index; others go on in the middle of the epoch, with other numbers of workers and
processes, and must get the same samples. Each line of output is a JSON object; times begin with the process, imports
included, and memory is that of the process and all that it starts, shared pages counted once.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from hashlib import sha256
from itertools import cycle, islice
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from _line import print_line
from rich.progress import track

from sparkles.config import call
from sparkles.data.annotations import records
from sparkles.nano.dataset import ensure

MEGABYTE = 1024**2
STEPS, MIDDLE, COMPARED = 100, 50, 10
"""Of an epoch: its batches, the one at which others go on, and how many of theirs are compared."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How the file is opened."""

    path: Path
    images: Path
    workers: int
    position: int = 0
    """Batches that were used before."""
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Told:
    """What came of it."""

    first: float
    """When the first batch was there."""
    samples: list[list[str]]
    """Digests of the samples of each batch."""


def write(path: Path, dialogues: int, source: Path) -> None:
    """A training file of second turns."""
    files = sorted((source / "annotations").glob("*_turn2_*img.json"))
    known = cycle([one.record for file in files for one in records(file)])
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    with draft.open("w", encoding="utf-8") as file:
        for number in track(range(dialogues), "writing", transient=True):
            text = json.dumps(next(known) | {"sample_id": f"{number}/turn2"}, ensure_ascii=False, indent=1)
            file.write(f"{',' if number else '['}\n{text}")
        file.write("\n]\n")
    draft.replace(path)


def read_batches(opening: Opening, told: "SimpleQueue[Told]") -> None:
    """Read on from a place of the epoch to a little behind its middle."""
    from sparkles.data.datamodule import SparklesDataModule
    from sparkles.data.images import ImageTransform
    from sparkles.data.mixture import SubsetSpec
    from sparkles.data.tokenizer import load_tokenizer
    from sparkles.prompt_format import MINIGPT4

    multiprocessing.set_start_method("fork", force=True)  # of the workers, as in a run
    transform = ImageTransform(image_size=72)
    datamodule = SparklesDataModule(
        subsets={"many": SubsetSpec(name="many", annotations=opening.path, images=opening.images)},
        tokenizer=load_tokenizer("sparkles/nano/weights/language"),
        prompt_format=MINIGPT4,
        num_query_tokens=8,
        train_transform=transform,
        eval_transform=transform,
        max_length=1024,
        batch_size=16,
        steps=STEPS,
        num_workers=opening.workers,
    )
    with redirect_stdout(sys.stderr):  # it describes the mixture
        datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    sampler = loader.batch_sampler
    sampler.position, sampler.rank, sampler.world_size = opening.position, opening.rank, opening.world_size
    batches = iter(loader)
    first = next(batches)
    now = time.time()
    others = islice(batches, MIDDLE + COMPARED - opening.position - 1)
    samples = [
        [
            sha256(row[mask.bool()].numpy().tobytes()).hexdigest()
            for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        for batch in (first, *others)
    ]
    told.put(Told(first=now, samples=samples))


@dataclass(frozen=True, kw_only=True)
class Opened:
    """One opening, measured from outside."""

    told: Told
    first_s: float
    """Seconds to the first batch."""
    end_s: float
    """Seconds to the end of its last process."""
    most: int
    """Bytes that it and its own held at most."""


def open_once(opening: Opening) -> Opened:
    """In a process of its own."""
    context = multiprocessing.get_context("spawn")
    told: SimpleQueue[Told] = context.SimpleQueue()
    start, most = time.time(), 0
    process = context.Process(target=read_batches, args=(opening, told))
    process.start()
    answer = None
    while process.is_alive() or not told.empty():
        most = max(most, sum(map(memory_of, family(process.pid))))
        answer = answer if told.empty() else told.get()
        process.join(0.2)
    if answer is None:
        sys.exit("the process ended without a word; its error stands above")
    return Opened(told=answer, first_s=answer.first - start, end_s=time.time() - start, most=most)


def family(pid: int | None) -> list[int]:
    """A process and all that descend from it, as Linux tells."""
    try:
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
    except OSError:  # it has ended
        return []
    return [int(pid or 0), *(one for child in children for one in family(child))]


def memory_of(pid: int) -> int:
    """Bytes of a process, of shared ones its part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def measure(
    dialogues: int = 1_000_000,
    workers: int = 2,
    folder: str = "runs/scale",
    data_root: str = "data/scenes",
) -> None:
    """Time the first batch, and measure memory, with and without an index.

    Args:
        dialogues: records of the file.
        workers: of the DataLoader.
        folder: of the file.
        data_root: of the scenes world, which is drawn if it is not there.
    """
    source = ensure(data_root) / "SparklesDialogueCC"
    path = Path(folder) / f"{dialogues}.json"
    if not path.is_file():
        write(path, dialogues, source)
    for old in path.parent.glob(f".{path.name}.*"):
        old.unlink()
    images = source / "images"

    def tell(config: str, *openings: Opening) -> Sequence[Told]:
        was_there = any(path.parent.glob(f".{path.name}.*"))
        opened = [open_once(opening) for opening in openings]
        checked = {} if was_there else {"checked_after_s": round(opened[0].end_s, 1)}
        print_line(
            f"{dialogues:,} dialogues of annotations, {path.stat().st_size / MEGABYTE:,.0f} MB",
            config,
            figure=round(max(one.first_s for one in opened), 1),
            unit="s to the first batch",
            peak_mb=round(max(one.most for one in opened) / MEGABYTE),
            workers=openings[0].workers,
            **checked,
        )
        return [one.told for one in opened]

    plain = Opening(path=path, images=images, workers=workers)
    (whole,) = tell("for the first time: read through; checked beside the training", plain)
    expected = whole.samples[MIDDLE:]
    (again,) = tell("with its index", plain)
    _agree(again.samples, whole.samples)
    (resumed,) = tell(
        "goes on in the middle of the epoch, one worker more",
        Opening(path=path, images=images, workers=workers + 1, position=MIDDLE),
    )
    _agree(resumed.samples, expected)
    shares = tell(
        "the same in two processes, each of which takes half of every batch",
        *(
            Opening(path=path, images=images, workers=workers, position=MIDDLE, rank=rank, world_size=2)
            for rank in (0, 1)
        ),
    )
    for rank, share in enumerate(shares):
        _agree(share.samples, [batch[rank::2] for batch in expected])


def _agree(found: list[list[str]], expected: list[list[str]]) -> None:
    if found != expected:
        sys.exit("other samples, or in another order, than in one go")


if __name__ == "__main__":
    call("scale.py", measure, sys.argv[1:])
