"""Pixels of the original's two image pipelines."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkles.data.images import ImageTransform, load_image
from sparkles.types import Image

AssertWithin = Callable[[float, Tensor, Tensor], None]
Limit = Callable[[str], float]


@pytest.fixture(scope="module")
def preprocess(records: Callable[[str], Any]) -> dict[str, Any]:
    return records("preprocess")


@pytest.fixture(scope="module")
def expected(tensors: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return tensors("preprocess")


@pytest.fixture(scope="module")
def picture(golden: Path) -> Callable[..., Image]:
    return lambda name, box=None: Image(image_id=name, path=golden / "images" / name, box=box)


@pytest.fixture(scope="module")
def limit(preprocess: dict[str, Any], picture: Callable[..., Image]) -> Limit:
    """How near the pixels of a file come: another JPEG decoder than the one of the records moves them."""

    def limit_of(name: str) -> float:
        decoded = hashlib.sha256(load_image(picture(name)).tobytes()).hexdigest()
        return 1e-6 if decoded == preprocess["eval"][name]["rgb_sha256"] else 0.1

    return limit_of


def test_files_are_decoded_to_colours_of_the_recorded_size(
    preprocess: dict[str, Any], picture: Callable[..., Image]
) -> None:
    assert {record["mode"] for record in preprocess["eval"].values()} > {"RGB"}, "no file needs a conversion"
    for name, record in preprocess["eval"].items():
        decoded = load_image(picture(name))
        assert (decoded.mode, list(decoded.size)) == ("RGB", record["size_wh"])


def test_evaluation_pixels_are_those_of_the_original(
    preprocess: dict[str, Any],
    expected: dict[str, Tensor],
    picture: Callable[..., Image],
    meta: dict[str, Any],
    limit: Limit,
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    transform = ImageTransform(image_size=meta["dims"]["img"])
    for name in preprocess["eval"]:
        with subtests.test(name):
            assert_within(limit(name), transform(load_image(picture(name))), expected[f"eval/{name}"])


def test_random_crops_are_those_of_the_original(
    preprocess: dict[str, Any],
    expected: dict[str, Tensor],
    picture: Callable[..., Image],
    meta: dict[str, Any],
    limit: Limit,
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for key, record in preprocess["train"].items():
        with subtests.test(key), torch.random.fork_rng(devices=()):
            name = key.partition("/")[2]
            transform = ImageTransform(
                image_size=meta["dims"]["img"], train=True, scale=tuple(record["scale"])
            )
            torch.manual_seed(record["torch_seed"])
            assert_within(limit(name), transform(load_image(picture(name))), expected[key])


def test_the_recorded_crop_resized_gives_the_same_pixels(
    preprocess: dict[str, Any],
    expected: dict[str, Tensor],
    picture: Callable[..., Image],
    meta: dict[str, Any],
    limit: Limit,
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    transform = ImageTransform(image_size=meta["dims"]["img"])
    for key, record in preprocess["train"].items():
        with subtests.test(key):
            name = key.partition("/")[2]
            top, left, height, width = record["crop_top_left_height_width"]
            cropped = load_image(picture(name, (left, top, left + width, top + height)))
            assert_within(limit(name), transform(cropped), expected[key])


def test_pixels_at_full_size_are_those_of_the_original(
    preprocess: dict[str, Any],
    expected: dict[str, Tensor],
    picture: Callable[..., Image],
    limit: Limit,
    assert_within: AssertWithin,
) -> None:
    record = preprocess["eval_224"]
    pixels = ImageTransform(image_size=224)(load_image(picture(record["image"])))
    patch = expected[record["patch_top_left_16x16"]]
    rows, columns = (slice(*map(int, part.split()[1].split(":"))) for part in record["crop"].split(", "))
    near = limit(record["image"])
    assert_within(near, pixels[:, rows, columns], patch)
    assert pixels.mean(dim=(1, 2)).tolist() == pytest.approx(record["mean"], abs=near)
    assert pixels.std(dim=(1, 2)).tolist() == pytest.approx(record["std"], abs=near)
    assert pixels.sum(dtype=torch.float64).item() == pytest.approx(record["sum"], abs=near * pixels.numel())


def test_pixels_at_another_size_are_those_of_the_original(
    preprocess: dict[str, Any],
    expected: dict[str, Tensor],
    picture: Callable[..., Image],
    limit: Limit,
    assert_within: AssertWithin,
) -> None:
    record = preprocess["alt_res"]
    pixels = ImageTransform(image_size=record["image_size"])(load_image(picture(record["image"])))
    assert_within(limit(record["image"]), pixels[None], expected["alt_res/pixel_values"])
