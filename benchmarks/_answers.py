"""Answers at full size, in one way after the other."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from _device import device_name, forget_peak, peak_megabytes, timed
from _line import print_line
from _texts import MOST_NEW_TOKENS, Item
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from sparkles.data.collate import pad_batch
from sparkles.eval.refilling import Answer, Desk, bytes_of_a_token
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.types import IMAGE_TOKEN_ID

ITEMS = 150
"""Of each benchmark (paper, section 5)."""
Benchmarks = Sequence[Sequence[Item]]


class AnswerLengths(LogitsProcessor):
    """Ends each row of a batch after so many tokens and not before, which random weights do not know themselves."""

    def __init__(self, lengths: Sequence[int], eos_token_id: int, device: torch.device) -> None:
        self.lengths = torch.tensor(lengths, device=device)
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """float[B, V] -> float[B, V]"""
        scores = scores.clone()
        is_last = input_ids.shape[1] + 1 >= self.lengths
        scores[:, self.eos_token_id] = torch.where(is_last, torch.inf, -torch.inf)
        return scores


class Limited(list[int]):
    """Tokens of an answer that is to have so many."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length


@dataclass(eq=False)
class LimitedAnswer(Answer):
    """One that has as many tokens as it is meant to have."""

    length: int = 1

    def start(self, clock: float) -> None:
        super().start(clock)
        self.token_ids = Limited(self.length)


class AtLength:
    """In the place of `StopStrings`."""

    def end(self, token_ids: Limited) -> bool:
        return len(token_ids) == token_ids.length


class Answering:
    """Times answers in one way after the other, and tells each.

    Args:
        least_seconds: of a prompt, see below.
    """

    def __init__(self, model: SparklesChat, device: torch.device, least_seconds: float) -> None:
        self.model = model
        self.device = device
        self.least_seconds = least_seconds
        self.eos: int = model.language.config.eos_token_id
        self.slowest: float | None = None

    def tell(self, name: str, answer: Callable[[Benchmarks], None], benchmarks: Benchmarks) -> None:
        """Time the answers to all items, pictures included."""
        forget_peak(self.device)
        with timed(self.device) as took, torch.inference_mode():
            answer(benchmarks)
        [seconds] = took
        asked = [question for items in benchmarks for item in items for question in item]
        each = seconds / len(asked)
        self.slowest = self.slowest or each
        print_line(
            "SparklesChat, answers of BISON, NLVR2 and SparklesEval",
            name,
            figure=round(1 / each, 2),
            unit="prompts/s",
            ratio=round(self.slowest / each, 2),
            minutes_of_all_three=round(4 * ITEMS * each / 60, 2),
            new_tokens_per_s=round(sum(question.length for question in asked) / seconds),
            part_of_the_floors_speed=round(self.least_seconds / each, 3),
            peak_mb=peak_megabytes(self.device),
            prompts=len(asked),
            device=device_name(self.device),
        )

    def in_batches(self, benchmarks: Benchmarks, **generation: Any) -> None:
        """Each turn of a benchmark as one batch, with transformers' own decoding."""
        for turn in (turn for items in benchmarks for turn in zip(*items, strict=True)):
            prompts, lengths = [one.prompt for one in turn], [one.length for one in turn]
            number = sum(len(one.images) for one in prompts)
            batch = pad_batch(prompts, [None] * number, pad_token_id=0, side="left")
            batch["image_features"] = self._features(range(number))
            new_ids = self.model.generate(
                {name: tensor.to(self.device) for name, tensor in batch.items()},
                max_new_tokens=max(lengths),
                do_sample=False,
                logits_processor=LogitsProcessorList([AnswerLengths(lengths, self.eos, self.device)]),
                eos_token_id=self.eos,
                pad_token_id=0,
                **generation,
            )
            check((new_ids == self.eos).int().argmax(1).add(1).tolist(), lengths)

    def refilled(self, rows: int, benchmarks: Benchmarks) -> None:
        """So many answers at a time, as an evaluation has them."""
        desk = Desk(
            self.model,
            self._features,
            generation={"max_new_tokens": MOST_NEW_TOKENS, "suppress_tokens": [self.eos]},
            warpers=(),
            stop=AtLength(),  # type: ignore[arg-type]  # as a Desk uses it
            most_rows=rows,
            may_grow_to=rows,
        )
        items = [iter(item) for items in benchmarks for item in items]
        pictures = count(-1, -1)

        def go_on(index: int, answer: Answer | None = None) -> None:
            known = answer.numbers + answer.token_ids if answer else []
            for question in islice(items[index], 1):
                numbers = known + self._numbers(question.prompt.input_ids[len(known) :], pictures)
                asked = LimitedAnswer(index=index, numbers=numbers, seed=None, length=question.length)
                desk.ask(asked, behind=answer)

        for index in range(len(items)):
            go_on(index)
        while desk.is_busy:
            for answer in desk.write():
                go_on(answer.index, answer)

    def _features(self, numbers: Sequence[int]) -> Tensor:
        """float[N, Q, D_q] of so many random pictures."""
        side = self.model.vision.image_size
        return self.model.encode_images(torch.randn(len(numbers), 3, side, side, device=self.device))

    def _numbers(self, input_ids: Sequence[int], pictures: Iterator[int]) -> list[int]:
        """Ids as a `RunningBatch` takes them: each picture has a number of its own."""
        slots = (number for number in pictures for _ in range(self.model.qformer.num_query_tokens))
        return [next(slots) if token_id == IMAGE_TOKEN_ID else token_id for token_id in input_ids]


def check(lengths: Sequence[int], expected: Sequence[int]) -> None:
    """
    Raises:
        RuntimeError: answers are not as long as they were to be, so their time tells nothing.
    """
    if list(lengths) != list(expected):
        raise RuntimeError(f"answers of {lengths} tokens, expected {expected}")


def least_seconds(language: PreTrainedModel, benchmarks: Benchmarks, bandwidth: float) -> float:
    """For a prompt, if all are answered at once, reading as fast as a copy does.

    Read are all weights for each token of the item with the longest answers, and for each token of any answer the keys
    and values of those before it.

    Args:
        bandwidth: bytes a second.
    """
    items = [item for items in benchmarks for item in items]
    steps = max(sum(question.length for question in item) for item in items)
    asked = [question for item in items for question in item]
    seen = sum(one.length * (len(one.prompt.input_ids) + one.length / 2) for one in asked)
    weights = sum(weight.nbytes for weight in language.parameters())
    return (steps * weights + seen * bytes_of_a_token(language)) / bandwidth / len(asked)
