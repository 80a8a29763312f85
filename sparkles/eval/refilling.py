"""Answers of different lengths, many at a time: the place of one that has ended is taken by the next prompt.

R answers that are being written, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    SuppressTokensLogitsProcessor,
)

from sparkles.eval.choosing import WARPERS, SeededNoise, StopStrings
from sparkles.types import InputError

Process = Callable[[Any, Tensor], Tensor]
"""A logits processor of transformers that reads no ids."""

_HEEDED = {"max_new_tokens", "do_sample", "suppress_tokens", *WARPERS}
_OF_NO_MEANING = {
    "bos_token_id",
    "eos_token_id",  # which is heeded
    "max_length",  # max_new_tokens is said
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}
_OFF = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0, "length_penalty": 1.0}
_SHARE_TO_JOIN = 1 / 8
"""Of the rows: so many prompts wait for each other before they are read, since each reading costs a step's time."""
_STEPS_TO_WAIT = 8
"""At most."""


class RunningRows(Protocol):
    """`sparkles.models.decoding.RunningBatch`, which says what these do."""

    def join(self, prompts: Sequence[Sequence[int]]) -> list[int]: ...

    def step(self, token_ids: Sequence[int]) -> Tensor: ...

    def keep(self, rows: Sequence[int]) -> list[int]: ...

    def remember(self, row: int) -> None: ...


@runtime_checkable
class Refillable(Protocol):
    """A model whose rows may come and go."""

    language: PreTrainedModel

    def running_batch(self, features: Callable[[Sequence[int]], Tensor]) -> RunningRows:
        """Without rows, for prompts whose pictures have numbers, with the features of pictures by their numbers."""
        ...


@dataclass(eq=False)
class Answer:
    """One that is being written."""

    index: int
    """Of who asks."""
    numbers: list[int]
    """Of the prompt, as `RunningBatch` has it."""
    seed: int | None
    """None takes the likeliest tokens."""
    token_ids: list[int] = field(default_factory=list)
    seconds: float = 0.0
    """The answer's share of the time for which it was written."""
    goes_on: bool = False
    """A further prompt begins with what this answer has read."""
    generator: torch.Generator | None = None

    @property
    def newest(self) -> int:
        """Token id of what was said last; before there is an answer, by the prompt."""
        return (self.token_ids or self.numbers)[-1]

    def start(self, clock: float) -> None:
        """From the beginning, also where it had begun."""
        self.token_ids = []
        self.seconds = -clock
        self.generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)


