"""Time to the first training batch, and memory, with many dialogues of annotations.

    python benchmarks/scale.py [dialogues=1000000] [workers=2] [folder=runs/scale]

Writes a training file of so many two-turn dialogues (those of the scenes world, again and again) unless `folder` holds
it, and opens it twice, each time in a process of its own: the first reads it through and checks it, the second finds
its index. Each line of output is a JSON object; times begin with the process, imports included.
"""

import json
import multiprocessing
import platform
import resource
import sys
import time
from contextlib import redirect_stdout
from itertools import cycle, islice
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from _line import print_line
from rich.progress import track

from sparkles.config import call
from sparkles.data.annotations import records
from sparkles.nano.dataset import ensure

MEGABYTE = 1024**2


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


def first_batches(path: Path, images: Path, workers: int, told: "SimpleQueue[tuple[float, float]]") -> None:
    """Tells when the first batch was there, and the most memory that any process of this run has had by batch 50."""
    from sparkles.data.datamodule import SparklesDataModule
    from sparkles.data.images import ImageTransform
    from sparkles.data.mixture import SubsetSpec
    from sparkles.data.tokenizer import load_tokenizer
    from sparkles.prompt_format import MINIGPT4

    multiprocessing.set_start_method("fork", force=True)  # of the workers, as in a run
    transform = ImageTransform(image_size=72)
    datamodule = SparklesDataModule(
        subsets={"many": SubsetSpec(name="many", annotations=path, images=images)},
        tokenizer=load_tokenizer("sparkles/nano/weights/language"),
        prompt_format=MINIGPT4,
        num_query_tokens=8,
        train_transform=transform,
        eval_transform=transform,
        max_length=1024,
        batch_size=16,
        steps=1_000,
        num_workers=workers,
    )
    with redirect_stdout(sys.stderr):  # it describes the mixture
        datamodule.setup("fit")
    batches = iter(datamodule.train_dataloader())
    next(batches)
    first = time.time()
    for _ in islice(batches, 49):
        pass
    del batches  # ends the workers, whose memory is counted when they have ended
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    told.put((first, max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024))


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
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    for config in ("read through and checked, once", "with its index"):
        start = time.time()
        process = context.Process(target=first_batches, args=(path, source / "images", workers, told))
        process.start()
        process.join()
        first, memory = told.get()
        print_line(
            f"{dialogues:,} dialogues of annotations, {path.stat().st_size / MEGABYTE:,.0f} MB",
            config,
            figure=round(first - start, 1),
            unit="s to the first batch",
            memory_mb=round(memory / MEGABYTE),
            workers=workers,
            python=platform.python_version(),
        )


if __name__ == "__main__":
    call("scale.py", measure, sys.argv[1:])
