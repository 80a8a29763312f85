"""The LightningDataModule: reads the subsets, mixes them, encodes dialogues and images into batches."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from sparkles.data.annotations import AnnotationError, Check, Reading, report
from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder, ImagePlacement, Tokenizer
from sparkles.data.features import KEY_BYTES, FeatureCache
from sparkles.data.images import ImageTransform, load_image
from sparkles.data.indexed import WhenToCheck, read_samples
from sparkles.data.mixture import Draw, Mix, Mixture, MixtureSampler, SubsetSpec
from sparkles.prompt_format import PromptFormat
from sparkles.types import Image, InputError, Sample

Batch = dict[str, torch.Tensor]
OnBadRecord = Literal["stop", "skip"]
Turns = Literal["sampled", "joint"]

log = logging.getLogger(__name__)

_CACHE_BYTES = 512 * 1024**2
"""Pixels that `cache_images` keeps at most, in each worker."""


_ADVICE = "repair them, or leave them out with data.on_bad_record=skip"

_MOST_ENCODED = 8_192
"""Samples whose tokens are kept from one pass to the next, in each worker: about 100 MB."""


class Picture(NamedTuple):
    """What the model is given of an image: its pixels, or features that are kept from an earlier time."""

    pixel_values: torch.Tensor | None
    """float32[3, H, W]"""
    features: torch.Tensor | None = None
    """float16[Q, D]"""
    key: bytes = b""
    """Under which the features are kept; empty without a cache."""


class Example(NamedTuple):
    """One sample, ready to be padded into a batch."""

    encoded: Encoded
    pictures: list[Picture]
    """Of `encoded.images`."""


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
        earlier_weights: Mapping[str, Sequence[float]] | None = None,
        seed: int = 0,
        cache_images: bool = False,
        feature_cache: FeatureCache | None = None,
        cached_crops: int = 0,
    ) -> None:
        self.samples = samples
        self.earlier_weights = earlier_weights or {}
        self.feature_cache = feature_cache
        self.cached_crops = cached_crops
        self.encoder = encoder
        self.transform = transform
        self.seed = seed
        # Once full, the cache keeps what it has: in a random order, no image is likelier than others to be next.
        image_bytes = 3 * transform.image_size**2 * torch.float32.itemsize
        self._cache_size = _CACHE_BYTES // image_bytes if cache_images else 0
        self._cache: dict[Image, torch.Tensor] = {}
        self._encoded: dict[tuple[str, int], Encoded] = {}

    def __getitem__(self, draw: Draw) -> Example:
        with _named(draw):
            encoded = self._encode(draw.subset, draw.index)
            return Example(encoded, self._load_images(encoded.images, draw.serial))

    def length_of(self, draw: Draw) -> int:
        """Tokens of a sample with its image slots."""
        with _named(draw):
            return len(self._encode(draw.subset, draw.index).input_ids)

    def _encode(self, subset: str, index: int) -> Encoded:
        encoded = self._encoded.get((subset, index))
        if encoded is None:
            sample = self.samples[subset][index]
            encoded = self.encoder.encode_sample(sample, self.earlier_weights.get(subset, ()))
            if len(self._encoded) < _MOST_ENCODED:
                self._encoded[subset, index] = encoded
        return encoded

    def _load_images(self, images: Sequence[Image], serial: int) -> list[Picture]:
        if not self.transform.train:
            return [self._load(image) for image in images]
        seed = np.random.SeedSequence((self.seed, serial))
        if self.feature_cache is not None:
            crops = np.random.default_rng(seed).integers(self.cached_crops, size=len(images)).tolist()
            return [self._load(image, crop) for image, crop in zip(images, crops, strict=True)]
        with _seeded(seed):
            return [Picture(self.transform(load_image(image))) for image in images]

    def _load(self, image: Image, crop: int | None = None) -> Picture:
        """Features if they are kept, else pixels; `crop` is the number of a random crop of this image."""
        if self.feature_cache is None:
            return Picture(self._load_pixels(image))
        key = self.feature_cache.image_key(image, self.transform, crop)
        features = self.feature_cache.get(key)
        if features is not None:
            return Picture(None, features, key)
        if crop is None:
            return Picture(self._load_pixels(image), None, key)
        content = int(self.feature_cache.digest(image)[:16], 16)
        # Not by the run's seed: it is kept, and found by runs of other seeds.
        with _seeded(np.random.SeedSequence((crop, content))):
            return Picture(self.transform(load_image(image)), None, key)

    def _load_pixels(self, image: Image) -> torch.Tensor:
        pixels = self._cache.get(image)
        if pixels is None:
            pixels = self.transform(load_image(image))
            if len(self._cache) < self._cache_size:
                self._cache[image] = pixels
        return pixels


@contextmanager
def _named(draw: Draw) -> Iterator[None]:
    """Say of which sample an error is."""
    try:
        yield
    except ValueError as error:
        error.add_note(f"in sample {draw.index} of subset {draw.subset!r}")
        raise


@contextmanager
def _seeded(seed: np.random.SeedSequence) -> Iterator[None]:
    """Torch's generator as `seed` has it, and as it was behind this."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(int(seed.generate_state(1)[0]))
        yield


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
        max_prompt_length, cut_anywhere, unmask_prompt_end, system_in_training, image_placement: see
            `Encoder`.
        batch_size: dialogues of a batch, over all processes.
        steps: optimizer steps of an epoch.
        turns: "sampled" draws each turn of a dialogue for itself, as the paper does. "joint" draws whole dialogues
            and learns all their answers in one pass: of a subset with `earlier_turns`, which then are not drawn, the
            earlier answers weigh as those subsets' ratios say, so that the expected gradient is that of "sampled".
        cache_images: keep pixels in memory; for a transform that is not random.
        feature_cache: folder for features of images, which are then computed once for all runs; see `use_features`.
        cached_crops: with a feature cache and a random transform, each image has that many crops instead of a new
            one each time; 0 refuses to keep features of random crops.
        length_window: batches whose samples are put together anew, of about one length in each: less padding, the
            same samples; see `MixtureSampler`. A batch's mean loss is over its tokens, so that short answers weigh
            more where they have batches of their own.
        num_workers: processes that read and encode batches ahead of the training; 0 does it in between.
        prefetch_factor: batches that each of them is ahead; None for 2.
        persistent_workers: keep them from one epoch to the next.
        pin_memory: copy batches where a GPU fetches them faster; None if there is one.
        on_bad_record: "stop" the run and name the records that are malformed or lack images (of a large file that is
            read for the first time, within the first minutes); or "skip" them, which is reported at the start.
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
        image_placement: ImagePlacement = "word",
        batch_size: int,
        steps: int,
        val_subsets: dict[str, SubsetSpec] | None = None,
        mix: Mix = "per_sample",
        turns: Turns = "sampled",
        seed: int = 0,
        length_window: int = 1,
        num_workers: int = 0,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        cache_images: bool = False,
        feature_cache: str | Path | None = None,
        cached_crops: int = 0,
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
        if feature_cache is not None and train_transform.train and cached_crops < 1:
            raise InputError(
                "random crops are new each time, so their features cannot be kept: set data.cached_crops to the number "
                "of crops that each image may have, data.train_transform.train=false, or data.feature_cache=null"
            )
        at_least = {"length_window": (length_window, 1), "batch_size": (batch_size, 1), "steps": (steps, 1)}
        for name, (value, least) in (at_least | {"num_workers": (num_workers, 0)}).items():
            if value < least:
                raise InputError(f"{name}={value}, expected {least} or more; set data.{name}")
        if length_window > 1 and mix == "per_batch":
            raise InputError(
                "mix='per_batch' gives each batch one subset, which batches by length would undo; "
                "set data.length_window=1 or data.mix=per_sample"
            )
        if turns == "joint" and unmask_prompt_end:
            raise InputError(
                "turns='joint' learns each answer alone, not the end of its prompt; set data.unmask_prompt_end=false"
            )
        self.subsets = _by_name(subsets)
        self.earlier_weights: dict[str, tuple[float, ...]] = {}
        if turns == "joint":
            self.subsets, self.earlier_weights = join_turns(self.subsets)
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
            image_placement=image_placement,
        )
        self.train_transform = train_transform
        self.eval_transform = eval_transform
        self.batch_size = batch_size
        self.steps = steps
        self.mix = mix
        self.seed = seed
        self.length_window = length_window
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.persistent_workers = persistent_workers
        self.pin_memory = pin_memory
        self.cache_images = cache_images
        self.cached_crops = cached_crops
        self.feature_cache = feature_cache
        self.features: FeatureCache | None = None
        self.on_bad_record = on_bad_record
        self._prepare = prepare
        self._train_samples: dict[str, Sequence[Sample]] = {}
        self._val_samples: dict[str, Sequence[Sample]] = {}
        self._sampler: MixtureSampler | None = None
        self._checks: list[Check] = []

    def use_features(self, cache: FeatureCache) -> None:
        """From now on batches hold the features that `cache` has, and keys for the others."""
        self.features = cache

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
        self._val_samples = self._val_samples or _samples(self._read_all(self.val_subsets))
        if train and not self._train_samples:
            check: WhenToCheck = (
                "later" if self.trainer is None or self.trainer.is_global_zero else "elsewhere"
            )
            readings = self._read_all(train, check if self.on_bad_record == "stop" else "now")
            self._train_samples = _samples(readings)
            self._checks = [one.check for group in readings.values() for one in group if one.check]
            self._print_mixture(self._make_mixture(), readings)

    def train_dataloader(self) -> MixtureLoader:
        """Batches of one epoch, from where the run stands."""
        trainer = self.trainer
        dataset = self._dataset(self._train_samples, self.train_transform, self.earlier_weights)
        self._sampler = MixtureSampler(
            self._make_mixture(),
            batches_per_epoch=self.steps * (trainer.accumulate_grad_batches if trainer else 1),
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            length_window=self.length_window,
            length_of=dataset.length_of,
        )
        return MixtureLoader(**self._loader_arguments(dataset, self._sampler))

    def val_dataloader(self) -> DataLoader[Example] | list[DataLoader[Example]]:
        """Every validation sample once, in order; each process takes every `world_size`-th batch."""
        trainer = self.trainer
        draws = [
            Draw(name, index) for name, samples in self._val_samples.items() for index in range(len(samples))
        ]
        if not draws and trainer and trainer.state.fn == "validate":
            self.check_validation()
        if not draws:
            return []
        size = max(1, self.batch_size // (trainer.world_size if trainer else 1))
        batches = [draws[start : start + size] for start in range(0, len(draws), size)]
        share = batches[trainer.global_rank :: trainer.world_size] if trainer else batches
        dataset = self._dataset(self._val_samples, self.eval_transform)
        return DataLoader(**self._loader_arguments(dataset, share))

    def check_validation(self) -> None:
        """Raise InputError without validation samples: Lightning would skip the hooks that run the benchmarks."""
        if not any(map(len, self._val_samples.values())):
            raise InputError(
                "nothing to validate on: without data.val_subsets no benchmark would run; set them"
            )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the training batches used, which is where a resumed run goes on."""
        if self._sampler is not None and self.trainer is not None and self.trainer.training:
            self._stop_at_bad_records()
            self._sampler.position += 1
        return batch

    def _stop_at_bad_records(self) -> None:
        """Raise AnnotationError if the check of a large file, which goes on beside the training, has found any."""
        ended = [check for check in self._checks if check.done()]
        self._checks = [check for check in self._checks if check not in ended]
        if found := [problem for check in ended for problem in check.result()]:
            raise AnnotationError("\n".join([*found, _ADVICE]))

    def files(self) -> dict[str, Path]:
        """Annotation files of the subsets that are in use, whose hashes identify the data of a run."""
        specs = (self.subsets | self.val_subsets).values()
        return {
            f"{spec.name}/{path.name}": path
            for spec in specs
            if spec.ratio > 0
            for path in spec.annotation_files
        }

    def _read_all(
        self, specs: Mapping[str, SubsetSpec], check: WhenToCheck = "now"
    ) -> dict[str, list[Reading[Sample]]]:
        """What came of the files of each subset that is in use; problems of all are reported together."""
        readings: dict[str, list[Reading[Sample]]] = {}
        unreadable = []
        for name, spec in specs.items():
            if spec.ratio > 0:
                folder, readings[name] = spec.folder, []
                for file in spec.annotation_files:
                    try:
                        readings[name].append(read_samples(file, spec.reader, folder, check=check))
                    except AnnotationError as error:
                        unreadable.append(str(error))
        bad = [reading for group in readings.values() for reading in group if reading.problems]
        if unreadable:
            raise AnnotationError("\n".join([*unreadable, report(bad)]).rstrip())
        if bad and self.on_bad_record == "stop":
            raise AnnotationError(f"{report(bad)}\n{_ADVICE}")
        _log_skipped(bad)
        return readings

    def _make_mixture(self) -> Mixture:
        return Mixture(
            sizes={name: len(samples) for name, samples in self._train_samples.items()},
            ratios={name: spec.ratio for name, spec in self.subsets.items()},
            batch_size=self.batch_size,
            mix=self.mix,
            seed=self.seed,
        )

    def _dataset(
        self,
        samples: Mapping[str, Sequence[Sample]],
        transform: ImageTransform,
        earlier_weights: Mapping[str, Sequence[float]] | None = None,
    ) -> SampleDataset:
        return SampleDataset(
            samples,
            encoder=self.encoder,
            transform=transform,
            earlier_weights=earlier_weights,
            seed=self.seed,
            cache_images=self.cache_images,
            feature_cache=self.features,
            cached_crops=self.cached_crops,
        )

    def _loader_arguments(
        self, dataset: SampleDataset, batches: MixtureSampler | list[list[Draw]]
    ) -> dict[str, Any]:
        return {
            "dataset": dataset,
            "batch_sampler": batches,
            "collate_fn": partial(_collate, pad_token_id=self.encoder.pad_token_id),
            "num_workers": self.num_workers,
            # Without workers the DataLoader refuses what is said of them.
            "prefetch_factor": self.prefetch_factor if self.num_workers else None,
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
            "pin_memory": torch.cuda.is_available() if self.pin_memory is None else self.pin_memory,
        }

    @rank_zero_only
    def _print_mixture(self, mixture: Mixture, readings: Mapping[str, Sequence[Reading[Sample]]]) -> None:
        table = Table(title=f"training mixture, drawn {self.mix.replace('_', ' ')}, seed {self.seed}")
        weights = {name: (*earlier, 1.0) for name, earlier in self.earlier_weights.items()}
        for heading in (
            "subset",
            "samples",
            "images",
            "ratio",
            "share",
            *["weights of turns"][: len(weights)],
        ):
            table.add_column(heading, justify="left" if heading == "subset" else "right")
        for name, samples in self._train_samples.items():
            images = frozenset().union(*(reading.image_ids for reading in readings[name]))
            unknown = any(reading.check for reading in readings[name])
            share = f"{mixture.shares[name]:.1%}"
            of_turns = " : ".join(f"{weight:g}" for weight in weights.get(name, (1.0,)))
            table.add_row(
                name,
                str(len(samples)),
                "?" if unknown else str(len(images)),
                f"{mixture.ratios[name]:g}",
                share,
                *[of_turns][: len(weights)],
            )
        first = mixture.batch_indices(0)[0]
        encoded = self.encoder.encode_sample(
            self._train_samples[first.subset][first.index], self.earlier_weights.get(first.subset, ())
        )
        rich.print(
            table,
            Panel(self.encoder.describe(encoded), title=f"first sample ({first.subset}), loss on bold green"),
        )


def _collate(examples: Sequence[Example], *, pad_token_id: int) -> Batch:
    """A batch of `pad_batch`; with a feature cache also

    is_cached bool[N], of all images; cached_features float16[C, Q, D], of those;
    feature_keys uint8[N - C, KEY_BYTES], of those in `pixel_values`.
    """
    pictures = [picture for example in examples for picture in example.pictures]
    batch = pad_batch(
        [example.encoded for example in examples],
        [picture.pixel_values for picture in pictures],
        pad_token_id=pad_token_id,
        side="right",
    )
    if any(picture.key for picture in pictures):
        features = [picture.features for picture in pictures if picture.features is not None]
        keys = [list(picture.key) for picture in pictures if picture.features is None]
        batch["is_cached"] = torch.tensor([picture.features is not None for picture in pictures])
        batch["cached_features"] = torch.stack(features) if features else torch.empty(0, dtype=torch.float16)
        batch["feature_keys"] = torch.tensor(keys, dtype=torch.uint8).view(-1, KEY_BYTES)
    return batch


def _samples(readings: Mapping[str, Sequence[Reading[Sample]]]) -> dict[str, Sequence[Sample]]:
    """All samples of each subset, which may lie in several files."""
    joined: Any = {name: ConcatDataset([one.values for one in group]) for name, group in readings.items()}  # type: ignore[misc]  # sequences are datasets
    return joined


def _by_name(specs: Mapping[str, SubsetSpec]) -> dict[str, SubsetSpec]:
    by_name = {spec.name: spec for spec in specs.values()}
    if len(by_name) < len(specs):
        raise InputError(f"two subsets have the same name among {', '.join(s.name for s in specs.values())}")
    return by_name


def join_turns(
    subsets: Mapping[str, SubsetSpec],
) -> tuple[dict[str, SubsetSpec], dict[str, tuple[float, ...]]]:
    """What `turns="joint"` draws: the subsets, and by name the weights of the answers before the last.

    A subset whose turns are learnt as part of another is not drawn any more; one without `earlier_turns` is drawn
    as ever.

    Raises:
        InputError: `earlier_turns` names a subset that is not there.
    """
    weights: dict[str, tuple[float, ...]] = {}
    joined: set[str] = set()
    for name, spec in subsets.items():
        if unknown := set(spec.earlier_turns) - subsets.keys():
            raise InputError(
                f"subset {name!r}: earlier_turns names {min(unknown)!r}, which is none of {', '.join(subsets)}; "
                f"correct data.subsets.{name}.earlier_turns, or set data.turns=sampled"
            )
        if spec.earlier_turns and spec.ratio > 0:
            weights[name] = tuple(subsets[earlier].ratio / spec.ratio for earlier in spec.earlier_turns)
            joined |= set(spec.earlier_turns)
    drawn = {name: replace(spec, ratio=0.0) if name in joined else spec for name, spec in subsets.items()}
    return drawn, weights


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
