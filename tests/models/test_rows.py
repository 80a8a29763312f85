from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparkles.models.rows import Rows, in_groups, pack
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX

MakeBatch = Callable[..., dict[str, Tensor]]
MASK = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])


@pytest.fixture
def rows() -> Rows:
    """Three rows of 2, 4 and 1 tokens; the targets number all places of the batch."""
    places = torch.arange(15).view(3, 5)
    return Rows(torch.randn(3, 5, 4), places, places.float(), visible={})


def test_packed_rows_follow_each_other_and_each_is_numbered_from_its_first_token(rows: Rows) -> None:
    packed = pack(rows, MASK)
    assert packed.targets.tolist() == [[0, 1, 5, 6, 7, 8, 10]]
    assert packed.weights.tolist() == [[0, 1, 5, 6, 7, 8, 10]]
    assert torch.equal(packed.inputs_embeds, rows.inputs_embeds[MASK.bool()][None])
    assert packed.visible["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0]]
    assert packed.visible["cu_seq_lens_q"].tolist() == [0, 2, 6, 7]
    assert packed.visible["max_length_q"] == 4


def test_groups_are_of_about_one_length_and_lose_the_columns_that_none_of_theirs_uses(rows: Rows) -> None:
    groups = list(in_groups(rows, MASK, 2))
    assert [group.targets.tolist() for group in groups] == [[[10, 11], [0, 1]], [[5, 6, 7, 8]]]
    assert not any(group.visible for group in groups), "padding behind everything needs no mask"
    (padded_left,) = in_groups(rows, MASK.flip(1), 1)
    assert padded_left.visible["attention_mask"].tolist() == MASK.flip(1)[[2, 0, 1], 1:].tolist()


def loss_and_gradient(model: SparklesChat, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    loss = model(batch)
    return loss, torch.autograd.grad(loss, model.projector.parameters())[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_packing_has_the_loss_and_the_gradient_of_padding(
    attention: str, side: str, model: SparklesChat, dialogues, make_batch: MakeBatch
) -> None:
    model.language.set_attn_implementation(attention)
    batch = make_batch(dialogues, side=side)
    batch["loss_weights"] = torch.rand(batch["labels"].shape)
    expected = loss_and_gradient(model, batch)
    model.packed = True
    torch.testing.assert_close(loss_and_gradient(model, batch), expected)


def test_packing_leaves_out_what_must_not_be_seen(
    model: SparklesChat, dialogues, make_batch: MakeBatch
) -> None:
    """The slots that complete an image which a length limit has cut, behind everything else."""
    batch = make_batch(dialogues[:1])
    hidden, labelled = slice(-5, None), slice(3, 7)
    batch["attention_mask"][:, hidden] = 0
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    batch["labels"][:, labelled] = torch.arange(2, 6)
    expected = loss_and_gradient(model, batch)
    model.packed = True
    torch.testing.assert_close(loss_and_gradient(model, batch), expected)
