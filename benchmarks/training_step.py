"""What each technique buys in a training step of nano on two-turn dialogues, against the original's way.

    python benchmarks/training_step.py [threads=2] [repeats=7] [batches=6]

Each line of output is a JSON object. The first way is the original's, written plainly: images are encoded one dialogue
at a time, every token gets logits, padding is masked, and the second turn is a pass of its own over the first turn's
text. Each further way adds one technique. All ways take the same dialogues one after the other in every repeat, so that
what else the machine does falls on all of them; figures are medians, and `loss` must agree.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _line import print_line, speed
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from sparkles.config import CONFIG_DIR, call, register_resolvers
from sparkles.data.collate import pad_batch
from sparkles.data.datamodule import SparklesDataModule
from sparkles.data.images import load_image
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX, Prompt, Sample

BATCH_SIZE = 8
Batch = dict[str, Tensor]
Way = Callable[[SparklesChat, "Dialogues"], Tensor]


class Dialogues:
    """Two-turn dialogues as batches: each turn for itself, and both in one."""

    def __init__(self, datamodule: SparklesDataModule, samples: Sequence[Sample]) -> None:
        encoder, pad = datamodule.encoder, datamodule.encoder.pad_token_id
        first = [
            Sample(prompt=Prompt(messages=one.prompt.messages[:1]), answer=one.prompt.messages[1].content)
            for one in samples
        ]

        def batch(samples: Sequence[Sample], earlier_weights: Sequence[float] = ()) -> Batch:
            encoded = [encoder.encode_sample(sample, earlier_weights) for sample in samples]
            pixels = [datamodule.eval_transform(load_image(image)) for one in encoded for image in one.images]
            return pad_batch(encoded, pixels, pad_token_id=pad, side="right")

        self.turns = [batch(first), batch(samples)]
        self.joint = batch(samples, [1.0])
        self.image_counts = [[len(one.images) for one in turn] for turn in (first, samples)]
        self.num_labels = sum(int((turn["labels"] != IGNORE_INDEX).sum()) for turn in self.turns)
        self.image_features = torch.empty(0)


def originals_way(model: SparklesChat, dialogues: Dialogues) -> Tensor:
    """Sum of the losses of both turns; images one dialogue at a time, logits everywhere."""
    total = torch.zeros(())
    for turn, counts in zip(dialogues.turns, dialogues.image_counts, strict=True):
        features = [model.encode_images(pixels) for pixels in turn["pixel_values"].split(counts)]
        total = total + _full_logits(model, turn, torch.cat(features))
    return total


def images_together(model: SparklesChat, dialogues: Dialogues) -> Tensor:
    losses = [
        _full_logits(model, turn, model.encode_images(turn["pixel_values"])) for turn in dialogues.turns
    ]
    return torch.stack(losses).sum()


def labelled_logits(model: SparklesChat, dialogues: Dialogues) -> Tensor:
    model.length_groups = 1
    return _by_turns(model, dialogues)


def length_groups(model: SparklesChat, dialogues: Dialogues) -> Tensor:
    model.length_groups = 4
    return _by_turns(model, dialogues)


def joint_turns(model: SparklesChat, dialogues: Dialogues) -> Tensor:
    model.length_groups = 4
    return model(dialogues.joint) * dialogues.num_labels


def cached_features(model: SparklesChat, dialogues: Dialogues) -> Tensor:
    model.length_groups = 4
    features = {"image_features": dialogues.image_features}
    return model(dialogues.joint | features) * dialogues.num_labels


WAYS: dict[str, Way] = {
    "the original's way": originals_way,
    "+ images of a batch in one call": images_together,
    "+ logits only where there is loss": labelled_logits,
    "+ four groups by length, no mask": length_groups,
    "+ both turns in one pass": joint_turns,
    "+ features of images cached": cached_features,
}


def _by_turns(model: SparklesChat, dialogues: Dialogues) -> Tensor:
    losses = [model(turn) * (turn["labels"] != IGNORE_INDEX).sum() for turn in dialogues.turns]
    return torch.stack(losses).sum()


def _full_logits(model: SparklesChat, batch: Batch, features: Tensor) -> Tensor:
    embeds = model.embed(batch["input_ids"], batch["pixel_values"], features)
    logits = model.language(
        inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False
    ).logits
    targets = batch["labels"][:, 1:].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=IGNORE_INDEX, reduction="sum")


def measure(
    threads: int = 2, repeats: int = 7, batches: int = 6, data_root: Path = Path("data/scenes")
) -> None:
    """Time a training step of nano on two-turn dialogues, one technique after the other.

    Args:
        threads: of torch.
        repeats: of which the median is taken; one more goes before them.
        batches: of 8 dialogues that a repeat goes through.
        data_root: of the scenes world, which is drawn if it is not there.
    """
    torch.set_num_threads(threads)
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", [f"data_root={data_root}"])
    datamodule: SparklesDataModule = instantiate(cfg.data, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup("fit")
    model: SparklesChat = instantiate(cfg.model, _convert_="all")
    mixture = datamodule._make_mixture()
    work = []
    for step in range(batches):
        draws = mixture.batch_indices(step)[:BATCH_SIZE]
        dialogues = Dialogues(datamodule, [datamodule._train_samples[d.subset][d.index] for d in draws])
        dialogues.image_features = model.encode_images(dialogues.joint["pixel_values"])
        work.append(dialogues)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    losses: dict[str, float] = {}
    with Console(stderr=True).status("measuring"):
        for repeat in range(repeats + 1):
            for name, way in WAYS.items():
                start, total = time.perf_counter(), 0.0
                for dialogues in work:
                    loss = way(model, dialogues)
                    loss.backward()
                    model.projector.zero_grad()
                    total += loss.item()
                losses[name] = total / sum(dialogues.num_labels for dialogues in work)
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
    slowest = statistics.median(seconds["the original's way"])
    tokens = sum(int(turn["attention_mask"].sum()) for dialogues in work for turn in dialogues.turns)
    for name, times in seconds.items():
        print_line(
            "nano training step, two-turn dialogues",
            name,
            **speed(times, slowest, amount=batches * BATCH_SIZE, unit="dialogues"),
            loss=round(losses[name], 5),
            tokens_per_s_of_two_passes=round(tokens / statistics.median(times)),
            threads=threads,
            repeats=repeats,
            torch=torch.__version__,
        )


if __name__ == "__main__":
    call("training_step.py", measure, sys.argv[1:])
