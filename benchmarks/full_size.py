"""SparklesChat-7B on one GPU, with random weights: the paper's training, and the answers of its three benchmarks.

    python benchmarks/full_size.py [minutes=8] [size=7b]          one call; size=tiny runs the same code on a processor

Each line of output is a JSON object. It needs no weights and no data: sizes are those of conf/model/sparkles_7b.yaml,
and texts are random tokens, as many as SparklesDialogue's are believed to have. Nor does it need Hydra, so that a
machine with torch, torchvision, transformers and timm will do. What is not begun within `minutes` is left out, and a
way that fails does not stop the others; either is told on stderr.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch
import yaml
from _answers import ITEMS, Answering, least_seconds
from _device import device_name, timed
from _line import print_line
from _steps import FOUR_GROUPS, TRAINING, Training, Work, packed
from _texts import Writer
from floor import copy, matrix_product
from transformers import AutoModelForCausalLM, LlamaConfig

from sparkles.data.images import ImageTransform, load_image
from sparkles.models.learning import compile_layers
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder
from sparkles.types import Image

CONFIG = Path(__file__).parents[1] / "conf/model/sparkles_7b.yaml"


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is built, and how much is done with it."""

    overrides: Mapping[str, Mapping[str, Any]]
    """Of the parts in the configuration."""
    dtype: Literal["bfloat16", "float32"]
    """Of frozen weights; not every processor can compute in 16 bit."""
    steps: int
    items: int
    """Of each benchmark."""
    alone: int
    """Prompts that are answered one at a time."""
    rows: tuple[int, ...]
    """Answers that are written at a time."""
    texts_shortened_to: float
    floor_seconds: float


SIZES = {
    "7b": Size(
        overrides={},
        dtype="bfloat16",
        steps=12,
        items=ITEMS,
        alone=3,
        rows=(64, 128),
        texts_shortened_to=1.0,
        floor_seconds=2.0,
    ),
    "tiny": Size(
        overrides={
            "vision": {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2},
            "qformer": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "num_query_tokens": 4,
            },
            "language_config": {
                "vocab_size": 64,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
        },
        dtype="float32",
        steps=2,
        items=3,
        alone=1,
        rows=(2, 50),
        texts_shortened_to=0.05,
        floor_seconds=0.01,
    ),
}


def build(size: Size, device: torch.device) -> SparklesChat:
    """The configuration's model with random weights; the projection, which learns, is in float32."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    parts = config["model"] | {"language_config": config["language_config"]}

    def settings(part: str) -> dict[str, Any]:
        left_out = ("checkpoint", "dtype")
        own = {key: value for key, value in parts[part].items() if key[0] != "_" and key not in left_out}
        return {**own, **size.overrides.get(part, {})}

    with device:
        language = AutoModelForCausalLM.from_config(
            LlamaConfig(**settings("language_config")), dtype=size.dtype
        )
        return SparklesChat(
            vision=VisionEncoder(**settings("vision"), dtype=size.dtype),
            qformer=partial(QFormer, **settings("qformer"), dtype=size.dtype),
            projector=partial(Projector, **settings("projector")),
            language=language,
            max_images_per_forward=64,
        )


def tell_lengths(name: str, work: Work, device: torch.device) -> None:
    """What the dialogues are like that all else was measured with."""
    print_line(
        "a sample of SparklesDialogue",
        name,
        figure=round(work.tokens / work.samples, 1),
        unit="tokens",
        images=round(work.images / work.samples, 2),
        tflop_a_step=round(work.flops / len(work.steps) / 1e12, 2),
        device=device_name(device),
    )


def tell_pictures(model: SparklesChat, work: Work, device: torch.device) -> None:
    """How long a worker of the data loader takes to read, crop and resize photographs for a step."""
    transform = ImageTransform(image_size=model.vision.image_size, train=True)
    channels = [PIL.Image.effect_noise((64, 48), 64).resize((512, 384)) for _ in range(3)]
    seconds: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        PIL.Image.merge("RGB", channels).save(path, quality=90)
        for _ in range(20):
            with timed(torch.device("cpu")) as took:
                transform(load_image(Image(image_id=0, path=path)))
            seconds += took
    torch.set_num_threads(threads)
    each = statistics.median(seconds)
    print_line(
        "pictures for training, JPEG of 512 x 384 pixels",
        "one worker",
        figure=round(1 / each, 1),
        unit="pictures/s",
        seconds_for_a_step=round(each * work.images / len(work.steps), 3),
        device=device_name(device),
    )


class Schedule:
    """Runs what there is time for, whatever becomes of what ran before."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def run(self, function: Callable[..., None], name: str, *arguments: Any) -> None:
        if time.monotonic() > self._end:
            print(f"no time left for: {name}", file=sys.stderr)
            return
        try:
            function(name, *arguments)
        except Exception as error:  # of a technique that this device or version lacks, or of memory
            print(f"failed: {name}: {type(error).__name__}: {error}", file=sys.stderr)


