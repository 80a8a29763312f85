"""Answers written many at a time: rows come and go between two steps, and what was read once is not read again.

A prompt is a list of numbers: token ids and, in the slots of pictures, negative numbers, each of which stands for one
picture.

R rows, T tokens of the longest row, B prompts read at a time, S new tokens of the longest of them, L layers of H heads
of width D, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sparkles.types import IMAGE_TOKEN_ID, InputError

Embed = Callable[[Tensor, Sequence[int]], Tensor]
"""int64[B, S] with IMAGE_TOKEN_ID in the slots of pictures, and the pictures' numbers -> float[B, S, D_lm]"""

_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
"""Layers that keep something for each token, of which rows can be put together."""
_IMPLEMENTATIONS = {"sdpa", "eager"}
"""Of attention, which take the mask that is made here."""
_TOKENS_AT_ONCE = {"cpu": 1_024}
"""Read in one call, so that what lies between two layers stays in the processor's cache."""
_TOKENS_AT_ONCE_ELSEWHERE = 16_384
_WORTH_READING = 16
"""Tokens that several prompts begin with, to be read for all of them before the rest."""
_SPARE_COLUMNS = 64


def unfit(language: PreTrainedModel) -> str | None:
    """Why answers of this model cannot be written by a `RunningBatch`; None if they can."""
    config = language.config
    if others := set(getattr(config, "layer_types", None) or ()) - set(_KINDS):
        return (
            f"it has {', '.join(sorted(others))} layers: expected attention layers alone, whose keys and values can "
            "be put together"
        )
    if config._attn_implementation not in _IMPLEMENTATIONS or not language._supports_attention_backend:
        return (
            f"its attention ({config._attn_implementation}) takes no mask of four dimensions: expected "
            f"{' or '.join(sorted(_IMPLEMENTATIONS))}"
        )
    return None


