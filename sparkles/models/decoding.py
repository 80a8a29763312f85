"""Greedy decoding, through `generate` of transformers, that does less for the same tokens.

Rows that have ended leave the batch; what all prompts begin with is read once; keys and values are written, not copied,
when a token is added to them.

B rows of the batch, T tokens of the longest prompt, P tokens that all prompts begin with, S new tokens, V vocabulary;
L tokens in a cache, of H heads of width D.
"""

from collections.abc import Mapping
from copy import copy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    PreTrainedModel,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.configuration_utils import GenerationMode

from sparkles.types import IMAGE_TOKEN_ID

_ROOM = 64
"""Tokens that a cache can take before it is copied to a larger place."""
_SHARE_LEAVING = 1 / 8
"""Of the rows: as many have to have ended before they leave, since leaving copies the cache of the others."""
_OF_THE_CALLER = {
    "assistant_model",
    "cache_implementation",
    "custom_generate",
    "past_key_values",
    "return_dict_in_generate",
    "streamer",
    "use_cache",
}
"""Settings of `generate` whose meaning `decode` would change."""


_WITHOUT_ROW_STATE = (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
"""Processors to which all rows are alike; with any other, rows stay until all have ended."""


@runtime_checkable
class RowState(Protocol):
    """A logits processor that remembers something about each row."""

    def keep_rows(self, rows: Tensor) -> None:
        """int64[B'] -> only these rows of the batch are left, in this order."""
        ...


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, with room for more behind them.

    transformers' own copies all that it holds for each new token, which for many rows takes longer than the model.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._memory: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """float[B, H, S, D], twice -> float[B, H, L + S, D], twice"""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self.keys = self._append("keys", key_states, length)
        self.values = self._append("values", value_states, length)
        return self.keys, self.values

    def _append(self, name: str, new: Tensor, length: int) -> Tensor:
        held: Tensor = getattr(self, name)
        memory, end = self._memory.get(name), length + new.shape[2]
        # What other methods have put in its place (of fewer rows, say) lies elsewhere, and has no room behind it.
        if memory is None or memory.data_ptr() != held.data_ptr() or memory.shape[2] < end:
            memory = new.new_empty(*new.shape[:2], end + _ROOM, new.shape[3])
            if length:
                memory[:, :, :length] = held
            self._memory[name] = memory
        memory[:, :, length:end] = new
        return memory[:, :, :end]


def greedy_options(
    language: PreTrainedModel, generation: Mapping[str, Any], *, shared: int
) -> dict[str, Any]:
    """What makes `generate` use `decode`; nothing where `generation` asks for other than greedy search.

    Nor where the model keeps anything but keys and values of all tokens.

    Args:
        shared: P, see `shared_prefix`.
    """
    config = copy(language.generation_config)
    for name in generation.keys() & vars(config).keys():
        setattr(config, name, generation[name])
    cache = DynamicCache(config=language.config)
    if (
        config.get_generation_mode() is not GenerationMode.GREEDY_SEARCH
        or _OF_THE_CALLER & generation.keys()
        or any(type(layer) is not DynamicLayer for layer in cache.layers)
    ):
        return {}
    cache.layers = [GrowingLayer() for _ in cache.layers]
    return {"custom_generate": decode, "past_key_values": cache, "shared": shared}


def shared_prefix(input_ids: Tensor, attention_mask: Tensor) -> int:
    """How many tokens, of text alone, all rows of a left-padded batch begin with; at least one is left to each row.

    >>> shared_prefix(torch.tensor([[0, 1, 5, 6, 7], [1, 5, 6, 8, 9]]), torch.tensor([[0, 1, 1, 1, 1], [1] * 5]))
    3
    """
    lengths = attention_mask.sum(1, keepdim=True)  # [B, 1]
    if len(lengths) == 1:
        return 0
    columns = input_ids.shape[1] - lengths + torch.arange(int(lengths.min()) - 1, device=lengths.device)
    ids = input_ids.gather(1, columns)
    same = (ids == ids[:1]).all(0) & (ids[0] != IMAGE_TOKEN_ID)
    return int(same.int().cumprod(0).sum())


def decode(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    shared: int = 0,
    **inputs: Any,
) -> Tensor:
    """Greedy search for the `custom_generate` of transformers' `generate`, which prepares all arguments.

    It is `GenerationMixin._sample`, without what only sampling, streaming and sharded models need.

    Args:
        input_ids: int64[B, 0], since prompts are given as embeddings.
        shared: P.
        inputs: inputs_embeds float[B, T, D_lm]; attention_mask int64[B, T], None without padding; position_ids
            int64[B or 1, T]; past_key_values, an empty cache.

    Returns:
        int64[B, S], padded behind the end of each row.
    """
    cache, mask, embeds = inputs["past_key_values"], inputs["attention_mask"], inputs["inputs_embeds"]
    positions = inputs["position_ids"].expand(len(embeds), -1)
    call: Any = model
    pad_token_id = generation_config.pad_token_id or 0
    if shared:
        start = 0 if mask is None else int(mask[0].argmax())
        call(inputs_embeds=embeds[:1, start : start + shared], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(len(embeds))
        if mask is not None:  # the padding now stands between the prefix and the rest
            mask = torch.cat([mask.new_ones(len(mask), shared), mask[:, :-shared]], dim=1)
    step = {"inputs_embeds": embeds[:, shared:]}
    positions = positions[:, shared:]
    ids: Any = input_ids
    rows = torch.arange(len(embeds), device=input_ids.device)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    may_leave = all(isinstance(one, (RowState, *_WITHOUT_ROW_STATE)) for one in logits_processor)
    left: list[tuple[Tensor, Tensor]] = []  # rows and their ids
    while True:
        output = call(
            **step, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        scores = logits_processor(ids, output.logits[:, -1].float())
        next_ids = scores.argmax(dim=-1).masked_fill(ended, pad_token_id)
        ids = torch.cat([ids, next_ids.unsqueeze(1)], dim=1)
        ended = ended | stopping_criteria(ids, None)  # no scores, which none reads
        share = int(ended.sum()) / len(rows)
        if share == 1 or (may_leave and share >= _SHARE_LEAVING):
            left.append((rows[ended], ids[ended]))
            if share == 1:
                break
            kept = (~ended).nonzero().squeeze(1)
            rows, ids, ended, positions = rows[kept], ids[kept], ended[kept], positions[kept]
            mask = mask if mask is None else mask[kept]
            cache.batch_select_indices(kept)
            for processor in logits_processor:
                if isinstance(processor, RowState):
                    processor.keep_rows(kept)
        step = {"input_ids": ids[:, -1:]}
        positions = positions[:, -1:] + 1
        mask = mask if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    answers = ids.new_full((len(embeds), ids.shape[1]), pad_token_id)
    for leaving, said in left:
        answers[leaving, : said.shape[1]] = said
    return answers
