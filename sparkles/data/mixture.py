"""Which sample of which subset comes next.

Training draws from several subsets at given ratios. The stream of draws is a function of the seed alone: batch
i is the same for any number of workers, of processes, and of times that the run was interrupted before it.
"""

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Sampler

from sparkles.data.images import IMAGE_PATTERNS, ImageFolder
from sparkles.data.sources import Reader, TrainingFile
from sparkles.types import InputError

Mix = Literal["per_sample", "per_batch"]


@dataclass(frozen=True, kw_only=True)
class SubsetSpec:
    """One part of the data and how often it is drawn."""

    name: str
    annotations: Path
    """File in the reader's format; or a pattern for several, such as `..._turn1_*img.json`."""
    images: Path
    """Folder of its images."""
    ratio: float = 1.0
    """Share relative to the other subsets' ratios, whatever the sizes; 0 leaves the subset out."""
    image_patterns: tuple[str, ...] = IMAGE_PATTERNS
    """File names to try for an image id."""
    earlier_turns: tuple[str, ...] = ()
    """Subsets that hold the earlier turns of the same dialogues, first turn first; for `turns="joint"`."""
    reader: Reader = field(default_factory=TrainingFile)
    """Knows the format of the file: the original's training file, or another of `sparkles.data.sources`."""

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise InputError(
                f"ratio of subset {self.name!r}: expected 0 (leaves it out) or more, got {self.ratio}; "
                f"set data.subsets.{self.name}.ratio"
            )
        # Configuration gives strings and lists.
        object.__setattr__(self, "annotations", Path(self.annotations))
        object.__setattr__(self, "images", Path(self.images))
        object.__setattr__(self, "image_patterns", tuple(self.image_patterns))
        object.__setattr__(self, "earlier_turns", tuple(self.earlier_turns))

    @property
    def annotation_files(self) -> list[Path]:
        """The file, or all that match the pattern, in order of their names; none if there are none."""
        return sorted(path for path in self.annotations.parent.glob(self.annotations.name) if path.is_file())

    @property
    def folder(self) -> ImageFolder:
        return ImageFolder(self.images, self.image_patterns)


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of the stream."""

    subset: str
    index: int
    """Of the sample within the subset."""
    serial: int = 0
    """Position in the stream: what random augmentation is seeded with."""


class Mixture:
    """An endless stream of batches over named subsets.

    Within a subset every sample comes once before any comes again, in an order that is new in each pass.

    Args:
        sizes: samples in each subset.
        ratios: relative frequency of each subset; those at 0 are never drawn.
        batch_size: samples of a batch, over all processes.
        mix: "per_sample" draws a subset for each sample; "per_batch" one for the whole batch, as the original
            does (for the same seed, it draws the original's subsets).
    """

    def __init__(
        self,
        *,
        sizes: Mapping[str, int],
        ratios: Mapping[str, float],
        batch_size: int,
        mix: Mix = "per_sample",
        seed: int = 0,
    ) -> None:
        if mix not in ("per_sample", "per_batch"):
            raise InputError(f"mix must be 'per_sample' or 'per_batch', got {mix!r}")
        if not any(ratios.values()):
            raise InputError(
                f"the mixture is empty: none of {', '.join(ratios) or 'no subsets'} has a ratio above 0; "
                "set data.subsets.<name>.ratio"
            )
        empty = [name for name, size in sizes.items() if size == 0 and ratios[name] > 0]
        if empty:
            raise InputError(
                f"subsets without samples: {', '.join(empty)}; set their ratio to 0 or fill them"
            )
        self.sizes = dict(sizes)
        self.ratios = {name: ratios[name] for name in sizes}
        self.batch_size = batch_size
        self.mix = mix
        self.seed = seed
        self._chooser = random.Random(seed)
        self._drawn: Counter[str] = Counter()
        # Of each draw, grown on demand: its subset, and how many draws that had before. 10 bytes, as runs are long.
        self._subsets, self._counts = array("H"), array("q")

    @property
    def shares(self) -> dict[str, float]:
        """Expected fraction of the stream from each subset."""
        total = sum(self.ratios.values())
        return {name: ratio / total for name, ratio in self.ratios.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """All that the stream depends on."""
        return {
            "sizes": self.sizes,
            "ratios": self.ratios,
            "batch_size": self.batch_size,
            "mix": self.mix,
            "seed": self.seed,
        }

    def batch_indices(self, step: int) -> list[Draw]:
        """The draws of batch `step`, counted from 0."""
        start = step * self.batch_size
        while len(self._subsets) < start + self.batch_size:
            self._choose_subsets()
        return [self._draw(serial) for serial in range(start, start + self.batch_size)]

    def _choose_subsets(self) -> None:
        (name,) = self._chooser.choices(list(self.ratios), list(self.ratios.values()))
        for _ in range(self.batch_size if self.mix == "per_batch" else 1):
            self._subsets.append(list(self.sizes).index(name))
            self._counts.append(self._drawn[name])
            self._drawn[name] += 1

    def _draw(self, serial: int) -> Draw:
        subset = self._subsets[serial]
        name, size = list(self.sizes.items())[subset]
        pass_number, position = divmod(self._counts[serial], size)
        order = _permutation(self.seed, subset, pass_number, size)
        return Draw(name, int(order[position]), serial)


@lru_cache(maxsize=64)
def _permutation(seed: int, subset: int, pass_number: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, subset, pass_number)).permutation(size)


class MixtureSampler(Sampler[list[Draw]]):
    """Batches of a mixture for one of `world_size` processes, as a `batch_sampler` of a DataLoader.

    Each iteration runs from `position` to the end of the epoch that it lies in. The owner advances `position`
    as batches are used, since a DataLoader with workers asks for batches ahead of that.

    Args:
        length_window: batches of the mixture whose samples are put together anew, those of about one length in one
            batch; these batches come in an order drawn by the seed. 1 leaves all as they are.
        length_of: of a sample in tokens, for a `length_window` above 1.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        batches_per_epoch: int,
        rank: int = 0,
        world_size: int = 1,
        length_window: int = 1,
        length_of: Callable[[Draw], int] | None = None,
    ) -> None:
        if mixture.batch_size % world_size:
            raise InputError(
                f"batch_size={mixture.batch_size} is not divisible by {world_size} processes; "
                f"set data.batch_size to a multiple of {world_size}"
            )
        self.mixture = mixture
        self.batches_per_epoch = batches_per_epoch
        self.rank = rank
        self.world_size = world_size
        self.length_window = length_window
        self._length_of = length_of
        self._window: tuple[int, list[list[Draw]]] = -1, []
        self.position = 0
        """Batches used so far, over all epochs."""

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch_end = (self.position // self.batches_per_epoch + 1) * self.batches_per_epoch
        for step in range(self.position, epoch_end):
            yield self._batch(step)[self.rank :: self.world_size]

    def __len__(self) -> int:
        """Batches of a whole epoch, also when the iteration starts in the middle of one."""
        return self.batches_per_epoch

    def _batch(self, step: int) -> list[Draw]:
        """The draws of all processes, for a batch counted from 0."""
        if self._length_of is None or self.length_window == 1:
            return self.mixture.batch_indices(step)
        number, place = divmod(step, self.length_window)
        if self._window[0] != number:
            steps = range(number * self.length_window, (number + 1) * self.length_window)
            draws = [draw for step in steps for draw in self.mixture.batch_indices(step)]
            draws.sort(key=self._length_of)
            size = self.mixture.batch_size
            batches = [draws[start : start + size] for start in range(0, len(draws), size)]
            random.Random(f"{self.mixture.seed}/{number}").shuffle(batches)
            self._window = number, batches
        return self._window[1][place]

    @property
    def _identity(self) -> dict[str, Any]:
        """All that the batches depend on."""
        window = {"length_window": self.length_window} if self.length_window > 1 else {}
        return self.mixture.identity | window

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "mixture": self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a stream; it must be the same stream.

        Raises:
            InputError: the state comes from another mixture; names what differs.
        """
        ours, theirs = self._identity, state["mixture"]
        differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        if differing:
            raise InputError(
                "cannot resume: the checkpoint was made with another mixture: "
                + "; ".join(f"{key} was {theirs.get(key)}, now {ours.get(key)}" for key in differing)
                + ". Restore these settings, or start a new run from the checkpoint's weights"
            )
        self.position = state["position"]
