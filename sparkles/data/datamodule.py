"""The LightningDataModule: reads the subsets, mixes them, encodes dialogues and images into batches."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
import numpy as np
import rich
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.panel import Panel
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from sparkles.data.annotations import AnnotationError, Reading, read_file, report
from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder, Tokenizer
from sparkles.data.images import ImageTransform, load_image
from sparkles.data.mixture import Draw, Mix, Mixture, MixtureSampler, SubsetSpec
from sparkles.prompt_format import PromptFormat
from sparkles.types import Image, InputError, Sample

Batch = dict[str, torch.Tensor]
OnBadRecord = Literal["stop", "skip"]

log = logging.getLogger(__name__)

_CACHE_BYTES = 2 * 1024**3
"""Pixels that `cache_images` keeps at most, in each worker."""


class Example(NamedTuple):
    """One sample, ready to be padded into a batch."""

    encoded: Encoded
    pixel_values: list[torch.Tensor]
    """float32[3, H, W] of each of `encoded.images`."""


class SampleDataset(Dataset[Example]):
    """Samples of named subsets, addressed by `Draw`.

    An example depends on its draw alone: random augmentation is seeded with the draw's place in the stream,
    so neither the number of workers nor an interruption changes it.
    """

    def __init__(
        self,
        samples: Mapping[str, Sequence[Sample]],
        *,
        encoder: Encoder,
        transform: ImageTransform,
        seed: int = 0,
        cache_images: bool = False,
    ) -> None:
        self.samples = samples
        self.encoder = encoder
        self.transform = transform
        self.seed = seed
        # Once full, the cache keeps what it has: in a random order, no image is likelier than others to be next.
        image_bytes = 3 * transform.image_size**2 * torch.float32.itemsize
        self._cache_size = _CACHE_BYTES // image_bytes if cache_images else 0
        self._cache: dict[Image, torch.Tensor] = {}

    def __getitem__(self, draw: Draw) -> Example:
        try:
            encoded = self.encoder.encode_sample(self.samples[draw.subset][draw.index])
            return Example(encoded, self._load_images(encoded.images, draw.serial))
        except ValueError as error:
            error.add_note(f"in sample {draw.index} of subset {draw.subset!r}")
            raise

    def _load_images(self, images: Sequence[Image], serial: int) -> list[torch.Tensor]:
        if not self.transform.train:
            return [self._load_cached(image) for image in images]
        with torch.random.fork_rng(devices=()):
            seed = np.random.SeedSequence((self.seed, serial)).generate_state(1)[0]
            torch.default_generator.manual_seed(int(seed))
            return [self.transform(load_image(image)) for image in images]

    def _load_cached(self, image: Image) -> torch.Tensor:
        pixels = self._cache.get(image)
        if pixels is None:
            pixels = self.transform(load_image(image))
            if len(self._cache) < self._cache_size:
                self._cache[image] = pixels
        return pixels


class MixtureLoader(DataLoader[Example]):
    """A DataLoader whose state Lightning saves and restores: the place in the stream of its sampler."""

    batch_sampler: MixtureSampler

    def state_dict(self) -> dict[str, Any]:
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.batch_sampler.load_state_dict(state_dict)


class SparklesDataModule(L.LightningDataModule):
    """Training batches from a mixture of subsets, validation batches from others in their order.

    The trainer needs `use_distributed_sampler=False`: each process takes its share of every batch here.

    Args:
        subsets: what to train on; the keys only serve configuration.
        val_subsets: what `val/loss` is measured on; ratios do not matter, except that 0 leaves a subset out.
        train_transform: for training images; may be random.
        eval_transform: for validation and, through callbacks, benchmarks.
        max_length: tokens of a dialogue with its image slots.
        max_prompt_length, cut_anywhere, unmask_prompt_end, system_in_training: see `Encoder`.
        batch_size: dialogues of a batch, over all processes.
        steps: optimizer steps of an epoch.
        cache_images: keep pixels in memory; for a transform that is not random.
        on_bad_record: "stop" the run and name the records that are malformed or lack images; or "skip" them, which
            is reported at the start.
        prepare: called once before anything is read, to make or fetch the files.
    """

    def __init__(
        self,
        *,
        subsets: dict[str, SubsetSpec],
        tokenizer: Tokenizer,
        prompt_format: PromptFormat,
        num_query_tokens: int,
        train_transform: ImageTransform,
        eval_transform: ImageTransform,
        max_length: int,
        max_prompt_length: int | None = None,
        cut_anywhere: bool = False,
        unmask_prompt_end: bool = False,
        system_in_training: bool = False,
        batch_size: int,
        steps: int,
        val_subsets: dict[str, SubsetSpec] | None = None,
        mix: Mix = "per_sample",
        seed: int = 0,
        num_workers: int = 0,
        cache_images: bool = False,
        on_bad_record: OnBadRecord = "stop",
        prepare: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        if on_bad_record not in get_args(OnBadRecord):
            raise InputError(
                f"on_bad_record={on_bad_record!r}, expected 'stop' or 'skip'; set data.on_bad_record"
            )
        if eval_transform.train:
            raise InputError("eval_transform is random (train=True); set data.eval_transform.train=false")
        if cache_images and train_transform.train:
            raise InputError(
                "cache_images=True would keep one random crop of each image for good; "
                "set data.cache_images=false or data.train_transform.train=false"
            )
        self.subsets = _by_name(subsets)
        self.val_subsets = _by_name(val_subsets or {})
        self.encoder = Encoder(
            tokenizer=tokenizer,
            prompt_format=prompt_format,
            num_query_tokens=num_query_tokens,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            cut_anywhere=cut_anywhere,
            unmask_prompt_end=unmask_prompt_end,
            system_in_training=system_in_training,
        )
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.batch_size = batch_size
        self.steps = steps
        self.mix = mix
        self.seed = seed
        self.num_workers = num_workers
        self.cache_images = cache_images
        self.on_bad_record = on_bad_record
        self._prepare = prepare
        self._train_samples: dict[str, list[Sample]] = {}
        self._val_samples: dict[str, list[Sample]] = {}
        self._sampler: MixtureSampler | None = None

    def prepare_data(self) -> None:
        if self._prepare is not None:
            self._prepare()

    def setup(self, stage: str) -> None:
        """Read the annotations that `stage` needs and locate every image.

        Raises:
            FileNotFoundError: lists every annotation file and image folder that is missing.
            AnnotationError: lists the records that are malformed or whose images are missing, unless
                `on_bad_record="skip"`; or a file is none of annotations at all.
            InputError: the mixture is empty.
        """
        train = self.subsets if stage == "fit" else {}
        _check_paths([*train.values(), *self.val_subsets.values()])
        self._val_samples = self._val_samples or self._read_all(self.val_subsets)
        if train and not self._train_samples:
            self._train_samples = self._read_all(train)
            self._print_mixture(self._make_mixture())

    def train_dataloader(self) -> MixtureLoader:
        """Batches of one epoch, from where the run stands."""
        trainer = self.trainer
        self._sampler = MixtureSampler(
            self._make_mixture(),
            batches_per_epoch=self.steps * (trainer.accumulate_grad_batches if trainer else 1),
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return MixtureLoader(
            **self._loader_arguments(self._train_samples, self.train_transform, self._sampler)
        )

    def val_dataloader(self) -> DataLoader[Example] | list[DataLoader[Example]]:
        """Every validation sample once, in order; each process takes every `world_size`-th batch."""
        trainer = self.trainer
        draws = [
            Draw(name, index) for name, samples in self._val_samples.items() for index in range(len(samples))
        ]
        if not draws and trainer and trainer.state.fn == "validate":
            # Lightning would skip the hooks that run the benchmarks, without a word.
            raise InputError(
                "nothing to validate on: without data.val_subsets no benchmark would run; set them"
            )
        if not draws:
            return []
        size = max(1, self.batch_size // (trainer.world_size if trainer else 1))
        batches = [draws[start : start + size] for start in range(0, len(draws), size)]
        share = batches[trainer.global_rank :: trainer.world_size] if trainer else batches
        return DataLoader(**self._loader_arguments(self._val_samples, self.eval_transform, share))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the training batches used, which is where a resumed run goes on."""
        if self._sampler is not None and self.trainer is not None and self.trainer.training:
            self._sampler.position += 1
        return batch

    def files(self) -> dict[str, Path]:
        """Annotation files of the subsets that are in use, whose hashes identify the data of a run."""
        specs = (self.subsets | self.val_subsets).values()
        return {
            f"{spec.name}/{path.name}": path
            for spec in specs
            if spec.ratio > 0
            for path in spec.annotation_files
        }

    def _read_all(self, specs: Mapping[str, SubsetSpec]) -> dict[str, list[Sample]]:
        """Samples of each subset that is in use; problems of all files are reported together."""
        readings: dict[str, list[Reading[Sample]]] = {}
        unreadable = []
        for name, spec in specs.items():
            if spec.ratio > 0:
                folder, readings[name] = spec.folder, []
                for file in spec.annotation_files:
                    try:
                        readings[name].append(read_file(file, spec.reader.parse, folder))
                    except AnnotationError as error:
                        unreadable.append(str(error))
        bad = [reading for group in readings.values() for reading in group if reading.problems]
        if unreadable:
            raise AnnotationError("\n".join([*unreadable, report(bad)]).rstrip())
        if bad and self.on_bad_record == "stop":
            raise AnnotationError(
                f"{report(bad)}\nrepair them, or leave them out with data.on_bad_record=skip"
            )
        _log_skipped(bad)
        return {
            name: [sample for reading in group for sample in reading.values]
            for name, group in readings.items()
        }

    def _make_mixture(self) -> Mixture:
        return Mixture(
            sizes={name: len(samples) for name, samples in self._train_samples.items()},
            ratios={name: spec.ratio for name, spec in self.subsets.items()},
            batch_size=self.batch_size,
            mix=self.mix,
            seed=self.seed,
        )

    def _loader_arguments(
        self,
        samples: Mapping[str, Sequence[Sample]],
        transform: ImageTransform,
        batches: MixtureSampler | list[list[Draw]],
    ) -> dict[str, Any]:
        return {
            "dataset": SampleDataset(
                samples,
                encoder=self.encoder,
                transform=transform,
                seed=self.seed,
                cache_images=self.cache_images,
            ),
            "batch_sampler": batches,
            "collate_fn": partial(_collate, pad_token_id=self.encoder.pad_token_id),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }

    @rank_zero_only
    def _print_mixture(self, mixture: Mixture) -> None:
        table = Table(title=f"training mixture, drawn {self.mix.replace('_', ' ')}, seed {self.seed}")
        for heading in ("subset", "samples", "images", "ratio", "share"):
            table.add_column(heading, justify="left" if heading == "subset" else "right")
        for name, samples in self._train_samples.items():
            images = {image.path for sample in samples for image in sample.images}
            share = f"{mixture.shares[name]:.1%}"
            table.add_row(name, str(len(samples)), str(len(images)), f"{mixture.ratios[name]:g}", share)
        first = mixture.batch_indices(0)[0]
        encoded = self.encoder.encode_sample(self._train_samples[first.subset][first.index])
        rich.print(
            table,
            Panel(self.encoder.describe(encoded), title=f"first sample ({first.subset}), loss on bold green"),
        )


