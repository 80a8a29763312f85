from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID

MakeBatch = Callable[..., dict[str, Tensor]]
MakeModel = Callable[..., SparklesChat]


def logits(model: SparklesChat, batch: dict[str, Tensor]) -> list[Tensor]:
    """Of each dialogue, at its own tokens."""
    with torch.no_grad():
        embeds = model.embed(batch["input_ids"], batch["pixel_values"])
        output = model.language(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    return [row[mask.bool()] for row, mask in zip(output, batch["attention_mask"], strict=True)]


def assert_all_close(got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def spliced_by_loop(model: SparklesChat, ids: Tensor, images: Tensor) -> Tensor:
    """The embeddings of one dialogue as the original builds them, piece by piece: float[T, D_lm]."""
    words = model.language.get_input_embeddings()
    pieces, position = [], 0
    for image in images:
        start = position + int((ids[position:] == IMAGE_TOKEN_ID).nonzero()[0])
        pieces += [words(ids[position:start]), model.projector(model.encode_images(image[None]))[0]]
        position = start + model.qformer.num_query_tokens
    return torch.cat([*pieces, words(ids[position:])])


def test_splicing_equals_a_loop_over_dialogues(model, dialogues, make_batch: MakeBatch) -> None:
    batch = make_batch(dialogues)
    with torch.no_grad():
        embeds = model.embed(batch["input_ids"], batch["pixel_values"])
        expected = [spliced_by_loop(model, torch.tensor(one.ids), one.images) for one in dialogues]
    assert_all_close([row[: len(one.ids)] for row, one in zip(embeds, dialogues, strict=True)], expected)


@pytest.mark.parametrize(("side", "extra"), [("right", 0), ("right", 9), ("left", 0)])
def test_batching_and_padding_change_no_logits(
    model, dialogues, make_batch: MakeBatch, side: str, extra: int
) -> None:
    alone = [logits(model, make_batch([dialogue]))[0] for dialogue in dialogues]
    assert_all_close(logits(model, make_batch(dialogues, side=side, extra=extra)), alone)


def test_order_of_the_batch_permutes_the_logits(model, dialogues, make_batch: MakeBatch) -> None:
    order = [2, 0, 3, 1]
    expected = logits(model, make_batch(dialogues))
    permuted = logits(model, make_batch([dialogues[i] for i in order]))
    assert_all_close(permuted, [expected[i] for i in order])


def test_pictures_change_the_logits(model, dialogues, make_batch: MakeBatch) -> None:
    batch = make_batch(dialogues[:1])
    swapped = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    assert (logits(model, batch)[0] - logits(model, swapped)[0]).abs().max() > 1e-2


def test_loss_is_the_mean_over_labelled_tokens_of_the_whole_batch(
    model, dialogues, make_batch: MakeBatch
) -> None:
    total, count = 0.0, 0
    for dialogue in dialogues:
        scores = logits(model, make_batch([dialogue]))[0]
        targets = torch.tensor(dialogue.labels)
        total += F.cross_entropy(scores[:-1], targets[1:], ignore_index=IGNORE_INDEX, reduction="sum").item()
        count += dialogue.num_labels
    assert model(make_batch(dialogues)).item() == pytest.approx(total / count, rel=1e-5)


def test_a_weighted_pass_over_a_dialogue_has_the_gradient_of_its_turns_drawn_as_often(
    model, dialogues, make_batch: MakeBatch
) -> None:
    """`data.turns=joint` against the sampled mixture of first and second turns at 2:1."""
    first, between, second = 2, 1, 2  # the last tokens of each dialogue: two answers, a question between them
    whole = [one for one in dialogues if one.num_labels >= first + between + second]
    batch = make_batch(whole)
    labels = torch.full_like(batch["labels"], IGNORE_INDEX)
    weights = torch.zeros(labels.shape)
    drawn = []
    for row, dialogue in enumerate(whole):
        end = len(dialogue.ids)
        answers = [slice(end - second - between - first, end - second - between), slice(end - second, end)]
        for answer, weight in zip(answers, (2.0, 1.0), strict=True):
            labels[row, answer] = batch["input_ids"][row, answer]
            weights[row, answer] = weight
        turn1 = replace(dialogue, ids=dialogue.ids[: answers[0].stop], num_labels=first)
        drawn += [turn1, turn1, replace(dialogue, num_labels=second)]

    def loss_and_gradient(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss = model(batch)
        return loss, torch.autograd.grad(loss, model.projector.parameters())[0]

    assert len(whole) > 1
    joint = loss_and_gradient(batch | {"labels": labels, "loss_weights": weights})
    torch.testing.assert_close(joint, loss_and_gradient(make_batch(drawn)))


@pytest.mark.parametrize("change", ["order", "padding", "left padding", "chunks", "length groups"])
def test_loss_does_not_depend_on(change: str, model, dialogues, make_batch: MakeBatch) -> None:
    expected = model(make_batch(dialogues)).item()
    if change == "chunks":
        model.max_images_per_forward = 2
    if change == "length groups":
        model.length_groups = 3
    batch = {
        "order": make_batch(dialogues[::-1]),
        "padding": make_batch(dialogues, extra=11),
        "left padding": make_batch(dialogues, side="left", extra=3),
    }.get(change, make_batch(dialogues))
    assert model(batch).item() == pytest.approx(expected, rel=1e-5)


def test_projector_alone_gets_gradients_and_leaves_eval_mode(model, dialogues, make_batch: MakeBatch) -> None:
    model.train()
    model(make_batch(dialogues)).backward()
    with_gradient = {name for name, param in model.named_parameters() if param.grad is not None}
    assert with_gradient == {"projector.layers.0.weight", "projector.layers.0.bias"}
    training = {name.split(".")[0] for name, module in model.named_modules() if name and module.training}
    assert training == {"projector"}


def test_text_only_batch_gives_the_projector_a_zero_gradient(model, dialogues, make_batch: MakeBatch) -> None:
    batch = make_batch([dialogues[1]])
    assert batch["pixel_values"].shape[0] == 0
    model(batch).backward()
    assert all(param.grad is not None and not param.grad.any() for param in model.projector.parameters())


def test_greedy_answers_of_a_left_padded_batch_equal_those_one_at_a_time(
    model, dialogues, make_batch: MakeBatch
) -> None:
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = model.generate(make_batch(dialogues, side="left", extra=4), **options)
    alone = [model.generate(make_batch([dialogue]), **options)[0] for dialogue in dialogues]
    assert together.tolist() == [row.tolist() for row in alone]
    assert len(set(map(tuple, together.tolist()))) == len(dialogues), "answers differ, so the test can fail"


def test_generation_numbers_positions_from_the_first_real_token(
    model, dialogues, make_batch: MakeBatch
) -> None:
    """Rotary embeddings are relative, so wrong numbers would go unseen in LLaMA's answers."""
    seen = []
    model.language.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    batch = make_batch(dialogues, side="left")
    model.generate(batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    for row, dialogue in enumerate(dialogues):
        length = len(dialogue.ids)
        assert seen[0][row, -length:].tolist() == list(range(length))
        assert [int(step[row, 0]) for step in seen[1:]] == [length, length + 1]


def test_generation_refuses_right_padding(model, dialogues, make_batch: MakeBatch) -> None:
    with pytest.raises(ValueError, match="pad on the left"):
        model.generate(make_batch(dialogues))


def test_slots_and_images_must_match(model, dialogues, make_batch: MakeBatch) -> None:
    batch = make_batch(dialogues[:1])
    batch["pixel_values"] = batch["pixel_values"][:1]
    message = "6 image slots in input_ids but 3 image embeddings; was a dialogue truncated"
    with pytest.raises(ValueError, match=message):
        model(batch)


def test_batch_without_labels_is_refused(model, dialogues, make_batch: MakeBatch) -> None:
    batch = make_batch(dialogues)
    batch["labels"] = torch.full_like(batch["labels"], IGNORE_INDEX)
    with pytest.raises(ValueError, match="no labelled token"):
        model(batch)


def test_projector_is_an_mlp_by_configuration(
    make_model: MakeModel, dialogues, make_batch: MakeBatch
) -> None:
    model = make_model(hidden_features=(20, 12))
    model(make_batch(dialogues)).backward()
    weights = [param for param in model.projector.parameters() if param.ndim == 2]
    assert [tuple(weight.shape) for weight in weights] == [(20, 16), (12, 20), (32, 12)]
    assert all(weight.grad is not None and weight.grad.any() for weight in weights)


def test_language_model_of_another_dtype_takes_images_from_float32_parts(
    model, dialogues, make_batch: MakeBatch
) -> None:
    model.language.to(torch.float64)  # some CPUs lack the instructions that bfloat16 takes
    loss = model(make_batch(dialogues))
    loss.backward()
    assert loss.dtype == torch.float32
    assert model.projector.layers[0].weight.grad.dtype == torch.float32
