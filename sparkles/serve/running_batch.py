"""What the language model remembers of the answers that it is writing: rows come and go between two steps.

R rows, T columns, B prompts that join, H heads, D their width, V vocabulary. Rows are padded on the left, so that the
newest token of all is in the last column. Their keys and values lie within larger tensors: a token is written behind
those that are there and a prompt in front of the same place, so what is there is seldom copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sparkles.types import InputError

_REMEMBERED = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that keep something for each token, of which rows can be put together."""
_SPARE_COLUMNS = 64


@dataclass
class _Window:
    """Which part of the tensors is in use: the first rows, and of these the columns from `start` to `end`."""

    rows: int = 0
    start: int = 0
    end: int = 0

    def of(self, tensor: Tensor, *, more: int = 0) -> Tensor:
        """[rows, ..., columns, D] of it, and so many columns more."""
        return tensor[: self.rows, ..., self.start : self.end + more, :]


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values, float[at least R, H, at least T, D]."""

    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.window = window
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write those of one token behind the others, in place; all of them."""
        window = self.window
        keys, values = _states(self)
        for room, states in ((keys, key_states), (values, value_states)):
            room[: window.rows, :, window.end] = states[:, :, 0]
        return window.of(keys, more=1), window.of(values, more=1)

    def get_seq_length(self) -> int:
        """T"""
        return self.window.end - self.window.start


def _states(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that has read something."""
    return layer.keys, layer.values


class RunningBatch:
    """Keys and values of R rows in one cache.

    transformers' own continuous batching (`generate_batch`) takes token ids only, and images have none.

    Raises:
        InputError: the language model remembers otherwise than by keys and values.
    """

    def __init__(self, language: PreTrainedModel) -> None:
        others = set(getattr(language.config, "layer_types", None) or ()) - _REMEMBERED
        if others:
            raise InputError(
                f"a language model with {', '.join(sorted(others))} layers cannot be served: expected attention layers "
                "alone, whose keys and values can be put together; choose another model.language.path"
            )
        self._language = language
        self._window = _Window()
        self._cache = Cache(layers=[])
        self._mask = torch.empty(0, 0, 1, dtype=torch.int64, device=language.device)  # [R, T, 1], and room

    def join(self, inputs_embeds: Tensor, attention_mask: Tensor, copies: Sequence[int]) -> Tensor:
        """Read prompts, and add a row for each copy of each: float32[sum of copies, V], of their first tokens.

        Args:
            inputs_embeds: float[B, T, D_lm].
            attention_mask: int64[B, T], padded on the left.
            copies: of each prompt.
        """
        # Without the config: sliding windows are masked, not cut off.
        cache = DynamicCache()
        logits = self._forward(cache, attention_mask, inputs_embeds=inputs_embeds)
        rows = torch.repeat_interleave(torch.tensor(copies)).to(logits.device)
        length = attention_mask.shape[1]
        self._make_room(len(rows), length, cache)
        window = self._window
        added = slice(window.rows, window.rows + len(rows))
        columns = slice(window.end - length, window.end)
        for rooms, new in zip(map(_states, self._cache.layers), map(_states, cache.layers), strict=True):
            for room, states in zip(rooms, new, strict=True):
                room[added, :, columns] = states[rows]
        self._mask[added] = 0
        self._mask[added, columns, 0] = attention_mask[rows]
        window.rows, window.start = added.stop, min(window.start, columns.start)
        return logits[rows]

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Go on with the newest token of each row: float32[R, V], of their next ones."""
        self._make_room(0, 0, self._cache)
        window = self._window
        self._mask[: window.rows, window.end] = 1
        newest = torch.tensor(token_ids, device=self._mask.device)[:, None]
        logits = self._forward(self._cache, window.of(self._mask, more=1)[..., 0], input_ids=newest)
        window.end += 1
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Forget the others, of which the last rows take the places; which row is now in each place.

        At least one row is left.
        """
        window, number = self._window, len(rows)
        staying, behind = set(rows), [row for row in rows if row >= number]
        order = [row if row in staying else behind.pop() for row in range(number)]
        places = [place for place, row in enumerate(order) if place != row]
        moved = [order[place] for place in places]
        if places:
            for tensor in self._tensors():
                tensor[places, ..., window.start : window.end, :] = tensor[
                    moved, ..., window.start : window.end, :
                ]
        window.rows = number
        window.start += int(window.of(self._mask).any(dim=0).int().argmax())
        return order

    def _tensors(self) -> list[Tensor]:
        """All that have rows in front and columns last but one."""
        return [self._mask, *(tensor for layer in self._cache.layers for tensor in _states(layer))]

    def _make_room(self, rows: int, length: int, like: Cache) -> None:
        """For so many rows more of so many columns, and for a column behind them; anew only where there is none."""
        window = self._window
        room_rows, room_columns = self._mask.shape[:2]
        if window.rows + rows <= room_rows and length <= window.end < room_columns:
            return
        used = window.end - window.start
        end = max(used, length)
        columns = 2 * end + _SPARE_COLUMNS
        moved = _Window(window.rows, end - used, end)

        def larger(old: Tensor | None, pattern: Tensor) -> Tensor:
            shape = [max(window.rows + rows, room_rows), *pattern.shape[1:-2], columns, pattern.shape[-1]]
            new = pattern.new_zeros(shape)
            if old is not None and window.rows:
                moved.of(new).copy_(window.of(old))
            return new

        mask = larger(self._mask, self._mask)
        known: list[Any] = [_states(layer) for layer in self._cache.layers] or [(None, None)] * len(
            like.layers
        )
        layers: list[Any] = [
            _RoomyLayer(window, *map(larger, old, _states(new)))
            for old, new in zip(known, like.layers, strict=True)
        ]
        # Both or none: if memory does not suffice, the rows that were there go on.
        self._mask, self._cache = mask, Cache(layers=layers)
        window.start, window.end = moved.start, moved.end

    def _forward(self, cache: Cache, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        (given,) = inputs.values()
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -given.shape[1] :]
        output = self._language(
            **inputs,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1].float()
        return logits