def _collate(examples: Sequence[Example], *, pad_token_id: int) -> Batch:
    pixel_values = [pixels for example in examples for pixels in example.pixel_values]
    return pad_batch(
        [example.encoded for example in examples], pixel_values, pad_token_id=pad_token_id, side="right"
    )


def _by_name(specs: Mapping[str, SubsetSpec]) -> dict[str, SubsetSpec]:
    by_name = {spec.name: spec for spec in specs.values()}
    if len(by_name) < len(specs):
        raise InputError(f"two subsets have the same name among {', '.join(s.name for s in specs.values())}")
    return by_name


def _check_paths(specs: Sequence[SubsetSpec]) -> None:
    missing = []
    for spec in specs:
        if spec.ratio > 0 and not spec.annotation_files:
            missing.append(f"subset {spec.name!r}: no annotation file {spec.annotations}")
        if spec.ratio > 0 and not spec.images.is_dir():
            missing.append(f"subset {spec.name!r}: no image folder {spec.images}")
    if missing:
        raise FileNotFoundError("\n".join([*missing, "make the data first, or correct data.subsets.<name>"]))


@rank_zero_only
def _log_skipped(readings: Sequence[Reading[Sample]]) -> None:
    for reading in readings:
        log.warning("%s: skipped %d of %d records", reading.path, len(reading.problems), reading.num_records)
    if readings:
        log.warning(report(readings))