class RunningBatch:
    """Rows of one cache, each the prompt and the beginning of an answer.

    transformers' own continuous batching (`generate_batch`) takes token ids only, and pictures have none. Each row
    begins in the first column, so no row is ever moved along; the newest tokens stand in columns of their own.

    Up to the rounding of sums, the logits of a row depend on nothing but its own tokens.

    Args:
        slots: of a picture.
        remembered_bytes: of keys and values that are kept of rows and of common beginnings, for prompts to come.
        compile_backend: of `torch.compile` for the steps, which then have few shapes: as many rows and columns as there
            is room for. On a GPU "inductor" replays each as one CUDA graph; tested on CPUs only, for equal logits.

    Raises:
        InputError: the language model is `unfit`.
    """

    def __init__(
        self,
        language: PreTrainedModel,
        embed: Embed,
        *,
        slots: int,
        remembered_bytes: int = 2**28,
        compile_backend: str | None = None,
    ) -> None:
        if reason := unfit(language):
            raise InputError(
                f"the language model cannot answer several questions at a time: {reason}; choose another "
                "model.language.path"
            )
        self._language = language
        self._embed = embed
        self._slots = slots
        self._beginnings = _Beginnings(remembered_bytes)
        self._rows: list[list[int]] = []  # what each has read
        self._memory = _Memory.empty(language)
        self._has_few_shapes = compile_backend is not None
        self._step_through: Any = language
        if compile_backend is not None:
            graphs = compile_backend == "inductor" and language.device.type == "cuda"
            self._step_through = torch.compile(
                language, backend=compile_backend, mode="reduce-overhead" if graphs else None, dynamic=False
            )

    def join(
        self, prompts: Sequence[Sequence[int]], copies: Sequence[int] | None = None
    ) -> tuple[list[int], Tensor]:
        """Read prompts, and add rows behind those that are there.

        Args:
            copies: rows of each prompt; one, if not given.

        Returns:
            Which prompt is in each new row, and float32[new rows, V] of their first tokens.
        """
        rows = len(self._rows) + (sum(copies) if copies else len(prompts))
        self._make_room(rows, max(map(len, prompts)))
        self._read_common_beginning(prompts)
        known = [self._beginnings.longest(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: known[index].length - len(prompts[index]))
        more = [index for index in order for _ in range(1, copies[index] if copies else 1)]
        start = len(self._rows)
        at_once = _TOKENS_AT_ONCE.get(self._memory.device.type, _TOKENS_AT_ONCE_ELSEWHERE)
        groups = _groups([len(prompts[i]) - known[i].length for i in order], at_once=at_once)
        self._make_room(rows, self._columns_to_read(prompts, known, order, groups))
        logits = torch.cat(
            [
                self._read(
                    start + group.start, [prompts[i] for i in order[group]], [known[i] for i in order[group]]
                )
                for group in groups
            ]
        )
        if more:
            originals = [order.index(index) for index in more]
            for place, original in enumerate(originals, start=start + len(order)):
                self._memory.copy_row(start + original, place, len(prompts[order[original]]))
            logits = torch.cat([logits, logits[originals]])
        self._rows += [list(prompts[index]) for index in (*order, *more)]
        return [*order, *more], logits

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Go on with the newest token of each row: float32[R, V], of their next ones."""
        lengths = torch.tensor([len(row) for row in self._rows])
        self._make_room(len(lengths), int(lengths.max()) + 1)
        used, even = int(lengths.max()) + 1, bool((lengths == lengths[0]).all())
        newest = torch.tensor(token_ids)
        if self._has_few_shapes:
            _, _, room_rows, _, used, _ = self._memory.states.shape
            newest, lengths = (F.pad(one, (0, room_rows - len(one))) for one in (newest, lengths))
            even = False
        logits = self._forward(
            self._step_through,
            0,
            lengths[:, None],
            lengths + 1,
            used=used,
            even=even,
            input_ids=newest[:, None].to(self._memory.device),
        )
        for row, token_id in zip(self._rows, token_ids, strict=True):
            row.append(token_id)
        return logits[: len(self._rows), 0]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Forget the others, of which the last rows take the places; which row is now in each place."""
        number, staying = len(rows), set(rows)
        behind = [row for row in rows if row >= number]
        order = [row if row in staying else behind.pop() for row in range(number)]
        for place, row in enumerate(order):
            if place != row:
                self._memory.copy_row(row, place, len(self._rows[row]))
        self._rows = [self._rows[row] for row in order]
        return order

    def remember(self, row: int) -> None:
        """Keep what a row has read, for prompts that begin likewise."""
        read = self._rows[row]
        self._beginnings.add(read, self._memory.states[:, :, row, :, : len(read)])

    def _read_common_beginning(self, prompts: Sequence[Sequence[int]]) -> None:
        common = _common_length(prompts) if len(prompts) > 1 else 0
        beginning = prompts[0][:common]
        known = self._beginnings.longest(beginning)
        if common - known.length < _WORTH_READING:
            return
        place = len(self._rows)
        self._read(place, [beginning], [known])
        self._beginnings.add(beginning, self._memory.states[:, :, place, :, :common])

    def _columns_to_read(
        self,
        prompts: Sequence[Sequence[int]],
        known: Sequence["_Known"],
        order: Sequence[int],
        groups: Sequence[slice],
    ) -> int:
        """Padding stands behind the prompts, and is overwritten by their answers."""
        return max(
            max(known[i].length for i in order[group])
            + max(len(prompts[i]) - known[i].length for i in order[group])
            for group in groups
        )

    def _read(self, start: int, prompts: Sequence[Sequence[int]], known: Sequence["_Known"]) -> Tensor:
        """Into the rows from `start` on: float32[B, V], of the tokens behind the prompts."""
        for row, one in enumerate(known, start=start):
            if one.states is not None:
                self._memory.states[:, :, row, :, : one.length] = one.states[:, :, :, : one.length]
        new = [prompt[one.length :] for prompt, one in zip(prompts, known, strict=True)]
        length = max(map(len, new))
        ids = np.zeros((len(new), length), dtype=np.int64)
        for ids_of_row, numbers in zip(ids, new, strict=True):
            ids_of_row[: len(numbers)] = numbers
        pictures = [number for numbers in new for number in _pictures(numbers, self._slots)]
        ids[ids < 0] = IMAGE_TOKEN_ID
        embeds = self._embed(torch.from_numpy(ids).to(self._memory.device), pictures)
        first = torch.tensor([one.length for one in known])
        last, places = torch.tensor([len(numbers) - 1 for numbers in new]).unique(return_inverse=True)
        columns = first[:, None] + torch.arange(length)
        logits = self._forward(
            self._language,
            start,
            columns,
            torch.tensor([len(prompt) for prompt in prompts]),
            used=int(columns.max()) + 1,
            logits_to_keep=last.to(self._memory.device),
            even=not first.any(),
            inputs_embeds=embeds,
        )
        return logits[torch.arange(len(new)), places]

    def _forward(
        self,
        model: Any,
        start: int,
        columns: Tensor,
        lengths: Tensor,
        *,
        used: int,
        even: bool,
        logits_to_keep: int | Tensor = 1,
        **inputs: Tensor,
    ) -> Tensor:
        """float32[B, tokens to keep, V] of tokens that go into the rows from `start` on.

        Args:
            columns: int64[B, S], on the CPU.
            lengths: int64[B], of the rows then; what is behind is padding, whose positions a model may not have.
            used: columns to look at.
            even: all rows look at the same columns: none but those in front of a token is in use.
        """
        memory = self._memory
        memory.point_at(start, columns, used)
        positions = columns.minimum(lengths[:, None] - 1).to(memory.device)
        output = model(
            **inputs,
            attention_mask=_masks(self._language, positions, used, even=even),
            position_ids=positions,
            past_key_values=memory.cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        logits: Tensor = output.logits.float()
        return logits

    def _make_room(self, rows: int, columns: int) -> None:
        """Anew, with something to spare, only where there is not as much."""
        memory = self._memory
        layers, _, room_rows, heads, room_columns, width = memory.states.shape
        if rows <= room_rows and columns <= room_columns:
            return
        if columns > room_columns:
            room_columns = columns + columns // 2 + _SPARE_COLUMNS
        rows = max(rows, room_rows)
        if self._has_few_shapes:
            rows, room_columns = (1 << (number - 1).bit_length() for number in (rows, room_columns))
        larger = memory.states.new_zeros(layers, 2, rows, heads, room_columns, width)
        used = max(map(len, self._rows), default=0)
        kept = slice(len(self._rows))
        larger[:, :, kept, :, :used] = memory.states[:, :, kept, :, :used]
        self._memory = _Memory(larger)  # if there was no memory for it, the rows that were there go on
        if self._has_few_shapes:
            self._memory.stay_in_place()


class _Memory:
    """Keys and values of all layers, float[L, 2, R, H, T, D], and the cache through which a model uses them."""

    def __init__(self, states: Tensor) -> None:
        self.states = states
        self.device = states.device
        self.cache = Cache(layers=[_Layer(self, keys, values) for keys, values in states])
        self.rows = slice(0, 0)
        self.seen = self.used = 0
        self.where = torch.empty(0, dtype=torch.int64)

    @classmethod
    def empty(cls, language: PreTrainedModel) -> "_Memory":
        """Without rows; its other dimensions are those of what the model keeps of one token.

        Raises:
            InputError: layers differ in what they keep.
        """
        # Without the config, each layer keeps all.
        probe = DynamicCache()
        with torch.no_grad():
            language(torch.zeros(1, 1, dtype=torch.int64, device=language.device), past_key_values=probe)
        layers: Any = probe.layers
        kept = [one for layer in layers for one in (layer.keys, layer.values)]
        if len({(one.shape, one.dtype, one.device) for one in kept}) > 1:
            shapes = ", ".join(sorted({str(tuple(one.shape)) for one in kept}))
            raise InputError(
                f"the layers of the language model keep keys and values of different shapes ({shapes}); expected one; "
                "choose another model.language.path"
            )
        _, heads, _, width = kept[0].shape
        return cls(kept[0].new_zeros(len(layers), 2, 0, heads, 0, width))

    def point_at(self, start: int, columns: Tensor, used: int) -> None:
        """The next tokens go to these columns, int64[B, S], of the rows from `start` on, and see the first `used`."""
        heads, room = self.states.shape[3:5]
        self.rows = slice(start, start + len(columns))
        self.used = used
        self.seen = used - columns.shape[1]
        beginnings = torch.arange(start * heads, self.rows.stop * heads).view(-1, heads, 1) * room
        self.where = (beginnings + columns[:, None]).flatten().to(self.device)  # [B * H * S]

    def stay_in_place(self) -> None:
        """Tell compiled steps that these tensors are always the same, and not to be copied for a CUDA graph."""
        layers: Any = self.cache.layers
        for layer in layers:
            for tensor in (*layer.rooms, *layer.flat):
                torch._dynamo.mark_static_address(tensor)

    def copy_row(self, source: int, target: int, length: int) -> None:
        self.states[:, :, target, :, :length] = self.states[:, :, source, :, :length]


class _Layer(DynamicLayer):
    """One layer's part of the memory: keys and values, float[R, H, T, D]."""

    def __init__(self, memory: _Memory, keys: Tensor, values: Tensor) -> None:
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
            flat.index_copy_(0, memory.where, states.flatten(0, 2))
        keys, values = (room[memory.rows, :, : memory.used] for room in self.rooms)
        return keys, values

    def get_seq_length(self) -> int:
        """T - S"""
        return self._memory.seen


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What was read of a prompt's beginning."""

    length: int = 0
    states: Tensor | None = None
    """float[L, 2, H, at least `length`, D]"""


class _Beginnings:
    """What was read, most recently used last, within so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: list[tuple[np.ndarray, Tensor]] = []

    def longest(self, prompt: Sequence[int]) -> _Known:
        """The longest that the prompt begins with, whole pictures and all but its last token at most."""
        asked = np.array(prompt[:-1], dtype=np.int64)
        lengths = [_agreement(asked, read) for read, _ in self._kept]
        length = max(lengths, default=0)
        if not length:
            return _Known()
        latest = max(place for place, one in enumerate(lengths) if one == length)
        found = self._kept.pop(latest)
        self._kept.append(found)
        while 0 < length < len(prompt) and prompt[length - 1] == prompt[length] < 0:
            length -= 1
        return _Known(length=length, states=found[1])

    def add(self, read: Sequence[int], states: Tensor) -> None:
        """float[L, 2, H, tokens, D], which is copied; what it begins with is no longer kept by itself."""
        numbers = np.array(read, dtype=np.int64)
        self._kept = [one for one in self._kept if _agreement(numbers, one[0]) < len(one[0])]
        self._kept.append((numbers, states.clone()))
        size = sum(kept.nbytes for _, kept in self._kept)
        while size > self._most_bytes:
            size -= self._kept.pop(0)[1].nbytes


def _masks(
    language: PreTrainedModel, positions: Tensor, used: int, *, even: bool
) -> Tensor | dict[str, Tensor] | None:
    """What is added to the attention of tokens at int64[B, S] to the first columns; for each kind of layer, if several.

    None where the model knows by itself who sees whom.
    """
    config = language.config
    windowed = getattr(config, "sliding_window", None) is not None
    kinds = set(getattr(config, "layer_types", None) or [_KINDS[windowed]])
    if even and kinds == {_KINDS[0]}:
        return None
    columns, here = torch.arange(used, device=positions.device), positions[..., None]
    lowest = torch.finfo(language.dtype).min

    def mask(kind: str) -> Tensor:
        """float[B, 1, S, used]"""
        seen = columns <= here
        if kind == _KINDS[1]:
            seen &= columns > here - config.sliding_window
        elif kind == _KINDS[2]:
            seen &= columns >= here - here % config.attention_chunk_size
        return torch.zeros(seen.shape, dtype=language.dtype, device=seen.device).masked_fill_(~seen, lowest)[
            :, None
        ]

    return mask(*kinds) if len(kinds) == 1 else {kind: mask(kind) for kind in kinds}


def _pictures(numbers: Sequence[int], slots: int) -> list[int]:
    return [number for number in numbers if number < 0][::slots]


def _groups(lengths: Sequence[int], *, at_once: int) -> list[slice]:
    """Prompts that are read together, of similar lengths; the lengths fall.

    >>> _groups([30, 20, 20, 1], at_once=40)
    [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    """
    starts = [0]
    for place in range(1, len(lengths)):
        if (place + 1 - starts[-1]) * lengths[starts[-1]] > at_once:
            starts.append(place)
    return [slice(*ends) for ends in pairwise([*starts, len(lengths)])]


def _agreement(one: np.ndarray, other: np.ndarray) -> int:
    """How many numbers both begin with.

    >>> _agreement(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


def _common_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many numbers all begin with.

    >>> _common_length([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
    2
    """
    ordered = sorted(map(tuple, prompts))
    return _agreement(np.array(ordered[0]), np.array(ordered[-1]))
