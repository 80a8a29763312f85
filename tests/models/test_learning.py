from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sparkles.models.learning import recompute_activations
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import InputError

MakeBatch = Callable[..., dict[str, Tensor]]
MakeModel = Callable[..., SparklesChat]
WAYS = [{"gradient_checkpointing": True}, {"compile_backend": "eager"}]


def loss_and_gradient(model: SparklesChat, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    loss = model(batch)
    return loss, torch.autograd.grad(loss, model.projector.parameters())[0]


def count_calls(model: SparklesChat) -> list[None]:
    """Grows with each call of the second layer's feed-forward part."""
    calls: list[None] = []
    model.language.model.layers[1].mlp.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize("way", WAYS, ids=[" ".join(way) for way in WAYS])
def test_loss_and_gradient_do_not_depend_on(
    way: dict, make_model: MakeModel, dialogues, make_batch: MakeBatch
) -> None:
    batch = make_batch(dialogues)
    torch.testing.assert_close(
        loss_and_gradient(make_model(**way), batch), loss_and_gradient(make_model(), batch)
    )


@pytest.mark.slow
@pytest.mark.parametrize("others", [{}, {"gradient_checkpointing": True}, {"packed": True}], ids=" ".join)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_layers_change_nothing_whatever_the_shapes(
    backend: str, others: dict, make_model: MakeModel, dialogues, make_batch: MakeBatch
) -> None:
    changed = make_model(compile_backend=backend, **others)
    for chosen in (dialogues, dialogues[:2], dialogues[1:]):
        batch = make_batch(chosen)
        torch.testing.assert_close(
            loss_and_gradient(changed, batch),
            loss_and_gradient(make_model(), batch),
            rtol=1e-4,
            atol=1e-5,
        )


def test_checkpointing_computes_layers_again_for_gradients_alone(
    make_model: MakeModel, dialogues, make_batch: MakeBatch
) -> None:
    model = make_model(gradient_checkpointing=True)
    calls = count_calls(model)
    loss = model(make_batch(dialogues))
    assert len(calls) == 1
    loss.backward()
    assert len(calls) == 2
    with torch.no_grad():
        model(make_batch(dialogues))
    assert len(calls) == 3


def test_checkpointing_keeps_less(make_model: MakeModel, dialogues, make_batch: MakeBatch) -> None:
    def kept(model: SparklesChat) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            model(make_batch(dialogues))
        return sum(sizes)

    assert kept(make_model(gradient_checkpointing=True)) < kept(make_model()) / 2


@pytest.mark.parametrize("way", WAYS, ids=[" ".join(way) for way in WAYS])
def test_generation_goes_the_plain_way(way: dict, make_model: MakeModel, dialogues, make_batch) -> None:
    batch = make_batch(dialogues, side="left")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = make_model().generate(batch, **options)
    changed = make_model(**way)
    calls = count_calls(changed)
    assert changed.generate(batch, **options).tolist() == expected.tolist()
    assert len(calls) == 6


def test_an_unknown_backend_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"compile_backend='fast': torch knows .*inductor"):
        make_model(compile_backend="fast")


def test_a_model_without_layers_to_choose_is_refused() -> None:
    with pytest.raises(InputError, match=r"Linear does not say which of its parts are layers"):
        recompute_activations(nn.Linear(2, 2))
