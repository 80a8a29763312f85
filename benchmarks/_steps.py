"""Steps of training at full size, in one way after the other."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from _device import device_name, forget_peak, peak_megabytes, timed
from _line import print_line
from _original import images_one_dialogue_at_a_time, summed_loss
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded
from sparkles.models.arithmetic import flops_per_image, training_flops
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX

BATCH_SIZE, STEPS = 8, 1_500
"""Of the paper's training (appendix B)."""
Batch = dict[str, Tensor]
Way = Callable[[SparklesChat, Batch, Sequence[int]], Tensor]
"""Model, batch and images of each of its dialogues -> loss."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Steps of training, their batches in the processor's memory, and what they need."""

    steps: Sequence[tuple[Batch, Sequence[int]]]
    samples: int
    answers: int
    tokens: int
    images: int
    flops: float

    @classmethod
    def of(cls, draw: Callable[[], Encoded], steps: int, model: SparklesChat) -> "Work":
        side = model.vision.image_size

        def pad(batch: Sequence[Encoded]) -> Batch:
            pixels = torch.randn(sum(len(one.images) for one in batch), 3, side, side)
            return pad_batch(batch, [*pixels], pad_token_id=0, side="right")

        drawn = [[draw() for _ in range(BATCH_SIZE)] for _ in range(steps)]
        samples = [one for batch in drawn for one in batch]
        lengths = [len(one.input_ids) for one in samples]
        images = sum(len(one.images) for one in samples)
        # Each answer that is learnt has a weight of its own.
        answers = sum(len({*(one.loss_weights or ())} - {0.0}) for one in samples)
        text = training_flops(
            model.language,
            tokens=sum(lengths),
            square_tokens=sum(length**2 for length in lengths),
            labelled=sum(label != IGNORE_INDEX for one in samples for label in one.labels or ()),
        )
        return cls(
            steps=[(pad(batch), [len(one.images) for one in batch]) for batch in drawn],
            samples=len(samples),
            answers=answers,
            tokens=sum(lengths),
            images=images,
            flops=text + images * flops_per_image(model),
        )


def original(model: SparklesChat, batch: Batch, counts: Sequence[int]) -> Tensor:
    features = images_one_dialogue_at_a_time(model, batch["pixel_values"], counts)
    return summed_loss(model, batch, features)


def images_together(model: SparklesChat, batch: Batch, counts: Sequence[int]) -> Tensor:
    return summed_loss(model, batch, model.encode_images(batch["pixel_values"]))


def grouped(groups: int, model: SparklesChat, batch: Batch, counts: Sequence[int]) -> Tensor:
    model.length_groups = groups
    return model(batch)


def packed(model: SparklesChat, batch: Batch, counts: Sequence[int]) -> Tensor:
    model.packed = True
    try:
        return model(batch)
    finally:
        model.packed = False


FOUR_GROUPS = partial(grouped, 4)
TRAINING: Mapping[str, Way] = {
    "the original's way: images one dialogue at a time, logits everywhere": original,
    "+ images of a batch in one call": images_together,
    "+ logits only where there is loss, no mask": partial(grouped, 1),
    "+ two groups by length": partial(grouped, 2),
    "+ four groups by length": FOUR_GROUPS,
}


class Training:
    """Times steps in one way after the other, and tells each."""

    def __init__(self, model: SparklesChat, device: torch.device, peak: float) -> None:
        self.model = model
        self.device = device
        self.peak = peak
        self.optimizer = torch.optim.AdamW(model.projector.parameters(), lr=3e-5, weight_decay=0.05)
        self.slowest: float | None = None

    def tell(self, name: str, way: Way, work: Work) -> None:
        """Time all steps; the first two are done before as well, to warm up."""
        for batch, counts in work.steps[:2]:
            self._step(way, batch, counts)
        forget_peak(self.device)
        seconds = []
        for batch, counts in work.steps:
            with timed(self.device) as took:
                self._step(way, batch, counts)
            seconds += took
        total = sum(seconds)
        each = total / work.answers
        self.slowest = self.slowest or each
        print_line(
            f"SparklesChat, training in batches of {BATCH_SIZE}",
            name,
            figure=round(1 / each, 2),
            unit="answers/s",
            ratio=round(self.slowest / each, 2),
            utilisation=round(work.flops / total / self.peak, 4),
            seconds_a_step=round(statistics.median(seconds), 4),
            spread_s=[round(min(seconds), 4), round(max(seconds), 4)],
            tokens_per_s=round(work.tokens / total),
            minutes_of_the_papers_run=round(STEPS * BATCH_SIZE * each / 60, 2),
            peak_mb=peak_megabytes(self.device),
            steps=len(seconds),
            device=device_name(self.device),
        )

    def tell_profile(self, name: str, way: Way, work: Work) -> None:
        """Where the time of one step goes."""
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        with profile(activities=kinds) as profiler, timed(self.device) as took:
            self._step(way, *work.steps[0])
        for kind, seconds in kernel_seconds(profiler, self.device).items():
            print_line(
                f"SparklesChat, where a step's time goes: {name}",
                kind,
                figure=round(1e3 * seconds, 1),
                unit="ms",
                part=round(seconds / sum(took), 3),
                device=device_name(self.device),
            )

    def _step(self, way: Way, batch: Batch, counts: Sequence[int]) -> None:
        """From a batch in the processor's memory to changed weights."""
        loss = way(self.model, {name: tensor.to(self.device) for name, tensor in batch.items()}, counts)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def kernel_seconds(profiler: profile, device: torch.device) -> dict[str, float]:
    """Time in kernels of each kind; what is missing to that of the step passed without any."""
    kinds = {
        "attention": ("flash", "fmha", "attention"),
        "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "::mm", "::addmm", "::bmm"),
        "copies": ("memcpy", "memset", "copy_"),
        "other": ("",),
    }
    wanted = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    found = dict.fromkeys(kinds, 0.0)
    for event in profiler.events():
        if event.device_type == wanted and not event.is_user_annotation:
            name = event.name.lower()
            kind = next(kind for kind, words in kinds.items() if any(word in name for word in words))
            found[kind] += (event.self_device_time_total or event.self_cpu_time_total) / 1e6
    return found
