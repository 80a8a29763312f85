"""Rows of a running batch come and go, and begin with what others have read: none of it changes what they say."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sparkles.models import cache, decoding
from sparkles.models.cache import Beginnings
from sparkles.models.decoding import PromptReader, RunningBatch, unfit
from sparkles.types import IMAGE_TOKEN_ID, InputError

WIDTH, VOCABULARY, NEW, SLOTS = 16, 50, 12, 3
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,  # enough for choices that differ from token to token
    "eos_token_id": None,
    "pad_token_id": 0,
}
Make = Callable[[], PreTrainedModel]


def llama(**config: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **config))


def eager_llama() -> PreTrainedModel:
    return llama(attn_implementation="eager")


def mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5))


def qwen() -> PreTrainedModel:
    """One layer sees all, the other few tokens."""
    config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert len(set(config.layer_types)) == 2
    return Qwen2ForCausalLM(config)


def gpt2() -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.5,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config)


class Embedder:
    """Embeds prompts, and counts what it embeds."""

    def __init__(self, language: PreTrainedModel) -> None:
        self.words = language.get_input_embeddings()
        self.shapes: list[tuple[int, ...]] = []
        self.pictures: list[int] = []

    def __call__(self, input_ids: Tensor, pictures: Sequence[int]) -> Tensor:
        self.shapes.append(tuple(input_ids.shape))
        self.pictures += pictures
        is_slot = input_ids == IMAGE_TOKEN_ID
        shown = [
            torch.randn(SLOTS, WIDTH, generator=torch.Generator().manual_seed(-picture))
            for picture in pictures
        ]
        embeds = self.words(input_ids.masked_fill(is_slot, 0))
        if not shown:
            return embeds
        return embeds.masked_scatter(is_slot[..., None], torch.cat(shown))


def running(
    make: Make = llama, *, remembered_bytes: int = 2**28, **options: Any
) -> tuple[RunningBatch, Embedder]:
    torch.manual_seed(0)
    language = make().eval()
    embedder = Embedder(language)
    reader = PromptReader(language, embedder, slots=SLOTS, beginnings=Beginnings(remembered_bytes))
    return RunningBatch(reader, **options), embedder


def reader_of(batch: RunningBatch) -> PromptReader:
    """One that reads for this batch, as another thread would."""
    return batch._reader


def alone(batch: RunningBatch, prompt: Sequence[int]) -> list[int]:
    """The likeliest tokens, by transformers' own loop."""
    ids = torch.tensor([[IMAGE_TOKEN_ID if one < 0 else one for one in prompt]])
    pictures = [one for one in prompt if one < 0][::SLOTS]
    language: Any = batch._language
    new = language.generate(
        inputs_embeds=Embedder(language)(ids, pictures),
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
    return list(new[0].tolist())


def prompts_of(rng: random.Random, number: int) -> list[list[int]]:
    """Of words and pictures; many begin as others do."""
    known: list[list[list[int]]] = [[]]
    for _ in range(number):
        earlier = rng.choice(known)
        pieces = [
            *earlier[: rng.randint(0, len(earlier))],
            *(
                [-rng.randint(1, 4)] * SLOTS if rng.random() < 0.2 else [rng.randrange(VOCABULARY)]
                for _ in range(rng.randint(0, 12))
            ),
        ]
        known.append([*pieces[:15], [rng.randrange(VOCABULARY)]])
    return [[number for piece in pieces for number in piece] for pieces in known[1:]]


@pytest.mark.parametrize("make", [llama, eager_llama, mistral, qwen, gpt2])
@pytest.mark.parametrize("remembered_bytes", [0, 20_000, 2**28])
@torch.inference_mode()
def test_rows_that_come_and_go_say_what_they_say_alone(
    make: Make, remembered_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_WORTH_READING", 2)
    monkeypatch.setitem(decoding._TOKENS_AT_ONCE, "cpu", 60)
    monkeypatch.setattr(cache, "_SPARE_COLUMNS", 1)
    batch, _ = running(make, remembered_bytes=remembered_bytes)
    rng = random.Random(0)
    prompts = prompts_of(rng, 12)
    expected = [alone(batch, prompt) for prompt in prompts]
    assert len({tuple(tokens) for tokens in expected}) > 8, "a test of order needs rows that differ"

    elsewhere = reader_of(batch)
    said: dict[int, list[int]] = {index: [] for index in range(len(prompts))}
    rows: list[int] = []
    waiting = list(range(len(prompts)))
    while waiting or rows:
        joining = [waiting.pop(0) for _ in range(min(len(waiting), rng.choice([0, 0, 1, 3])))]
        if joining and rng.random() < 0.5:
            rows += [joining[place] for place in batch.join([prompts[index] for index in joining])]
        elif joining:
            for index, states in zip(joining, elsewhere.read([prompts[i] for i in joining]), strict=True):
                batch.enter(prompts[index], states)
            rows += joining
        if rows:
            newest = [said[index][-1] if said[index] else prompts[index][-1] for index in rows]
            for index, token in zip(rows, batch.step(newest).argmax(1).tolist(), strict=True):
                said[index].append(token)
        for place, index in enumerate(rows):
            if len(said[index]) == NEW and rng.random() < 0.5:
                batch.remember(place)
        staying = [place for place, index in enumerate(rows) if len(said[index]) < NEW]
        if len(staying) < len(rows):
            rows = [rows[place] for place in batch.keep(staying)]
    assert [said[index] for index in range(len(prompts))] == expected


@pytest.mark.parametrize("make", [llama, pytest.param(qwen, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_compiled_steps_say_the_same_and_have_few_shapes(make: Make) -> None:
    plain, _ = running(make)
    shapes = set()

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        shapes.add(tuple(tuple(one.shape) for one in inputs if isinstance(one, Tensor)))
        return graph.forward

    torch._dynamo.reset()
    compiled, _ = running(make, compile_backend=backend)
    prompts = prompts_of(random.Random(1), 6)
    for number in (2, 3, 1):
        asked, prompts = prompts[:number], prompts[number:]
        assert plain.join(asked) == compiled.join(asked)
        for _ in range(4):
            rows = len(plain._rows)
            stepped = [batch.step(list(range(rows))) for batch in (plain, compiled)]
            torch.testing.assert_close(*stepped, rtol=1e-4, atol=1e-4)
    assert len(shapes) <= 4 * 3, "three numbers of rows: 2, 8, 8; and one graph, or few, for each"


@torch.inference_mode()
def test_what_prompts_begin_with_is_read_once_and_never_again() -> None:
    batch, reader = running()
    picture = [-7] * SLOTS
    beginning = [*range(1, 20), *picture, *range(20, 25)]
    batch.join([[*beginning, *ending] for ending in ([30, 31], [32], [33, 34, 35])])
    assert reader.shapes == [(1, len(beginning)), (2, 2)], "the last token of each is left to the first step"
    assert reader.pictures == [-7]
    batch.keep([])
    batch.join([[*beginning, 40]])
    assert len(reader.shapes) == 2


@torch.inference_mode()
def test_a_second_turn_goes_on_from_what_the_first_has_read() -> None:
    batch, reader = running()
    first = [3, 4, *[-1] * SLOTS, 5]
    batch.join([first])
    said = [5]
    for _ in range(5):
        said.append(int(batch.step(said[-1:]).argmax()))
    batch.remember(0)
    batch.keep([])
    second = [*first, *said[1:], 6, *[-2] * SLOTS, 7]
    expected = alone(batch, second)
    batch.join([second])
    assert reader.shapes[1] == (1, 1 + 1 + SLOTS), "the last token said was not read before"
    assert reader.pictures == [-1, -2]
    assert int(batch.step([7]).argmax()) == expected[0]


@torch.inference_mode()
def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    batch, reader = running()
    one_row = 2 * 2 * 20 * 2 * 4 * 4  # layers, keys and values, tokens, heads, width, bytes
    batch, reader = running(remembered_bytes=2 * one_row)
    prompts = [[start, *range(20)] for start in (1, 2, 3)]

    def read(prompt: list[int]) -> int:
        """How many of its tokens were not known; it is remembered then."""
        before = len(reader.shapes)
        batch.join([prompt])
        batch.remember(0)
        batch.keep([])
        return sum(length for _, length in reader.shapes[before:])

    assert [read(prompts[index]) for index in (0, 1, 0, 2, 0, 1)] == [20, 20, 0, 20, 0, 20]


@torch.inference_mode()
def test_copies_of_a_prompt_that_was_read_elsewhere_go_ways_of_their_own() -> None:
    batch, embedder = running()
    prompt = [5, 6, 7, 8, 9]
    batch.join([[1, 2, 3, 4]])
    (states,) = reader_of(batch).read([prompt])
    read = len(embedder.shapes)
    batch.enter(prompt, states, copies=3)
    _, *first = batch.step([4, 9, 9, 9])
    assert torch.equal(first[0], first[2])
    assert int(first[0].argmax()) == alone(batch, prompt)[0]
    _, *second = batch.step([4, 1, 2, 2])
    assert not torch.allclose(second[0], second[1])
    assert torch.equal(second[1], second[2])
    assert len(embedder.shapes) == read, "a prompt that was read is not read again"


@torch.inference_mode()
def test_what_was_read_is_not_overwritten_by_what_is_read_next() -> None:
    batch, _ = running(remembered_bytes=0)
    prompts, reader = prompts_of(random.Random(2), 4), reader_of(batch)
    for prompt, states in [
        pair for two in (prompts[:2], prompts[2:]) for pair in zip(two, reader.read(two), strict=True)
    ]:
        batch.enter(prompt, states)
    first = batch.step([prompt[-1] for prompt in prompts]).argmax(1).tolist()
    assert first == [alone(batch, prompt)[0] for prompt in prompts]


@pytest.mark.parametrize("prompt", [[], [1, *[-1] * SLOTS]])
def test_a_prompt_ends_with_a_word(prompt: list[int]) -> None:
    batch, _ = running()
    with pytest.raises(ValueError, match="prompt 1 ends with a picture, or has no tokens; expected a word"):
        batch.join([[1, 2], prompt])


@torch.inference_mode()
def test_what_overflowed_in_a_row_is_nothing_to_the_next_in_its_place() -> None:
    batch, embedder = running()
    embedder.words.register_forward_hook(lambda words, ids, embeds: embeds * torch.inf)
    batch.join([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 9]])
    assert not batch.step([8, 9]).isfinite().all()
    embedder.words._forward_hooks.clear()
    batch.keep([])
    batch.join([[1, 2, 3], [4, 5]])  # of two lengths, so that there is a mask
    after = batch.step([3, 5])
    fresh, _ = running()
    fresh.join([[1, 2, 3], [4, 5]])
    torch.testing.assert_close(after, fresh.step([3, 5]))


@torch.inference_mode()
def test_without_memory_to_spare_rows_get_the_room_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, _ = running()
    batch.join([[1, 2, 3]])
    rows, _ = batch._memory.room
    take = batch._memory._take_room

    def take_little(rows: int, columns: int) -> None:
        if columns > 200:
            raise torch.OutOfMemoryError
        take(rows, columns)

    monkeypatch.setattr(batch._memory, "_take_room", take_little)
    batch._memory.make_room(rows, 200)
    assert batch._memory.room == (rows, 200)
    with pytest.raises(torch.OutOfMemoryError):
        batch._memory.make_room(rows, 201)
    assert batch._memory.room == (rows, 200)


@torch.inference_mode()
def test_a_reader_has_room_for_those_it_reads_and_not_for_all_before() -> None:
    batch, _ = running()
    reader = reader_of(batch)
    reader.read([[1, 2, 3]] * 8)
    reader.read([[1] * 40])
    assert reader._memory.room == (1, 39)


@torch.inference_mode()
def test_what_alone_is_larger_than_the_memory_costs_no_other_its_place() -> None:
    batch, _ = running(remembered_bytes=20_000)
    reader = reader_of(batch)
    [small] = reader.read([[1, 2, 3]])
    reader.read([[4] * (2 + 20_000 // small[:, :, :, :1].nbytes)])
    assert reader.beginnings.longest([1, 2, 3]).length == 2


@torch.inference_mode()
def test_a_row_that_leaves_gives_its_place_to_the_last() -> None:
    batch, _ = running()
    batch.join([[1, 2, 3], [4, 5], [6]])
    assert batch.keep([1, 2]) == [2, 1]
    assert batch.keep([]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "it has linear_attention layers"),
        ({"_attn_implementation": "flash_attention_2"}, r"flash_attention_2\) takes no mask"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, r"positions \(dynamic RoPE\)"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "longrope"}, "sliding_attention": {}}},
            r"positions \(longrope RoPE\)",
        ),
    ],
)
def test_a_model_that_remembers_or_attends_otherwise_is_refused(change: dict[str, Any], message: str) -> None:
    language = llama()
    for name, value in change.items():
        setattr(language.config, name, value)
    assert unfit(llama()) is None
    with pytest.raises(InputError, match=rf"{message}.*choose another model\.language\.path"):
        PromptReader(language, Embedder(language), slots=SLOTS, beginnings=Beginnings(0))
