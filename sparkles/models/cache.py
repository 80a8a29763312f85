"""Keys and values of a running batch, and what is kept of those that were read.

R rows, T tokens of the longest row, B rows that go through the model, S new tokens of the longest of them, L layers of
H heads of width D.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sparkles.types import InputError

_SPARE_COLUMNS = 64


class RowMemory:
    """Keys and values of all layers, and the cache through which a model uses them.

    Each row begins in the first column and grows to the right, so that nothing is ever moved along.

    Args:
        nothing: see `nothing_kept`.
        room: rows and columns at first.
        few_shapes: room for powers of two alone, for steps that are compiled for each shape.
    """

    def __init__(self, nothing: Tensor, *, room: tuple[int, int] = (0, 0), few_shapes: bool = False) -> None:
        self._few_shapes = few_shapes
        self._hold(nothing)
        self._take_room(*room)
        self.rows = slice(0, 0)
        self.seen = self.used = 0
        self.where = torch.empty(0, dtype=torch.int64)

    def _hold(self, states: Tensor) -> None:
        self.states = states
        """float[L, 2, R, H, T, D]"""
        self.device = states.device
        self.cache = Cache(layers=[_Layer(self, keys, values) for keys, values in states])

    @property
    def room(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.states.shape[2], self.states.shape[4]

    def make_room(self, rows: int, columns: int) -> None:
        """Anew, with something to spare if memory suffices, where there is not as much; if it fails, all stays."""
        room_rows, room_columns = self.room
        if rows <= room_rows and columns <= room_columns:
            return
        rows, columns = max(rows, room_rows), max(columns, room_columns)
        spare_rows = max(rows, room_rows + room_rows // 4) if rows > room_rows else rows
        spare_columns = columns + columns // 2 + _SPARE_COLUMNS if columns > room_columns else columns
        try:
            self._take_room(spare_rows, spare_columns)
        except torch.OutOfMemoryError:
            self._take_room(rows, columns)

    def _take_room(self, rows: int, columns: int) -> None:
        if self._few_shapes and rows and columns:
            rows, columns = (1 << (number - 1).bit_length() for number in (rows, columns))
        room_rows, room_columns = self.room
        layers, _, _, heads, _, width = self.states.shape
        larger = self.states.new_zeros(layers, 2, rows, heads, columns, width)
        larger[:, :, :room_rows, :, :room_columns] = self.states
        self._hold(larger)
        if self._few_shapes:
            self._stay_in_place()

    def point_at(self, start: int, columns: Tensor, used: int) -> None:
        """The next tokens go to these columns, int64[B, S], of the rows from `start` on, and see the first `used`."""
        heads, room = self.states.shape[3:5]
        self.rows = slice(start, start + len(columns))
        self.used = used
        self.seen = used - columns.shape[1]
        beginnings = torch.arange(start * heads, self.rows.stop * heads).view(-1, heads, 1) * room
        self.where = (beginnings + columns[:, None]).flatten().to(self.device)  # [B * H * S]

    def read(self, row: int, length: int) -> Tensor:
        """The first tokens of a row, not copied: float[L, 2, H, length, D]."""
        return self.states[:, :, row, :, :length]

    def write(self, row: int, states: Tensor) -> None:
        """Let a row begin with these: float[L, 2, H, tokens, D]."""
        self.states[:, :, row, :, : states.shape[3]] = states

    def _stay_in_place(self) -> None:
        """Tell compiled steps that these tensors are always the same, and not to be copied for a CUDA graph."""
        layers: Any = self.cache.layers
        for layer in layers:
            for tensor in (*layer.rooms, *layer.flat):
                torch._dynamo.mark_static_address(tensor)


class _Layer(DynamicLayer):
    """One layer's part of the memory: keys and values, float[R, H, T, D]."""

    def __init__(self, memory: RowMemory, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._memory = memory
        self.rooms = (keys, values)
        self.flat = (keys.flatten(0, 2), values.flatten(0, 2))

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write float[B, H, S, D] to where the memory points: float[B, H, T, D] of all that these rows have."""
        memory = self._memory
        for flat, states in zip(self.flat, (key_states, value_states), strict=True):
            # What overflowed would make the next row in this place NaN too: a mask is added, and hides numbers alone.
            flat.index_copy_(0, memory.where, states.flatten(0, 2).nan_to_num(0, 0, 0))
        keys, values = (room[memory.rows, :, : memory.used] for room in self.rooms)
        return keys, values

    def get_seq_length(self) -> int:
        """T - S"""
        return self._memory.seen


def nothing_kept(language: PreTrainedModel) -> Tensor:
    """float[L, 2, 0, H, 0, D], of the sizes that the model keeps of one token.

    Raises:
        InputError: layers differ in what they keep.
    """
    # Without the config, each layer keeps all.
    probe = DynamicCache()
    with torch.no_grad():
        language(torch.zeros(1, 1, dtype=torch.int64, device=language.device), cache=probe)
    layers: Any = probe.layers
    kept = [one for layer in layers for one in (layer.keys, layer.values)]
    if len({(one.shape, one.dtype, one.device) for one in kept}) > 1:
        shapes = ", ".join(sorted({str(tuple(one.shape)) for one in kept}))
        raise InputError(
            f"the layers of the language model keep keys and values of different shapes ({shapes}); expected one; "
            "choose another model.language.path"
        )
    _, heads, _, width = kept[0].shape
    return kept[0].new_zeros(len(layers), 2, 0, heads, 0, width)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What was read of a prompt."""

    length: int = 0
    states: Tensor | None = None
    """float[L, 2, H, at least `length`, D]"""


class Beginnings:
    """What was read, for prompts that begin likewise, within so many bytes; what was used longest ago goes first.

    Threads may share one. None that is kept is what another begins with, so in sorted order whatever a prompt has the
    most in common with stands beside it.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: dict[tuple[int, ...], Tensor] = {}  # most recently used last
        self._sorted: list[tuple[int, ...]] = []
        self._lock = Lock()

    def longest(self, prompt: Sequence[int]) -> Beginning:
        """The longest that the prompt begins with, of whole pictures."""
        asked = tuple(prompt)
        with self._lock:
            length, read = max(
                ((common_length(asked, one), one) for one in self._beside(asked)), default=(0, ())
            )
            while 0 < length < len(asked) and asked[length - 1] == asked[length] < 0:
                length -= 1
            if not length:
                return Beginning()
            states = self._kept[read] = self._kept.pop(read)
            return Beginning(length=length, states=states)

    def add(self, read: Sequence[int], states: Tensor) -> Tensor:
        """Keep float[L, 2, H, tokens, D] of what was read, unless it alone is too large; a copy of it."""
        numbers = tuple(read)
        with self._lock:
            for one in self._beside(numbers):
                if one[: len(numbers)] == numbers:
                    kept = self._kept[one] = self._kept.pop(one)
                    return kept
            if states.nbytes > self._most_bytes:
                return states.clone()
            for one in self._beside(numbers):
                if one == numbers[: len(one)]:
                    self._forget(one)
            kept = self._kept[numbers] = states.clone()
            insort(self._sorted, numbers)
            self._bytes += kept.nbytes
            while self._bytes > self._most_bytes:
                self._forget(next(iter(self._kept)))
            return kept

    def _beside(self, numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
        place = bisect_left(self._sorted, numbers)
        return self._sorted[max(0, place - 1) : place + 1]

    def _forget(self, numbers: tuple[int, ...]) -> None:
        self._bytes -= self._kept.pop(numbers).nbytes
        del self._sorted[bisect_left(self._sorted, numbers)]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many numbers both begin with.

    >>> common_length((1, 2, 3), (1, 2, 4, 5))
    2
    """
    return sum(1 for _ in takewhile(bool, map(eq, one, other)))
