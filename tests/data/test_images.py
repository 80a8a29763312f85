from pathlib import Path
from zlib import crc32

import PIL.Image
import pytest
import torch

from sparkles.data.images import CLIP_MEAN, CLIP_STD, ImageError, ImageFolder, ImageTransform, load_image
from sparkles.types import Image


def test_the_first_pattern_that_exists_is_taken(tmp_path: Path) -> None:
    (tmp_path / "5.png").touch()
    (tmp_path / "COCO_5.jpg").touch()
    assert ImageFolder(tmp_path).find(5) == tmp_path / "5.png"
    assert ImageFolder(tmp_path, ("COCO_{image_id}.jpg",)).find("5") == tmp_path / "COCO_5.jpg"


@pytest.mark.parametrize("image_id", ["../secret", "/etc/passwd", "a/../../secret"])
def test_an_id_cannot_leave_the_folder(tmp_path: Path, image_id: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").touch()
    with pytest.raises(ImageError, match="leads out of the image folder"):
        ImageFolder(tmp_path / "images").find(image_id)


def test_a_subfolder_and_a_link_are_within_the_folder(tmp_path: Path) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "elsewhere.jpg").touch()
    (tmp_path / "images" / "train" / "1.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert ImageFolder(tmp_path / "images").find("train/1") == tmp_path / "images" / "train" / "1.jpg"


def test_a_missing_image_is_named_with_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"image 5 not found in .*; tried 5.jpg, 5.png, 5.jpeg"):
        ImageFolder(tmp_path).find(5)
    with pytest.raises(ImageError, match="nowhere, which is no folder"):
        ImageFolder(tmp_path / "nowhere").find(5)


def test_a_box_crops_and_grey_becomes_colour(tmp_path: Path) -> None:
    picture = PIL.Image.new("L", (30, 10), 0)
    picture.paste(255, (10, 0, 20, 10))
    picture.save(tmp_path / "strip.png")
    crop = load_image(Image(image_id=2, path=tmp_path / "strip.png", box=(10, 0, 20, 10)))
    assert crop.mode == "RGB"
    assert crop.size == (10, 10)
    assert crop.getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("box", [(0, 0, 31, 10), (5, 0, 5, 10), (-1, 0, 5, 5)])
def test_a_box_outside_the_picture_is_refused(tmp_path: Path, box: tuple[int, int, int, int]) -> None:
    PIL.Image.new("RGB", (30, 10)).save(tmp_path / "strip.png")
    with pytest.raises(ImageError, match=r"does not lie within .*strip.png, which is 30 x 10 pixels"):
        load_image(Image(image_id=2, path=tmp_path / "strip.png", box=box))


_CHUNK = b"IHDR" + bytes(5)
SHORT_HEADER = b"\x89PNG\r\n\x1a\n" + (5).to_bytes(4) + _CHUNK + crc32(_CHUNK).to_bytes(4)
"""Of a PNG file, for which Pillow has another error than for others."""


@pytest.mark.parametrize("content", [b"not a picture", b"\x89PNG\r\n\x1a\n broken", SHORT_HEADER, b""])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"cannot read .*bad.png \(image 9\)"):
        load_image(Image(image_id=9, path=tmp_path / "bad.png"))


def test_an_image_without_a_path_is_refused() -> None:
    with pytest.raises(ImageError, match="image 9 has no path"):
        load_image(Image(image_id=9))


def test_photographs_of_any_shape_become_squares(shared_dir: Path) -> None:
    photos = sorted((shared_dir / "data" / "photos").glob("*.jpg"))
    if not photos:
        pytest.skip("the photographs are absent")
    for photo in photos:
        pixels = ImageTransform(image_size=32)(load_image(Image(image_id=photo.stem, path=photo)))
        assert pixels.shape == (3, 32, 32)
        assert pixels.dtype == torch.float32
        assert pixels.isfinite().all()


def test_normalisation_is_that_of_clip() -> None:
    white = ImageTransform(image_size=4)(PIL.Image.new("RGB", (9, 5), "white"))
    expected = (1 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(white, expected[:, None, None].expand(3, 4, 4))
