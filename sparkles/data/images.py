"""From an image id to pixels: the file, the decoded picture, the tensor that the vision encoder takes.

torch is imported for tensors only: who looks for files need not wait for it.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from sparkles.types import Image, InputError

if TYPE_CHECKING:
    import torch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HERE = Path()
IMAGE_PATTERNS = ("{image_id}.jpg", "{image_id}.png", "{image_id}.jpeg")


class ImageError(InputError):
    """An image that is not where it should be or cannot be decoded."""


class MissingImageError(ImageError):
    """A folder lacks an image."""


@dataclass(frozen=True)
class ImageFolder:
    """Finds the file of an image id: the first of `patterns` that exists under `root`."""

    root: Path
    patterns: Sequence[str] = IMAGE_PATTERNS
    _listings: dict[Path, frozenset[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def find(self, image_id: int | str) -> Path:
        """Path of the image's file, among those that lay in its folder when it was first asked for.

        Raises:
            MissingImageError: there is none.
            ImageError: the id points out of the folder.
        """
        tried = []
        for pattern in self.patterns:
            name = pattern.format(image_id=image_id)
            if name in self._file_names(_HERE):  # most do, and paths are slow to take apart
                return self.root / name
            # The name is judged, not where links lead: a folder of links to images kept elsewhere works.
            path = Path(os.path.normpath(name))
            if path.is_absolute() or path.parts[:1] == (os.pardir,):
                raise ImageError(f"image id {image_id!r} leads out of the image folder {self.root}")
            if path.name in self._file_names(path.parent):
                return self.root / path
            tried.append(str(path))
        where = self.root if self.root.is_dir() else f"{self.root}, which is no folder"
        raise MissingImageError(
            f"image {image_id} not found in {where}; tried {', '.join(tried)}: add the file or correct the folder"
        )

    def _file_names(self, folder: Path) -> frozenset[str]:
        """Files of a folder under `root`, listed once: asking the disk for each of 100,000 images is slow."""
        if folder not in self._listings:
            try:
                with os.scandir(self.root / folder) as entries:
                    self._listings[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):  # there is none, or no folder can have such a name
                self._listings[folder] = frozenset()
        return self._listings[folder]


def load_image(image: Image) -> PIL.Image.Image:
    """The picture in RGB, cropped to `image.box`.

    Raises:
        ImageError: no path, no such file, not a readable picture, or a box that exceeds it.
    """
    if image.path is None:
        raise ImageError(f"image {image.image_id} has no path; read its annotations with an ImageFolder")
    try:
        with PIL.Image.open(image.path) as file:
            picture = file.convert("RGB")  # drops transparency, as the original does
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ImageError(
            f"cannot read {image.path} (image {image.image_id}): {error}; expected a picture that Pillow opens: "
            "replace the file, or leave out the records that show it"
        ) from error
    if image.box is None:
        return picture
    left, upper, right, lower = image.box
    if not (0 <= left < right <= picture.width and 0 <= upper < lower <= picture.height):
        raise ImageError(
            f"box {image.box} (left, upper, right, lower) of image {image.image_id} does not lie within "
            f"{image.path}, which is {picture.width} x {picture.height} pixels"
        )
    return picture.crop(image.box)


def file_digest(image: Image) -> str:
    """sha256 of the bytes of the image's file.

    Raises:
        ImageError: no path, or no such file.
    """
    try:
        with Path(str(image.path)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(f"cannot read {image.path} (image {image.image_id}): {error}") from error


class ImageTransform:
    """PIL picture -> float32[3, image_size, image_size], normalised.

    Evaluation squeezes the whole picture into a square. Training (`train=True`) takes a random crop of `scale`
    of the area, from torch's global generator. Both resize PIL pictures, not tensors: tensors are interpolated
    differently, which weights trained with the original's pipeline would notice.
    """

    def __init__(
        self,
        *,
        image_size: int,
        train: bool = False,
        scale: tuple[float, float] = (0.5, 1.0),
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        from torchvision import transforms

        self.image_size = image_size
        self.train = train
        bicubic = transforms.InterpolationMode.BICUBIC
        self._pipeline = transforms.Compose(
            [
                transforms.RandomResizedCrop(image_size, scale=scale, interpolation=bicubic)
                if train
                else transforms.Resize((image_size, image_size), interpolation=bicubic),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )
        self.settings = repr(vars(self))
        """All that pixels depend on: the steps of the pipeline spell their sizes, means and deviations."""

    def __call__(self, picture: PIL.Image.Image) -> "torch.Tensor":
        pixels: torch.Tensor = self._pipeline(picture)
        return pixels
