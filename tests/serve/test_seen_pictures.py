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
def test_features_are_the_models_and_what_is_known_is_not_encoded_again(
    nano: Nano, pictures: Tensor, encoded: list[int]
) -> None:
    seen = SeenPictures(nano.model, most=8)
    numbers = [seen.number(one) for one in pictures]
    assert len({*numbers, *map(seen.number, pictures.clone())}) == 4
    found = seen.look({numbers[index]: pictures[index] for index in (2, 0, 3)})
    expected = nano.model.encode_images(pictures)
    for index in (2, 0, 3):
        torch.testing.assert_close(found[numbers[index]], expected[index], rtol=1e-4, atol=1e-4)
    again = seen.look({numbers[0]: pictures[0], numbers[1]: pictures[1]})
    assert again.keys() == {numbers[0], numbers[1]}
    assert seen.look({}) == {}
    assert encoded == [3, 4, 1]


@torch.inference_mode()
def test_what_was_asked_longest_ago_is_forgotten_first(
    nano: Nano, pictures: Tensor, encoded: list[int]
) -> None:
    seen = SeenPictures(nano.model, most=2)
    shown = {seen.number(one): one for one in pictures}
    numbers = list(shown)
    for index in (0, 1, 0, 2, 0, 1):
        seen.look({numbers[index]: shown[numbers[index]]})
    assert encoded == [1] * 4
    assert len(seen.look(shown)) == 4, "more at a time than are kept"


def test_a_number_cannot_be_told_from_outside(nano: Nano, pictures: Tensor) -> None:
    first, second = (SeenPictures(nano.model, most=2).number(pictures[0]) for _ in range(2))
    assert first != second
    assert max(first, second) < 0
