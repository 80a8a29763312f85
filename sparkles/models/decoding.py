"""Answers written many at a time: rows come and go between two steps, and what was read once is not read again.

A prompt is a list of numbers: token ids and, in the slots of pictures, negative numbers, each of which stands for one
picture. It is read but for its last token, a word; the first step of its row reads that one.

R rows, T tokens of the longest row, B prompts read at a time, S new tokens of the longest of them, L layers of H heads
of width D, V vocabulary.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel

from sparkles.models.cache import Beginnings, RowMemory, common_length, nothing_kept
from sparkles.types import IMAGE_TOKEN_ID, InputError

Embed = Callable[[Tensor, Sequence[int]], Tensor]
"""int64[B, S] with IMAGE_TOKEN_ID in the slots of pictures, and the pictures' numbers -> float[B, S, D_lm]"""

_KINDS = ("full_attention", "sliding_attention", "chunked_attention")
"""Layers that keep something for each token, of which rows can be put together."""
_IMPLEMENTATIONS = {"sdpa", "eager"}
"""Of attention, which take the mask that is made here."""
_ROPE_OF_THE_CALL = {"dynamic", "longrope"}
"""Position encodings that transformers makes anew for each call."""
_TOKENS_AT_ONCE = {"cpu": 1_024}
"""Read in one call, so that what lies between two layers stays in the processor's cache."""
_TOKENS_AT_ONCE_ELSEWHERE = 16_384
_TOKENS_OF_A_CALL = {"cpu": 32}
"""Whose reading takes as long as the call itself."""
_TOKENS_OF_A_CALL_ELSEWHERE = 512
_MOST_SHAPES = 64
"""Powers of two of rows, times those of columns."""
_WORTH_READING = 16
"""Tokens that several prompts begin with, to be read for all of them before the rest."""


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
    if others := _rope_types(config) & _ROPE_OF_THE_CALL:
        return (
            f"its positions ({', '.join(sorted(others))} RoPE) are turned by angles that depend on the longest row: "
            "expected angles that are always the same"
        )
    return None


def _rope_types(config: PretrainedConfig) -> set[str]:
    """Of all layers, whose kinds may have parameters of their own."""
    given = getattr(config, "rope_parameters", None) or {}
    kinds = [given, *(one for one in given.values() if isinstance(one, dict))]
    return {kind["rope_type"] for kind in kinds if "rope_type" in kind}


