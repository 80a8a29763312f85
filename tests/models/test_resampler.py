"""What may stand in the Q-Former's place, on its own and within the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparkles.models.lightning_module import SparklesModule
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.resampler import PatchPooling, Resampler
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import InputError

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def make(**options) -> Resampler:
    torch.manual_seed(0)
    return Resampler(**{"vision_hidden_size": 24, "num_query_tokens": 5} | SIZES | options)


def test_any_number_of_image_tokens_becomes_the_same_number_of_vectors() -> None:
    resampler = make()
    assert resampler(torch.randn(3, 7, 24)).shape == resampler(torch.randn(3, 50, 24)).shape == (3, 5, 16)
    assert resampler(torch.randn(3, 7, 24).half()).dtype == torch.float32


def test_images_do_not_see_each_other_and_queries_differ() -> None:
    resampler, tokens = make(), torch.randn(2, 7, 24)
    both = resampler(tokens)
    torch.testing.assert_close(both[1], resampler(tokens[1:])[0])
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    assert not torch.allclose(both[0, 0], both[0, 1], atol=1e-3)


def test_layers_begin_with_weights_of_their_own() -> None:
    first, second = make().layers.layers
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.ndim == 1 or not torch.equal(one, other)


def test_checkpoint_restores_the_weights(tmp_path: Path) -> None:
    first, tokens = make(), torch.randn(1, 7, 24)
    torch.save(first.state_dict(), tmp_path / "resampler.pt")
    torch.testing.assert_close(make(checkpoint=tmp_path / "resampler.pt")(tokens), first(tokens))


def test_pooling_averages_neighbouring_patches() -> None:
    grid = torch.arange(16.0).view(4, 4)
    tokens = grid.flatten()[None, :, None].expand(1, 16, 3)  # [N, P, D_v]
    pooled = PatchPooling(vision_hidden_size=3, num_query_tokens=4)(tokens)
    corners = torch.tensor(
        [grid[:2, :2].mean(), grid[:2, 2:].mean(), grid[2:, :2].mean(), grid[2:, 2:].mean()]
    )
    torch.testing.assert_close(pooled, corners[None, :, None].expand(1, 4, 3))


def test_pooling_needs_squares() -> None:
    with pytest.raises(InputError, match=r"num_query_tokens=6: .* expected a square number such as 4 or 9"):
        PatchPooling(vision_hidden_size=3, num_query_tokens=6)
    with pytest.raises(
        InputError, match=r"17 image tokens are no square .* model\.vision\.patch_tokens_only=true"
    ):
        PatchPooling(vision_hidden_size=3, num_query_tokens=4)(torch.zeros(1, 17, 3))


# --- within the model -----------------------------------------------------------------------------------------


@pytest.fixture
def with_part(model: SparklesChat) -> Callable[[Callable[..., nn.Module]], SparklesChat]:
    """The tiny model with another part in the Q-Former's place and a projector that fits it."""

    def make_model(part: Callable[..., nn.Module]) -> SparklesChat:
        return SparklesChat(vision=model.vision, qformer=part, projector=Projector, language=model.language)

    return make_model


def resampler(**sizes: int) -> Resampler:
    return make(num_query_tokens=3, **sizes)


def trainable_qformer(**sizes: int) -> QFormer:
    return QFormer(num_query_tokens=3, trainable=True, **SIZES, **sizes)


@pytest.fixture(params=[resampler, trainable_qformer])
def trainable(request: pytest.FixtureRequest, with_part) -> SparklesChat:
    return with_part(request.param)


@pytest.fixture
def batch(dialogues, make_batch) -> dict[str, Tensor]:
    return make_batch(dialogues)


def test_sizes_follow_from_the_neighbours(with_part, model: SparklesChat) -> None:
    built = with_part(resampler)
    assert built.qformer.read[0].in_features == model.vision.hidden_size
    assert built.projector.layers[0].in_features == built.qformer.hidden_size
    assert built.projector.layers[0].out_features == model.language.config.hidden_size


def test_trainable_part_learns_with_the_projector_and_nothing_else_does(
    trainable: SparklesChat, batch: dict[str, Tensor]
) -> None:
    trainable(batch).backward()
    learning = {
        name for name, weight in trainable.named_parameters() if weight.grad is not None and weight.grad.any()
    }
    assert {name.split(".")[0] for name in learning} == {"qformer", "projector"}
    assert {name for name, weight in trainable.named_parameters() if weight.requires_grad} >= learning
    assert trainable.qformer.training
    assert not trainable.vision.training
    assert not trainable.language.training
    assert trainable.trainable_parts.keys() == {"qformer", "projector"}
    assert trainable.frozen_parts.keys() == {"vision", "language"}


def test_default_trains_the_projector_alone(model: SparklesChat, batch: dict[str, Tensor]) -> None:
    assert not model.encode_images(batch["pixel_values"]).requires_grad
    assert not model.qformer.training
    assert model.trainable_parts.keys() == {"projector"}
    assert model.frozen_parts.keys() == {"vision", "qformer", "language"}


def test_batch_without_images_gives_every_trainable_weight_a_gradient_of_zero(
    trainable: SparklesChat, dialogues, make_batch
) -> None:
    trainable(make_batch([dialogue for dialogue in dialogues if not len(dialogue.images)])).backward()
    used = {name for name, weight in trainable.named_parameters() if weight.grad is not None}
    assert used == {name for name, weight in trainable.named_parameters() if weight.requires_grad}
    assert not any(weight.grad.any() for weight in trainable.parameters() if weight.requires_grad)


def test_checkpoint_of_a_run_holds_the_trainable_part(trainable: SparklesChat) -> None:
    module = SparklesModule(model=trainable, optimizer=torch.optim.AdamW)
    parts = {name.split(".")[1] for name in module.trainable_names}
    assert parts == {"qformer", "projector"}


def test_pooled_patches_take_the_place_of_the_qformer(with_part, dialogues, make_batch) -> None:
    class PooledPatches(PatchPooling):
        """Of the tiny model's four patches behind a class token."""

        def forward(self, image_tokens: Tensor) -> Tensor:
            return super().forward(image_tokens[:, -4:])

    model = with_part(lambda **sizes: PooledPatches(num_query_tokens=1, **sizes))
    pixels = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.encode_images(pixels)[:, 0], model.vision(pixels)[:, 1:].mean(1))
    assert model.trainable_parts.keys() == {"projector"}