class Desk:
    """Where answers are written.

    Args:
        generation: see `heeds`.
        warpers: of sampled answers.
        most_rows: answers at a time; `may_grow` while the memory of the device allows it, up to so many.
    """

    def __init__(
        self,
        model: Refillable,
        features: Callable[[Sequence[int]], Tensor],
        *,
        generation: Mapping[str, Any],
        warpers: Sequence[Process],
        stop: StopStrings,
        most_rows: int,
        may_grow_to: int,
    ) -> None:
        self._make_batch = lambda: model.running_batch(features)
        self._batch = self._make_batch()
        settings = _settings(model.language, generation)
        eos = settings.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [eos])
        self._max_new_tokens = generation["max_new_tokens"]
        self._stop = stop
        self._suppress: Process | None = None
        if settings.suppress_tokens:
            device = str(model.language.device)
            self._suppress = SuppressTokensLogitsProcessor(settings.suppress_tokens, device=device)
        self._warpers = warpers
        self.most_rows, self._may_grow_to = most_rows, may_grow_to
        self._waiting: deque[Answer] = deque()
        self._rows: list[Answer] = []
        self._ended: list[Answer] = []
        self._clock = 0.0  # seconds that an answer would have used which was written all the time
        self._steps_waited = 0
        self._answered_since_grown = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or len(self._rows) > len(self._ended))

    def ask(self, answer: Answer, *, behind: Answer | None = None) -> None:
        """Let it be written.

        Args:
            behind: the answer that it follows, which was the last to be given out; it is then written before others.
        """
        if behind is None:
            self._waiting.append(answer)
        else:
            behind.goes_on = True
            self._waiting.appendleft(answer)

    def clear(self) -> None:
        """Forget whoever waits or is being answered."""
        self._waiting.clear()
        self._rows, self._ended = [], []
        self._batch.keep([])

    def write(self) -> list[Answer]:
        """Go on until an answer ends; those that have ended.

        Raises:
            InputError: not even one prompt fits into the device's memory.
        """
        try:
            self._leave()
            while not self._ended and self.is_busy:
                self._join()
                self._step()
        except torch.cuda.OutOfMemoryError:
            self._start_again_with_fewer()
        self._grow()
        return self._ended

    def _leave(self) -> None:
        ended, self._ended = set(self._ended), []
        if not ended:
            return
        for place, row in enumerate(self._rows):
            if row.goes_on:
                self._batch.remember(place)
        staying = [place for place, row in enumerate(self._rows) if row not in ended]
        self._rows = [self._rows[place] for place in self._batch.keep(staying)]

    def _join(self) -> None:
        room = self.most_rows - len(self._rows)
        joining = min(len(self._waiting), room)
        enough = min(room, 1 + int(_SHARE_TO_JOIN * len(self._rows)))
        if not joining or (joining < enough and self._steps_waited < _STEPS_TO_WAIT):
            self._steps_waited += bool(joining)
            return
        self._steps_waited = 0
        start = time.perf_counter()
        answers = [self._waiting.popleft() for _ in range(joining)]
        self._rows += answers  # so that none is lost if memory does not suffice
        order = self._batch.join([answer.numbers for answer in answers])
        self._rows[-joining:] = answers = [answers[place] for place in order]
        for answer in answers:
            answer.start(self._clock)
        self._clock += (time.perf_counter() - start) / len(self._rows)

    def _step(self) -> None:
        start = time.perf_counter()
        logits = self._batch.step([row.newest for row in self._rows])
        self._clock += (time.perf_counter() - start) / len(self._rows)
        for row, token_id in zip(self._rows, self._choose(logits), strict=True):
            row.token_ids.append(token_id)
            if (
                token_id in self._eos
                or len(row.token_ids) == self._max_new_tokens
                or self._stop.end(row.token_ids)
            ):
                row.seconds += self._clock
                self._ended.append(row)

    def _choose(self, logits: Tensor) -> list[int]:
        rows = self._rows
        if self._suppress is not None:
            logits = self._suppress(None, logits)
        chosen = logits.argmax(dim=1)
        drawn = [place for place, row in enumerate(rows) if row.generator is not None]
        if drawn:
            scores = logits[drawn]
            noise = SeededNoise([row.generator for row in rows if row.generator is not None])
            processes: list[Process] = [*self._warpers, noise]
            for process in processes:
                scores = process(None, scores)
            chosen[drawn] = scores.argmax(dim=1)
        token_ids: list[int] = chosen.tolist()
        return token_ids

    def _start_again_with_fewer(self) -> None:
        if len(self._rows) == 1:
            raise InputError(
                "one prompt alone does not fit into the device's memory; lower max_new_tokens, load the language model "
                "in fewer bits (model.language.dtype, model.language.quantization) or take a larger device"
            ) from None
        self.most_rows = self._may_grow_to = max(1, len(self._rows) // 2)
        self._waiting.extendleft(reversed(self._rows))
        self._rows, self._batch = [], self._make_batch()
        torch.cuda.empty_cache()

    def _grow(self) -> None:
        self._answered_since_grown += len(self._ended)
        if self._waiting and self._answered_since_grown >= self.most_rows:
            self._answered_since_grown = 0
            self.most_rows = min(2 * self.most_rows, self._may_grow_to)


def bytes_of_a_token(language: PreTrainedModel) -> int:
    """Of the keys and values that attention keeps of each token.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> bytes_of_a_token(GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10)))
    128
    """
    config = language.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * language.dtype.itemsize)


def heeds(language: PreTrainedModel, generation: Mapping[str, Any]) -> bool:
    """Whether a `Desk` chooses tokens as transformers' `generate` would with these settings."""
    return not unheeded(language, generation)


def unheeded(language: PreTrainedModel, generation: Mapping[str, Any]) -> set[str]:
    """Names of what `generation`, or the model by itself, asks for and a `Desk` would not do."""
    said = _settings(language, generation).to_diff_dict() | dict(generation)
    said = {name: value for name, value in said.items() if not name.startswith("_") and value is not None}
    return {name for name, value in said.items() if _OFF.get(name) != value} - _HEEDED - _OF_NO_MEANING


def _settings(language: PreTrainedModel, generation: Mapping[str, Any]) -> GenerationConfig:
    """The model's own, and what is said here."""
    config = copy(language.generation_config)
    for name, value in generation.items():
        setattr(config, name, value)
    return config