class PromptReader:
    """Reads prompts, of each but the last token.

    Args:
        slots: of a picture.
        beginnings: what was read before, here or elsewhere.

    Raises:
        InputError: the language model is `unfit`, or its layers differ in what they keep.
    """

    def __init__(
        self, language: PreTrainedModel, embed: Embed, *, slots: int, beginnings: Beginnings
    ) -> None:
        if reason := unfit(language):
            raise InputError(
                f"the language model cannot answer several questions at a time: {reason}; choose another "
                "model.language.path"
            )
        self.language = language
        self.beginnings = beginnings
        self.nothing = nothing_kept(language)
        self._embed = embed
        self._slots = slots
        self._memory = RowMemory(self.nothing)

    def read(self, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
        """What `RunningBatch.enter` takes for them, and is kept for others: float[L, 2, H, at least all but one, D]."""
        room = len(prompts), max(map(len, prompts)) - 1
        if any(needed > there for needed, there in zip(room, self._memory.room, strict=True)):
            self._memory = RowMemory(self.nothing)  # let go first; nobody needs what was in it
            self._memory = RowMemory(self.nothing, room=room)
        order = self.read_into(self._memory, 0, prompts)
        read: dict[int, Tensor] = {}
        for row, index in enumerate(order):
            numbers = prompts[index][:-1]
            read[index] = self.beginnings.add(numbers, self._memory.read(row, len(numbers)))
        return [read[index] for index in range(len(prompts))]

    def read_into(self, memory: RowMemory, start: int, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read into the rows from `start` on; which prompt is now in each of these."""
        if bad := [index for index, prompt in enumerate(prompts) if not prompt or prompt[-1] < 0]:
            raise ValueError(
                f"prompt {bad[0]} ends with a picture, or has no tokens; expected a word at its end"
            )
        wanted = [prompt[:-1] for prompt in prompts]
        memory.make_room(start + len(wanted), max(map(len, wanted)))
        self._read_common_beginning(memory, start, wanted)
        known = [self.beginnings.longest(numbers) for numbers in wanted]
        order = sorted(range(len(wanted)), key=lambda index: known[index].length - len(wanted[index]))
        for row, index in enumerate(order, start=start):
            if (states := known[index].states) is not None:
                memory.write(row, states[:, :, :, : known[index].length])
        lengths = [len(wanted[index]) - known[index].length for index in order]
        groups = _groups(
            [length for length in lengths if length],
            at_once=_TOKENS_AT_ONCE.get(memory.device.type, _TOKENS_AT_ONCE_ELSEWHERE),
            call=_TOKENS_OF_A_CALL.get(memory.device.type, _TOKENS_OF_A_CALL_ELSEWHERE),
        )
        for group in groups:
            self._read_group(
                memory,
                start + group.start,
                [wanted[i] for i in order[group]],
                [known[i].length for i in order[group]],
            )
        return order

    def _read_common_beginning(self, memory: RowMemory, row: int, wanted: Sequence[Sequence[int]]) -> None:
        common = 0
        if len(wanted) > 1:
            common = common_length(min(map(tuple, wanted)), max(map(tuple, wanted)))
        beginning = wanted[0][:common]
        known = self.beginnings.longest(beginning)
        if common - known.length < _WORTH_READING:
            return
        if known.states is not None:
            memory.write(row, known.states[:, :, :, : known.length])
        self._read_group(memory, row, [beginning], [known.length])
        self.beginnings.add(beginning, memory.read(row, common))

    def _read_group(
        self, memory: RowMemory, start: int, wanted: Sequence[Sequence[int]], known: Sequence[int]
    ) -> None:
        """What is not known, in one call. Padding stands behind it, and is overwritten by what comes."""
        new = [numbers[length:] for numbers, length in zip(wanted, known, strict=True)]
        length = max(map(len, new))
        ids = np.zeros((len(new), length), dtype=np.int64)
        for ids_of_row, numbers in zip(ids, new, strict=True):
            ids_of_row[: len(numbers)] = numbers
        pictures = [number for numbers in new for number in _pictures(numbers, self._slots)]
        ids[ids < 0] = IMAGE_TOKEN_ID
        first = torch.tensor(known)
        columns = first[:, None] + torch.arange(length)
        used = int(columns.max()) + 1
        memory.make_room(start + len(new), used)
        lengths = torch.tensor([len(numbers) for numbers in wanted])
        self.language.base_model(  # whose output nobody needs
            inputs_embeds=self._embed(torch.from_numpy(ids).to(memory.device), pictures),
            **_placed(self.language, memory, start, columns, lengths, used=used, even=not first.any()),
        )


class RunningBatch:
    """Rows of one memory, each the prompt and the beginning of an answer.

    transformers' own continuous batching (`generate_batch`) takes token ids only, and pictures have none.

    Up to the rounding of sums, the logits of a row depend on nothing but its own tokens.

    Args:
        compile_backend: of `torch.compile` for the steps, which then have few shapes: as many rows and columns as there
            is room for. On a GPU "inductor" replays each as one CUDA graph; tested on CPUs only, for equal logits.
    """

    def __init__(self, reader: PromptReader, *, compile_backend: str | None = None) -> None:
        self._language = reader.language
        self._reader = reader
        self._rows: list[list[int]] = []  # what each has read
        self._has_few_shapes = compile_backend is not None
        self._memory = RowMemory(reader.nothing, few_shapes=self._has_few_shapes)
        self._step_through: Any = self._language
        if compile_backend is not None:
            # Each shape is compiled once; above the limit dynamo would give up for good, when the load is highest.
            dynamo = torch._dynamo.config
            dynamo.recompile_limit = max(dynamo.recompile_limit, _MOST_SHAPES)
            graphs = compile_backend == "inductor" and self._language.device.type == "cuda"
            self._step_through = torch.compile(
                self._language,
                backend=compile_backend,
                mode="reduce-overhead" if graphs else None,
                dynamic=False,
            )

    def join(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read prompts, each into a row behind those that are there; which prompt is in each new row."""
        order = self._reader.read_into(self._memory, len(self._rows), prompts)
        self._rows += [list(prompts[index][:-1]) for index in order]
        return order

    def enter(self, prompt: Sequence[int], read: Tensor, copies: int = 1) -> None:
        """Add rows of one prompt that was `read` elsewhere."""
        numbers = list(prompt[:-1])
        places = range(len(self._rows), len(self._rows) + copies)
        self._memory.make_room(places.stop, len(numbers))
        for place in places:
            self._memory.write(place, read[:, :, :, : len(numbers)])
            self._rows.append(list(numbers))

    def step(self, token_ids: Sequence[int]) -> Tensor:
        """Go on with the newest token of each row, at first its prompt's last: float32[R, V], of their next ones."""
        memory = self._memory
        lengths = torch.tensor([len(row) for row in self._rows])
        used, even = int(lengths.max()) + 1, bool((lengths == lengths[0]).all())
        memory.make_room(len(lengths), used)
        newest = torch.tensor(token_ids)
        if self._has_few_shapes:
            rows, used = memory.room
            newest, lengths = (F.pad(one, (0, rows - len(one))) for one in (newest, lengths))
            even = False
        output = self._step_through(
            input_ids=newest[:, None].to(memory.device),
            logits_to_keep=1,
            **_placed(self._language, memory, 0, lengths[:, None], lengths + 1, used=used, even=even),
        )
        for row, token_id in zip(self._rows, token_ids, strict=True):
            row.append(token_id)
        logits: Tensor = output.logits[: len(self._rows), 0].float()
        return logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Forget the others, of which the last rows take the places; which row is now in each place."""
        number, staying = len(rows), set(rows)
        behind = [row for row in rows if row >= number]
        order = [row if row in staying else behind.pop() for row in range(number)]
        for place, row in enumerate(order):
            if place != row:
                self._memory.write(place, self._memory.read(row, len(self._rows[row])))
        self._rows = [self._rows[row] for row in order]
        return order

    def remember(self, row: int) -> None:
        """Keep what a row has read, for prompts that begin likewise."""
        read = self._rows[row]
        self._reader.beginnings.add(read, self._memory.read(row, len(read)))


def _placed(
    language: PreTrainedModel,
    memory: RowMemory,
    start: int,
    columns: Tensor,
    lengths: Tensor,
    *,
    used: int,
    even: bool,
) -> dict[str, Any]:
    """Arguments of a model for tokens that go into the rows from `start` on.

    Args:
        columns: int64[B, S], on the CPU.
        lengths: int64[B], of the rows then; what is behind is padding, whose positions a model may not have.
        used: columns to look at.
        even: all rows look at the same columns: none but those in front of a token is in use.
    """
    memory.point_at(start, columns, used)
    positions = columns.minimum(lengths[:, None] - 1).to(memory.device)
    return {
        "attention_mask": _masks(language, positions, used, even=even),
        "position_ids": positions,
        "cache": memory.cache,
        "use_cache": True,
    }


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


def _groups(lengths: Sequence[int], *, at_once: int, call: int) -> list[slice]:
    """Prompts that are read together, so that padding and calls cost the least.

    Args:
        lengths: which fall.
        at_once: tokens of a group at most, padding among them, if it has several prompts.
        call: tokens whose reading costs as much as a call does, however little it reads.

    >>> _groups([30, 25, 25, 1], at_once=100, call=25)
    [slice(0, 3, None), slice(3, 4, None)]
    >>> _groups([30, 25, 25, 1], at_once=60, call=25)
    [slice(0, 1, None), slice(1, 3, None), slice(3, 4, None)]
    """
    least, starts = [0], [0]  # of the first prompts: what they cost, and where their last group starts
    for end in range(1, len(lengths) + 1):
        costs = {
            start: least[start] + call + (end - start) * lengths[start]
            for start in range(end)
            if start == end - 1 or (end - start) * lengths[start] <= at_once
        }
        starts.append(min(costs, key=costs.__getitem__))
        least.append(costs[starts[-1]])
    ends = [len(lengths)]
    while ends[-1]:
        ends.append(starts[ends[-1]])
    return [slice(*pair) for pair in pairwise(reversed(ends))]
