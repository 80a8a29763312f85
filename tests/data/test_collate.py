from dataclasses import replace
from typing import Literal

import pytest
import torch

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, EncodingError
from sparkles.types import IMAGE_TOKEN_ID, Image

LONG = Encoded(input_ids=[5, 6, 7], labels=[-100, 6, 7], images=(Image(image_id=1), Image(image_id=2)))
SHORT = Encoded(input_ids=[8], labels=[8], images=())
PIXELS = [torch.full((3, 2, 2), 1.0), torch.full((3, 2, 2), 2.0)]


@pytest.mark.parametrize(
    ("side", "short_ids", "short_mask", "short_labels"),
    [
        ("right", [8, 9, 9], [1, 0, 0], [8, -100, -100]),
        ("left", [9, 9, 8], [0, 0, 1], [-100, -100, 8]),
    ],
)
def test_the_short_dialogue_is_padded_on_the_chosen_side(
    side: Literal["left", "right"], short_ids: list[int], short_mask: list[int], short_labels: list[int]
) -> None:
    batch = pad_batch([LONG, SHORT], PIXELS, pad_token_id=9, side=side)
    assert batch["input_ids"].tolist() == [[5, 6, 7], short_ids]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], short_mask]
    assert batch["labels"].tolist() == [[-100, 6, 7], short_labels]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def test_images_stay_flat_and_in_order() -> None:
    batch = pad_batch([SHORT, LONG], PIXELS, pad_token_id=9, side="right")
    assert batch["pixel_values"].shape == (2, 3, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_a_batch_without_images_or_labels_has_no_pixels_and_no_labels() -> None:
    prompt = Encoded(input_ids=[8], labels=None, images=())
    batch = pad_batch([prompt, prompt], [], pad_token_id=9, side="left")
    assert batch["pixel_values"].shape[:2] == (0, 3)
    assert "labels" not in batch


def test_loss_weights_are_there_if_any_dialogue_has_them() -> None:
    weighted = replace(LONG, loss_weights=[1.0, 2.0, 1.0])
    batch = pad_batch([weighted, SHORT], PIXELS, pad_token_id=9, side="right")
    assert batch["loss_weights"].tolist() == [[1, 2, 1], [1, 0, 0]]
    assert "loss_weights" not in pad_batch([LONG, SHORT], PIXELS, pad_token_id=9, side="right")


def test_a_missing_image_is_noticed() -> None:
    with pytest.raises(ValueError, match="1 tensors in pixel_values for 2 images"):
        pad_batch([LONG], PIXELS[:1], pad_token_id=9, side="right")


def test_prompts_and_samples_do_not_mix() -> None:
    prompt = Encoded(input_ids=[8], labels=None, images=())
    with pytest.raises(ValueError, match="only 1 of 2 dialogues of a batch have labels"):
        pad_batch([SHORT, prompt], [], pad_token_id=9, side="right")


@pytest.mark.parametrize(("side", "mask"), [("right", [0, 1, 0, 0]), ("left", [0, 0, 1, 0])])
def test_what_is_not_visible_is_masked_like_padding(side: Literal["left", "right"], mask: list[int]) -> None:
    cut = replace(LONG, visible=slice(1, 2))
    longer = Encoded(input_ids=[1, 2, 3, 4], labels=[1, 2, 3, 4], images=())
    batch = pad_batch([cut, longer], PIXELS, pad_token_id=9, side=side)
    assert batch["attention_mask"].tolist() == [mask, [1, 1, 1, 1]]


def test_a_label_that_is_part_of_an_image_is_refused() -> None:
    cut = replace(LONG, labels=[-100, -100, IMAGE_TOKEN_ID])
    with pytest.raises(EncodingError, match=r"a label is part of an image.* set unmask_prompt_end=false"):
        pad_batch([cut], PIXELS, pad_token_id=9, side="right")
