"""What each technique buys in a training step of nano, against the original's way.

    python benchmarks/training_step.py [threads=2] [repeats=7] [batches=6] [batch_size=8] [compile=false]

Each line of output is a JSON object. The first way is the original's, written plainly: images are encoded one dialogue
at a time, every token gets logits, padding is masked, and the second turn is a pass of its own over the first turn's
text. Each way that begins with "+" adds one technique to the way before it; the others take the place of the last.
All ways take the same dialogues one after the other in every repeat, so that what else the machine does falls on all of
them; figures are medians, and `loss` must agree.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _line import print_line, speed
from _original import images_one_dialogue_at_a_time, summed_loss
from floor import matrix_product
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from torch import Tensor

from sparkles.config import CONFIG_DIR, call, register_resolvers
from sparkles.data.collate import pad_batch
from sparkles.data.datamodule import SparklesDataModule
from sparkles.data.images import load_image
from sparkles.models.arithmetic import training_flops
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX, Prompt, Sample

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the loss of some dialogues comes about."""

    name: str
    one_by_one: bool = False
    """Images go through the encoder one dialogue at a time."""
    all_logits: bool = False
    joint: bool = False
    """All turns in one pass."""
    cached: bool = False
    """Features of images are known."""
    by_length: bool = False
    """Batches are of samples of about one length."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of SparklesChat."""


LABELLED = Way(name="+ logits only where there is loss")
COMMON = [
    Way(name="the original's way", one_by_one=True, all_logits=True),
    Way(name="+ images of a batch in one call", all_logits=True),
    LABELLED,
]


def on_top(way: Way) -> list[Way]:
    """What can be added to a way whose passes are what they have to be."""
    cached = replace(way, name="+ features of images cached", cached=True)
    groups = replace(cached, name="+ four groups by length, no mask", model={"length_groups": 4})
    return [
        cached,
        groups,
        replace(cached, name="rows packed, instead of groups", model={"packed": True}),
        replace(cached, name="batches by length, instead of groups", by_length=True),
        replace(
            groups,
            name="with the groups, gradient checkpointing",
            model=groups.model | {"gradient_checkpointing": True},
        ),
    ]


JOINT = replace(LABELLED, name="+ both turns in one pass", joint=True)
WAYS = {"two-turn dialogues": [*COMMON, JOINT, *on_top(JOINT)], "single turns": [*COMMON, *on_top(LABELLED)]}


class Work:
    """The same samples as batches, of each turn for itself and of whole dialogues, and what is known of them."""

    def __init__(self, datamodule: SparklesDataModule, model: SparklesChat, batch_size: int) -> None:
        self.datamodule, self.model, self.batch_size = datamodule, model, batch_size
        self.batches: dict[tuple[bool, bool], list[tuple[Batch, list[int]]]] = {}
        """By `joint` and `by_length`: batches, and the number of images of each of their samples."""

    def fill(self, dialogues: Sequence[Sample], *, two_turns: bool) -> None:
        """Use both turns of these dialogues, or of two in three the first and of one the second, as the paper draws."""
        first = [
            Sample(prompt=Prompt(messages=one.prompt.messages[:1]), answer=one.prompt.messages[1].content)
            for one in dialogues
        ]
        drawn = [dialogues[place] if place % 3 == 2 else one for place, one in enumerate(first)]
        turns = [first, dialogues] if two_turns else [drawn]
        for by_length in (False, True):
            self.batches[False, by_length] = [
                batch for turn in turns for batch in self._batches(turn, (), by_length)
            ]
            self.batches[True, by_length] = self._batches(dialogues, [1.0], by_length)
        plain = [batch for batch, _ in self.batches[False, False]]
        self.num_labels = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in plain)
        least = [batch for batch, _ in self.batches[two_turns, False]]
        lengths = torch.cat([batch["attention_mask"].sum(1) for batch in least]).float()
        self.flops = training_flops(
            self.model.language,
            tokens=lengths.sum().item(),
            square_tokens=lengths.square().sum().item(),
            labelled=self.num_labels,
        )

    def _batches(
        self, samples: Sequence[Sample], earlier_weights: Sequence[float], by_length: bool
    ) -> list[tuple[Batch, list[int]]]:
        encoder = self.datamodule.encoder
        encoded = [encoder.encode_sample(sample, earlier_weights) for sample in samples]
        if by_length:
            encoded.sort(key=lambda one: len(one.input_ids))
        found = []
        for start in range(0, len(encoded), self.batch_size):
            rows = encoded[start : start + self.batch_size]
            pixels = [
                self.datamodule.eval_transform(load_image(image)) for one in rows for image in one.images
            ]
            batch = pad_batch(rows, pixels, pad_token_id=encoder.pad_token_id, side="right")
            batch["image_features"] = self.model.encode_images(batch["pixel_values"])
            found.append((batch, [len(one.images) for one in rows]))
        return found

    def step(self, way: Way, model: SparklesChat) -> float:
        """Losses and gradients of all batches: the sum over labelled tokens."""
        total = 0.0
        for known, counts in self.batches[way.joint, way.by_length]:
            batch = {key: value for key, value in known.items() if way.cached or key != "image_features"}
            if way.one_by_one:
                pixels = batch["pixel_values"]
                batch["image_features"] = images_one_dialogue_at_a_time(model, pixels, counts)
            if way.all_logits:
                features = batch.get("image_features")
                features = model.encode_images(batch["pixel_values"]) if features is None else features
                loss = summed_loss(model, batch, features)
            else:
                loss = model(batch) * (batch["labels"] != IGNORE_INDEX).sum()
            loss.backward()
            total += loss.item()
        model.projector.zero_grad()
        return total


