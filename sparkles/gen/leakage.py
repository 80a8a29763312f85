"""Pictures of the evaluation sets that turn up in training data.

Two ways to tell: by id, for Visual Genome and COCO know a part of each other's pictures (`image_data.json` of Visual
Genome names the COCO id of each picture that has one); and by perceptual hash, wherever image files are at hand, which
also finds copies that were scaled or compressed again. NLVR2's pictures come from elsewhere and have no such ids: only
hashes can find them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import PIL.Image
from rich.console import Console
from rich.progress import track

from sparkles.gen.extras import needs
from sparkles.types import Image, InputError

Collection = Literal["vg", "coco", "other"]
"""Where ids are from; those of "other" are compared with no evaluation set, only hashes are."""
MAX_DISTANCE = 6
"""Of the 64 bits of a hash; see tests/gen/test_leakage.py for how far copies and other pictures are apart."""
_track = partial(track, console=Console(stderr=True))
"""With a bar, as hashing takes some milliseconds a picture."""


class HasImages(Protocol):
    """A dialogue, or a training sample."""

    @property
    def images(self) -> tuple[Image, ...]: ...


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """The pictures that models are measured on."""

    name: str
    ids: frozenset[int] = frozenset()
    collection: Collection = "other"
    files: Sequence[Path] = ()


@dataclass(frozen=True, kw_only=True)
class LeakageReport:
    """What was looked at, how, and what was found."""

    num_images: int
    num_hashed: int
    """Pictures that were compared by hash; the others have no file."""
    compared: Mapping[str, str]
    """How each evaluation set could be compared."""
    found: Mapping[int | str, Mapping[str, str]]
    """Why a picture is taken for one of an evaluation set, by image id and set."""

    def objection(self, record: HasImages) -> str:
        """The pictures of the record that must not be trained on, in words; "" if there are none. A `Filter`."""
        return "; ".join(
            f"image {image.image_id} is in {name}: {why}"
            for image in record.images
            for name, why in self.found.get(image.image_id, {}).items()
        )

    def __str__(self) -> str:
        by_set = Counter(name for why in self.found.values() for name in why)
        compared = "; ".join(f"{name}: {by_set[name]}, {how}" for name, how in self.compared.items())
        return f"{len(self.found):,} of {self.num_images:,} pictures are in evaluation sets ({compared})"

    def record(self) -> dict[str, Any]:
        """As JSON has it, for files and data cards."""
        return {
            "images": self.num_images,
            "hashed_images": self.num_hashed,
            "evaluation_sets": {
                name: {"compared": how, "images": sum(name in why for why in self.found.values())}
                for name, how in self.compared.items()
            },
            "found": {str(image_id): dict(why) for image_id, why in self.found.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Looks for pictures of evaluation sets.

    Args:
        coco_ids: of Visual Genome's pictures, see `read_coco_ids`.
        max_distance: bits in which the hashes of two copies may differ.
    """

    evaluation_sets: Sequence[EvaluationSet]
    coco_ids: Mapping[int, int] = field(default_factory=dict)
    max_distance: int = MAX_DISTANCE

    def look(
        self,
        images: Iterable[Image],
        collection: Collection = "other",
        find_file: Callable[[Image], Path | None] = lambda image: image.path,
    ) -> LeakageReport:
        """Compare every picture of training data, or of what is to become some.

        Args:
            collection: whose ids the images have.
            find_file: the picture of an image, if it is at hand.

        Raises:
            InputError: a file is no picture, or there is no such collection.
        """
        if collection not in get_args(Collection):
            raise InputError(f"ids={collection}; expected one of {', '.join(get_args(Collection))}")
        by_id = self._by_id()
        by_image_id = {image.image_id: image for image in images}
        files = {
            image_id: path
            for image_id, image in by_image_id.items()
            if (path := find_file(image)) is not None
        }
        hashes = self._hashes() if files else None
        found: dict[int | str, dict[str, str]] = {}
        for image_id in _track(list(by_image_id), "comparing pictures", disable=not files):
            reasons = {
                name: reason
                for key in self._keys(image_id, collection)
                for name, reason in by_id.get(key, {}).items()
            }
            if hashes is not None and image_id in files:
                reasons = hashes.near(files[image_id], self.max_distance) | reasons
            if reasons:
                found[image_id] = reasons
        return LeakageReport(
            num_images=len(by_image_id),
            num_hashed=len(files),
            compared={one.name: self._how(one, collection, bool(files)) for one in self.evaluation_sets},
            found=found,
        )

    def _keys(self, image_id: int | str, collection: Collection) -> list[tuple[str, int]]:
        """The names under which a picture is known."""
        if collection == "other" or not str(image_id).isdecimal():
            return []
        number = int(image_id)
        known: list[tuple[str, int]] = [(collection, number)]
        if collection == "vg" and number in self.coco_ids:
            known.append(("coco", self.coco_ids[number]))
        return known

    def _by_id(self) -> dict[tuple[str, int], dict[str, str]]:
        found: dict[tuple[str, int], dict[str, str]] = {}
        for one in self.evaluation_sets:
            for image_id in one.ids:
                for place, number in self._keys(image_id, one.collection):
                    found.setdefault((place, number), {})[one.name] = f"{place} id {number}"
        return found

    def _hashes(self) -> "_Hashes":
        paths = [(one.name, path) for one in self.evaluation_sets for path in one.files]
        bits = [perceptual_hash(path) for _, path in _track(paths, "reading pictures of evaluation sets")]
        return _Hashes(bits=np.array(bits, dtype=np.uint64), paths=paths)

    def _how(self, one: EvaluationSet, collection: Collection, hashed: bool) -> str:
        by_id = one.ids and (
            collection == one.collection != "other"
            or ({collection, one.collection} == {"vg", "coco"} and self.coco_ids)
        )
        ways = [*(["id"] if by_id else []), *(["hash"] if hashed and one.files else [])]
        return " and ".join(ways) or "not compared"


