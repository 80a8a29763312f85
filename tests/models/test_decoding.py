from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from sparkles.models import decoding
from sparkles.models.decoding import GrowingLayer, greedy_options, shared_prefix
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IMAGE_TOKEN_ID

EOS, PAD = 1, 0
MakeBatch = Callable[..., dict[str, Tensor]]


class Offsets(LogitsProcessor):
    """Moves the scores of each row by numbers of its own, so that a row must be known when others have left."""

    def __init__(self, num_rows: int) -> None:
        self.offsets = torch.randn(num_rows, 40, generator=torch.Generator().manual_seed(1))
        self.offsets[:, EOS] += 2

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores + self.offsets

    def keep_rows(self, rows: Tensor) -> None:
        self.offsets = self.offsets[rows]


def answers(model: SparklesChat, batch: dict[str, Tensor], **options: Any) -> list[list[int]]:
    """Without what pads them."""
    rows = model.generate(batch, **{"max_new_tokens": 90, "pad_token_id": PAD} | options).tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


@pytest.fixture
def batch(make_batch: MakeBatch, dialogues: Sequence[Any]) -> dict[str, Tensor]:
    """Of 12 rows."""
    generator = torch.Generator().manual_seed(3)
    questions = [
        type(one)(ids=one.ids + torch.randint(2, 40, (n,), generator=generator).tolist(), num_labels=1,
                  images=one.images)
        for n in (1, 4, 2)
        for one in dialogues
    ]  # fmt: skip
    return make_batch(questions, side="left", extra=2)


@pytest.fixture
def plain(model: SparklesChat, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """Answers of transformers' own greedy search."""

    def answer(batch: dict[str, Tensor], **options: Any) -> list[list[int]]:
        with monkeypatch.context() as patch:
            patch.setattr("sparkles.models.sparkles_chat.greedy_options", lambda *_, **__: {})
            return answers(model, batch, **options)

    return answer


@pytest.mark.parametrize("processor", [None, Offsets])
@pytest.mark.parametrize(
    "options", [{}, {"min_new_tokens": 20}, {"repetition_penalty": 1.3}, {"max_new_tokens": 1}]
)
def test_tokens_are_those_of_transformers(
    model: SparklesChat,
    batch: dict[str, Tensor],
    plain: Callable[..., list[list[int]]],
    processor: type[Offsets] | None,
    options: dict[str, Any],
) -> None:
    def of_rows() -> dict[str, Any]:
        return {} if processor is None else {"logits_processor": LogitsProcessorList([processor(12)])}

    found = answers(model, batch, **options, **of_rows())
    assert found == plain(batch, **options, **of_rows())
    if not options:
        assert len({len(row) for row in found}) > 3, "rows have to end at different times"


def test_rows_that_have_ended_leave(
    model: SparklesChat, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    model.language.model.register_forward_pre_hook(
        lambda _module, _args, inputs: sizes.append(len(inputs["position_ids"])), with_kwargs=True
    )
    found = answers(model, batch)
    assert sizes[0] == 12
    assert sum(sizes) < 1.25 * sum(map(len, found)), "hardly more work than there are tokens"
    assert sizes == sorted(sizes, reverse=True)


def test_what_all_prompts_begin_with_is_read_once(
    model: SparklesChat,
    dialogues: Sequence[Any],
    make_batch: MakeBatch,
    plain: Callable[..., list[list[int]]],
) -> None:
    beginning = [5, 9, 7, 30, 2]
    questions = [
        type(one)(ids=beginning + one.ids, num_labels=one.num_labels, images=one.images) for one in dialogues
    ]
    batch = make_batch(questions, side="left", extra=1)
    shapes = []

    def note(_module: object, _args: object, inputs: dict[str, Any]) -> None:
        if inputs["inputs_embeds"] is not None:
            shapes.append(tuple(inputs["inputs_embeds"].shape[:2]))

    model.language.model.register_forward_pre_hook(note, with_kwargs=True)
    found = answers(model, batch)
    assert shapes == [(1, 5), (4, batch["input_ids"].shape[1] - 5)]
    assert found == plain(batch)
    assert answers(model, make_batch(questions[:1], side="left", extra=1)) == found[:1]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[3, 4, 5], [3, 4, 6]], 2),
        ([[3, 4, 5], [3, 4]], 1),
        ([[3, IMAGE_TOKEN_ID, 5], [3, IMAGE_TOKEN_ID, 6]], 1),
        ([[3, 4, 5], [3, 4, 5]], 2),
        ([[3, 4, 5]], 0),
        ([[4], [4]], 0),
    ],
)
def test_a_prefix_is_text_and_leaves_a_token_to_each_row(rows: list[list[int]], expected: int) -> None:
    length = 1 + max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    assert shared_prefix(ids, mask) == expected


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 2},
        {"do_sample": True},
        {"prompt_lookup_num_tokens": 3},
        {"cache_implementation": "static"},
    ],
)
def test_other_than_greedy_search_is_left_to_transformers(model: SparklesChat, asked: dict[str, Any]) -> None:
    assert greedy_options(model.language, asked, shared=0) == {}
    assert greedy_options(model.language, {"do_sample": False, "max_new_tokens": 3}, shared=0)


def test_a_growing_layer_holds_what_transformers_own_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_ROOM", 3)
    caches = []
    for kind in (GrowingLayer, DynamicLayer):
        cache = DynamicCache()
        cache.layers, cache.layer_class_to_replicate = [kind()], None
        caches.append(cache)
    generator = torch.Generator().manual_seed(0)

    def both(length: int, rows: int) -> None:
        keys, values = torch.randn(2, rows, 2, length, 4, generator=generator)
        found, expected = (cache.update(keys, values, 0) for cache in caches)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

    both(2, 1)
    for cache in caches:
        cache.batch_repeat_interleave(4)
    both(5, 4)
    for _ in range(5):
        both(1, 4)
    for cache in caches:
        cache.batch_select_indices(torch.tensor([3, 1]))
    both(1, 2)
    for cache in caches:
        cache.crop(-4)
    for _ in range(5):
        both(1, 2)
    assert caches[0].get_seq_length() == caches[1].get_seq_length()


def test_adding_a_token_copies_nothing() -> None:
    layer = GrowingLayer()
    keys = torch.randn(2, 2, 3, 4)
    first, _ = layer.update(keys, keys)
    second, _ = layer.update(keys[:, :, :1], keys[:, :, :1])
    assert second.data_ptr() == first.data_ptr()