def measure(
    threads: int = 2,
    repeats: int = 7,
    batches: int = 6,
    batch_size: int = 8,
    compile: bool = False,
    data_root: Path = Path("data/scenes"),
) -> None:
    """Time a training step of nano, one technique after the other, on two-turn dialogues and on single turns.

    Args:
        threads: of torch.
        repeats: of which the median is taken; one more goes before them.
        batches: that a repeat goes through.
        batch_size: dialogues of each.
        compile: also by torch.compile, which takes minutes before it begins.
        data_root: of the scenes world, which is drawn if it is not there.
    """
    torch.set_num_threads(threads)
    peak = matrix_product(torch.device("cpu"))
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", [f"data_root={data_root}"])
    datamodule: SparklesDataModule = instantiate(cfg.data, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup("fit")
    mixture = datamodule._make_mixture()
    draws = [draw for step in range(batches) for draw in mixture.batch_indices(step)][: batches * batch_size]
    dialogues = [datamodule._train_samples[draw.subset][draw.index] for draw in draws]

    def build(way: Way) -> SparklesChat:
        # One for each way, as a model that computes its layers otherwise stays so; all have the same weights.
        torch.manual_seed(0)
        model: SparklesChat = instantiate(cfg.model, **({"length_groups": 1} | way.model), _convert_="all")
        return model

    work = Work(datamodule, build(LABELLED), batch_size)
    for what, ways in WAYS.items():
        work.fill(dialogues, two_turns=what == "two-turn dialogues")
        if compile:
            groups = next(way for way in ways if "length_groups" in way.model)
            ways = [
                *ways,
                replace(
                    groups,
                    name="with the groups, torch.compile",
                    model=groups.model | {"compile_backend": "inductor"},
                ),
            ]
        models = [build(way) for way in ways]
        seconds: list[list[float]] = [[] for _ in ways]
        losses = [0.0] * len(ways)
        with Console(stderr=True).status("measuring"):
            for repeat in range(repeats + 1):
                for place, (way, model) in enumerate(zip(ways, models, strict=True)):
                    start = time.perf_counter()
                    losses[place] = work.step(way, model) / work.num_labels
                    if repeat:
                        seconds[place].append(time.perf_counter() - start)
        for way, times, loss in zip(ways, seconds, losses, strict=True):
            median = statistics.median(times)
            print_line(
                f"nano training step, {what}",
                way.name,
                **speed(times, statistics.median(seconds[0]), amount=len(dialogues), unit="dialogues"),
                utilisation=round(work.flops / median / peak, 3),
                loss=round(loss, 5),
                threads=threads,
                repeats=repeats,
                batch_size=batch_size,
            )


if __name__ == "__main__":
    call("training_step.py", measure, sys.argv[1:])