@dataclass(frozen=True, kw_only=True)
class _Hashes:
    bits: np.ndarray
    """uint64[number of files]"""
    paths: Sequence[tuple[str, Path]]

    def near(self, path: Path, max_distance: int) -> dict[str, str]:
        """The closest picture of each evaluation set that has one near enough, in words."""
        own = np.uint64(perceptual_hash(path))
        distances = np.bitwise_count(self.bits ^ own)
        reasons: dict[str, str] = {}
        near = np.flatnonzero(distances <= max_distance).tolist()
        for place in sorted(near, key=lambda place: distances[place]):
            name, other = self.paths[place]
            reasons.setdefault(
                name, f"looks like {other.name}: hashes differ in {distances[place]} of 64 bits"
            )
        return reasons


@cache
def perceptual_hash(path: Path) -> int:
    """64 bits of the picture's low frequencies (imagehash's `phash`).

    Raises:
        InputError: the file is no picture.
    """
    with needs("figures"):
        import imagehash
    try:
        with PIL.Image.open(path) as picture:
            return int(str(imagehash.phash(picture.convert("RGB"))), 16)
    except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read {path} as a picture: {error}; replace it, or leave images= out"
        ) from error


def read_coco_ids(path: Path) -> dict[int, int]:
    """COCO ids by the ids of Visual Genome, of those pictures that both have.

    Reads Visual Genome's `image_data.json`: `[{"image_id", "coco_id", ...}, ...]`, `coco_id` null for the rest.

    Raises:
        InputError: the file is something else.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["image_id"]: row["coco_id"] for row in rows if row.get("coco_id") is not None}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: {type(error).__name__}: {error}; expected image_data.json of Visual Genome, a list of objects "
            "with image_id and coco_id"
        ) from error
