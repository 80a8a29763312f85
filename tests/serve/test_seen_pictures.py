import pytest
import torch
from torch import Tensor

from sparkles.serve.seen_pictures import SeenPictures
from tests.serve.conftest import Nano


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(4, 3, 72, 72, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoded(nano: Nano, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were encoded, each time."""
    numbers: list[int] = []
    encode = nano.model.encode_images

    def count(pixel_values: Tensor) -> Tensor:
        numbers.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(nano.model, "encode_images", count)
    return numbers


@torch.inference_mode()
def test_features_are_the_models_in_the_order_asked(nano: Nano, pictures: Tensor, encoded: list[int]) -> None:
    seen = SeenPictures(nano.model, most=8)
    numbers = [seen.number(one) for one in pictures]
    assert len({*numbers, *map(seen.number, pictures.clone())}) == 4
    seen.show(dict(zip(numbers, pictures, strict=True)))
    asked = [2, 0, 2, 3]
    found = seen.features([numbers[index] for index in asked])
    torch.testing.assert_close(found, nano.model.encode_images(pictures[asked]), rtol=1e-4, atol=1e-4)
    seen.features([numbers[0], numbers[1]])
    assert encoded == [3, 4, 1]


@torch.inference_mode()
def test_what_was_asked_longest_ago_is_forgotten_first(
    nano: Nano, pictures: Tensor, encoded: list[int]
) -> None:
    seen = SeenPictures(nano.model, most=2)
    numbers = [seen.number(one) for one in pictures]
    seen.show(dict(zip(numbers, pictures, strict=True)))
    for index in (0, 1, 0, 2, 0, 1):
        seen.features([numbers[index]])
    assert encoded == [1] * 4
    assert len(seen.features(numbers)) == 4, "more at a time than are kept"


def test_a_number_cannot_be_told_from_outside(nano: Nano, pictures: Tensor) -> None:
    first, second = (SeenPictures(nano.model, most=2).number(pictures[0]) for _ in range(2))
    assert first != second
    assert max(first, second) < 0