def measure(size: str = "7b", minutes: float = 8.0) -> None:
    """Measure the floor, training and answers.

    Args:
        size: one of `SIZES`.
        minutes: after which nothing more is begun.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if size == "7b" and device.type == "cpu":
        print("no CUDA device, so nothing is measured; size=tiny runs the same code here", file=sys.stderr)
        return
    schedule, chosen = Schedule(minutes), SIZES[size]
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # of the projection, which is kept in float32
    peak, bandwidth = matrix_product(device, chosen.floor_seconds), copy(device, chosen.floor_seconds)
    model = build(chosen, device)
    writer = Writer(
        num_query_tokens=model.qformer.num_query_tokens,
        vocabulary=model.language.config.vocab_size,
        shortened_to=chosen.texts_shortened_to,
    )
    work, joint = (Work.of(draw, chosen.steps, model) for draw in (writer.sample, writer.whole))
    benchmarks = writer.benchmarks(chosen.items)
    tell_lengths("turns drawn 2:1", work, device)
    tell_lengths("whole dialogues", joint, device)
    tell_pictures(model, work, device)

    training = Training(model, device, peak)
    answering = Answering(model, device, least_seconds(model.language, benchmarks, bandwidth))
    for name, way in TRAINING.items():
        schedule.run(training.tell, name, way, work)
    schedule.run(training.tell_profile, "four groups by length", FOUR_GROUPS, work)
    in_batches, alone = answering.in_batches, [[item] for item in benchmarks[0][: chosen.alone]]
    schedule.run(answering.tell, "one prompt at a time", in_batches, alone)
    schedule.run(answering.tell, "+ a benchmark's prompts in one batch", in_batches, benchmarks)
    for rows in chosen.rows:
        name = f"{rows} at a time, the next prompt in the place of an answer that ended"
        schedule.run(answering.tell, name, partial(answering.refilled, rows), benchmarks)
    compile_layers(model.language, "inductor" if device.type == "cuda" else "eager")
    schedule.run(training.tell, "+ layers compiled", FOUR_GROUPS, work)
    schedule.run(training.tell, "+ both turns in one pass", FOUR_GROUPS, joint)
    schedule.run(training.tell, "single turns again, rows packed instead of groups", packed, work)
    schedule.run(training.tell_profile, "layers compiled", FOUR_GROUPS, work)
    static = partial(in_batches, cache_implementation="static")  # transformers then compiles a step on a GPU
    schedule.run(answering.tell, "batches, a static cache and compiled steps", static, benchmarks)


def arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """What `measure` takes, of a command line; `sparkles.config.call` would need Hydra.

    >>> arguments(["size=tiny", "minutes=1"])
    {'size': 'tiny', 'minutes': 1.0}
    """
    given = dict(pair.partition("=")[::2] for pair in pairs)
    if given.keys() - {"size", "minutes"} or given.get("size", "7b") not in SIZES:
        raise SystemExit(f"full_size.py takes size={'|'.join(SIZES)} and minutes=8, got {' '.join(pairs)}")
    return {key: float(value) if key == "minutes" else value for key, value in given.items()}


if __name__ == "__main__":
    measure(**arguments(sys.argv[1:]))
