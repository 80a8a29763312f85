"""One model, many conversations: requests join the running batch and leave it between two of its steps.

    engine = Engine(model=model, encoder=encoder, transform=transform)
    async for piece in engine.answer(question):
        print(piece.text, end="")

One thread encodes pictures and reads prompts, another writes answers; whoever asks does so from an event loop, of which
there may be several. Up to the rounding of sums, an answer does not depend on what else is in the batch: each draws
from a generator of its own.
"""

import asyncio
import logging
import queue
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from functools import partial
from math import isfinite
from threading import BoundedSemaphore, Condition, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform
from sparkles.eval.choosing import StopStrings
from sparkles.eval.refilling import unheeded
from sparkles.models.cache import Beginnings
from sparkles.models.decoding import RunningBatch
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.serve.answer_text import AnswerText
from sparkles.serve.exchange import AnswerRow, Exchange, Post
from sparkles.serve.question import EngineError, FullError, LateError, Piece, Question, Sampling
from sparkles.serve.seen_pictures import SeenPictures
from sparkles.types import IMAGE_TOKEN_ID, InputError

_FAILED = "the model failed to answer"
_PICTURES_KEPT = 1_024
_SHARE_READ_AHEAD = 1 / 4
"""Of the rows: so many prompts more may have been read, which wait for a row."""
_SHARE_READ_TOGETHER = 1 / 8
"""Of the rows: so many prompts wait for each other, since to read each alone takes longer, but none waits for long."""
_SECONDS_FOR_COMPANY = 0.05
_MOST_READ_TOGETHER = 8
"""Questions, so that the first answers begin while the last are read."""
_MOST_TOKENS_READ_TOGETHER = 4_096
"""Of several questions, padding among them, since all that is kept of them lies in memory twice for a moment."""

log = logging.getLogger(__name__)


class _Over(StoppingCriteria):
    """Ends the search for an answer that takes too long, or that nobody waits for."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """int64[beams, S] -> bool[beams]"""
        return torch.full(input_ids.shape[:1], self.exchange.is_over, device=input_ids.device)


class Engine:
    """Answers questions, many at a time.

    Args:
        encoder: of prompts; whoever asks encodes with the engine's, which leaves out whole turns, never half a picture.
        transform: of pictures; whoever asks applies it.
        max_batch_size: answers that are written at the same time; a quarter as many more are read ahead.
        max_waiting: requests that may wait for one of these places.
        remembered_bytes: of what the model has read, kept for the next turns of conversations.
        seconds: for an answer. What is written then ends as if it had reached its last token.

    Raises:
        InputError: the model cannot do it, or prompts may be longer than it can read.
    """

    def __init__(
        self,
        *,
        model: SparklesChat,
        encoder: Encoder,
        transform: ImageTransform,
        max_batch_size: int = 32,
        max_waiting: int = 128,
        remembered_bytes: int = 2**28,
        seconds: float = 120.0,
    ) -> None:
        if max_batch_size < 1 or max_waiting < 0 or seconds <= 0:
            raise InputError(
                f"max_batch_size={max_batch_size}, max_waiting={max_waiting}, seconds={seconds}; expected at least "
                "1 and 0, and more than 0"
            )
        self.model = model.eval()
        self.encoder = copy(encoder)
        self.encoder.cut_anywhere = False
        self.transform = transform
        self.max_batch_size = max_batch_size
        self.seconds = seconds
        self._positions = _positions(model.language.config)
        if self._positions is not None and encoder.max_prompt_length > self._positions:
            raise InputError(
                f"prompts may have {encoder.max_prompt_length} tokens, but the model knows {self._positions} "
                f"positions; set data.max_prompt_length={self._positions} or less"
            )
        self._ends = _ends(model.language)
        self._places = BoundedSemaphore(max_batch_size + max_waiting)
        # What the door guards: who has arrived, and for how many more answers may be read.
        self._door = Condition()
        self._closed = False
        self._arrived: deque[Exchange] = deque()
        self._room = max_batch_size + max(1, int(_SHARE_READ_AHEAD * max_batch_size))
        # Of the thread that reads:
        self._pictures = SeenPictures(model, most=_PICTURES_KEPT)
        self._features: dict[int, Tensor] = {}  # of the pictures that are read now
        self._reader = model.prompt_reader(
            lambda numbers: torch.stack([self._features[number] for number in numbers]),
            beginnings=Beginnings(remembered_bytes),
        )
        # From there to the thread that writes:
        self._read: queue.SimpleQueue[Exchange | None] = queue.SimpleQueue()
        self._waiting: deque[Exchange] = deque()
        self._all_read = False
        self._rows: list[AnswerRow] = []
        self._batch = RunningBatch(self._reader, compile_backend=model.decoding_backend)
        self._post = Post()
        self._threads = [
            Thread(target=task, name=name, daemon=True)
            for task, name in ((self._read_all, "reader"), (self._write_all, "writer"))
        ]
        for thread in self._threads:
            thread.start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """To be held by a request from before its body is read until its answer is sent.

        Raises:
            FullError: there is none left.
        """
        if not self._places.acquire(blocking=False):
            raise FullError("as many requests as the server takes are already being answered or waiting")
        try:
            yield
        finally:
            self._places.release()

    async def answer(self, question: Question) -> AsyncGenerator[Piece]:
        """The pieces of all choices, as they come. To stop listening is to stop the answers.

        Raises:
            InputError: more choices than rows, or half a picture.
            LateError: the time was over before the first token.
            EngineError: the model failed.
        """
        if question.choices > self.max_batch_size:
            raise InputError(
                f"{question.choices} choices, but max_batch_size={self.max_batch_size}; ask for fewer"
            )
        if question.encoded.hides_slots:
            raise InputError("a picture was cut in two; encode the prompt with the engine's encoder")
        exchange = self._exchange(question)
        with self._door:
            if self._closed or not all(thread.is_alive() for thread in self._threads):
                raise EngineError("the engine is closed")
            self._arrived.append(exchange)
            self._door.notify()
        unfinished = question.choices
        try:
            while unfinished:
                piece = await exchange.news.get()
                if isinstance(piece, Exception):
                    raise piece
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            exchange.gone = True

    def _exchange(self, question: Question) -> Exchange:
        encoded = question.encoded
        numbers = [self._pictures.number(pixels) for pixels in question.pixel_values]
        slots = iter([number for number in numbers for _ in range(self.encoder.num_query_tokens)])
        ids = [next(slots) if token_id == IMAGE_TOKEN_ID else token_id for token_id in encoded.input_ids]
        return Exchange(
            question=question,
            loop=asyncio.get_running_loop(),
            deadline=time.monotonic() + self.seconds,
            numbers=ids,
            pictures=dict(zip(numbers, question.pixel_values, strict=True)),
        )

    def close(self) -> None:
        """Answer what was asked so far, then end."""
        with self._door:
            self._closed = True
            self._door.notify()
        for thread in self._threads:
            thread.join()

    @torch.inference_mode()
    def _read_all(self) -> None:
        """Look at pictures and read prompts, while others are answered."""
        post = Post()
        try:
            while group := self._next_to_read(post):
                # A search reads for itself.
                prompts = [one for one in group if one.question.sampling.beams == 1]
                look, read = partial(self._look, prompts), partial(self._read_prompts, prompts)
                if prompts and post.attempt(look, prompts, "the model failed to look at the pictures"):
                    post.attempt(read, prompts, _FAILED)
                for exchange in group:
                    self._read.put(exchange)
                post.deliver()
        finally:
            self._refuse(post)
            self._read.put(None)

    def _refuse(self, post: Post) -> None:
        """Whoever has not been let in, and all to come."""
        with self._door:
            self._closed = True
            refused, self._arrived = self._arrived, deque()
            self._door.notify()
        for exchange in refused:
            post.tell(exchange, EngineError(_FAILED))
        post.deliver()

    def _next_to_read(self, post: Post) -> list[Exchange]:
        """Those for whom there is room, waiting for them; none when the last has been read."""
        with self._door:
            while True:
                self._arrived, _ = self._in_time(self._arrived, post)
                post.deliver()
                if self._closed and not self._arrived:
                    return []
                company = self._seconds_for_company()
                if not company and (group := self._take_group()):
                    return group
                deadlines = [exchange.deadline - time.monotonic() for exchange in self._arrived]
                self._door.wait(max(0.0, company or min(deadlines)) if deadlines else None)

    def _take_group(self) -> list[Exchange]:
        """The first who have arrived, as many as there is room for and as are read together."""
        group: list[Exchange] = []
        longest = 0
        while self._arrived and len(group) < _MOST_READ_TOGETHER:
            choices, longest = self._arrived[0].question.choices, max(longest, len(self._arrived[0].numbers))
            if choices > self._room or (group and (len(group) + 1) * longest > _MOST_TOKENS_READ_TOGETHER):
                break
            group.append(self._arrived.popleft())
            self._room -= choices
        return group

    def _seconds_for_company(self) -> float:
        """For which the first who has arrived still waits to be read together with others; 0 if no longer."""
        enough = 1 + int(_SHARE_READ_TOGETHER * len(self._rows))
        if self._closed or not 0 < len(self._arrived) < enough:
            return 0.0
        return max(0.0, self._arrived[0].arrived + _SECONDS_FOR_COMPANY - time.monotonic())

    def _in_time(self, waiting: Iterable[Exchange], post: Post) -> tuple[deque[Exchange], int]:
        """Without those who are late, who are told so, or gone; how many answers they would have had."""
        now = time.monotonic()
        for exchange in waiting:
            if now > exchange.deadline and not exchange.gone:
                post.tell(exchange, LateError(f"no place for the answer within {self.seconds:g} seconds"))
        return (
            deque(exchange for exchange in waiting if not exchange.gone),
            sum(exchange.question.choices for exchange in waiting if exchange.gone),
        )

    def _look(self, exchanges: Sequence[Exchange]) -> None:
        self._features = self._pictures.look(
            {number: pixels for one in exchanges for number, pixels in one.pictures.items()}
        )

    def _read_prompts(self, exchanges: Sequence[Exchange]) -> None:
        states = self._reader.read([exchange.numbers for exchange in exchanges])
        for exchange, read in zip(exchanges, states, strict=True):
            exchange.read = read

    @torch.inference_mode()
    def _write_all(self) -> None:
        try:
            while self._gather():
                try:
                    self._write()
                except Exception:
                    # A bug, or not even the memory to tidy up; who comes next is to be answered.
                    log.exception("%d answers failed", len(self._rows))
                    self._start_again()
                self._post.deliver()
        finally:
            self._refuse(self._post)
            while not self._all_read:  # by the other thread, which ends now
                self._take_in(self._read.get())
            for exchange in (*self._waiting, *(row.exchange for row in self._rows)):
                self._post.tell(exchange, EngineError(_FAILED))
            self._post.deliver()

    def _write(self) -> None:
        """Let in whoever has a place, and go on by a token."""
        for exchange in self._next_to_write():
            searches = exchange.question.sampling.beams > 1
            task = partial(self._search if searches else self._enter, exchange)
            done = self._post.attempt(task, [exchange], _FAILED)
            if searches or not done:
                self._give_room(exchange.question.choices)
        if self._rows:
            self._post.attempt(self._step, [row.exchange for row in self._rows], _FAILED)
            self._leave()

    def _start_again(self) -> None:
        """With an empty batch."""
        for row in self._rows:
            self._post.tell(row.exchange, EngineError(_FAILED))
        self._give_room(len(self._rows))
        self._rows = []
        self._batch = RunningBatch(self._reader, compile_backend=self.model.decoding_backend)

    def _gather(self) -> bool:
        """Take in what has been read, waiting for it if there is nothing else to do; whether there is work."""
        block = not (self._rows or self._waiting)
        with suppress(queue.Empty):
            while not self._all_read:
                self._take_in(self._read.get(block=block))
                block = False
        return bool(self._rows or self._waiting or not self._all_read)

    def _take_in(self, exchange: Exchange | None) -> None:
        if exchange is None:
            self._all_read = True
        else:
            self._waiting.append(exchange)

    def _next_to_write(self) -> list[Exchange]:
        """Those for whom there are rows now."""
        self._waiting, answers = self._in_time(self._waiting, self._post)
        self._give_room(answers)
        free = self.max_batch_size - len(self._rows)
        entering = []
        while self._waiting and self._waiting[0].question.choices <= free:
            entering.append(self._waiting.popleft())
            free -= entering[-1].question.choices
        return entering

    def _give_room(self, answers: int) -> None:
        """For so many others to be read."""
        if answers:
            with self._door:
                self._room += answers
                self._door.notify()

    def _search(self, exchange: Exchange) -> None:
        """Answer by beam search, while the rows of the batch wait."""
        sampling = exchange.question.sampling
        stops = (*self.encoder.prompt_format.stop_strings, *sampling.stop)
        batch = pad_batch(
            [exchange.question.encoded],
            exchange.question.pixel_values,
            pad_token_id=self.encoder.pad_token_id,
            side="left",
        )
        [token_ids] = self.model.generate(
            {name: tensor.to(self.model.language.device) for name, tensor in batch.items()},
            num_beams=sampling.beams,
            do_sample=False,
            max_new_tokens=self._most_tokens(exchange),
            pad_token_id=self.encoder.pad_token_id,
            stopping_criteria=StoppingCriteriaList(
                [StopStrings(stops, self.encoder.tokenizer), _Over(exchange)]
            ),
        ).tolist()
        for choice in range(exchange.question.choices):  # which are alike
            text, num_tokens = self._answer_text(sampling), 0
            while num_tokens < len(token_ids) and not text.ended:
                text.add(token_ids[num_tokens])
                num_tokens += 1
            said, _ = text.take(last=True)
            piece = Piece(
                choice=choice,
                text=said,
                scores=[],
                num_tokens=num_tokens,
                finish_reason="stop" if text.ended else "length",
            )
            self._post.tell(exchange, piece)

    def _enter(self, exchange: Exchange) -> None:
        """Give a question its rows."""
        assert exchange.read is not None
        sampling, choices = exchange.question.sampling, range(exchange.question.choices)
        most_tokens = self._most_tokens(exchange)
        rows = [AnswerRow(exchange, choice, self._answer_text(sampling), most_tokens) for choice in choices]
        self._batch.enter(exchange.numbers, exchange.read, len(rows))
        exchange.read = None
        self._rows += rows

    def _answer_text(self, sampling: Sampling) -> AnswerText:
        stops = (*self.encoder.prompt_format.stop_strings, *sampling.stop)
        return AnswerText(self.encoder.tokenizer, stops, self._ends)

    def _most_tokens(self, exchange: Exchange) -> int:
        """Of an answer: the last one of it needs no position."""
        most = exchange.question.sampling.max_tokens
        return most if self._positions is None else min(most, self._positions - len(exchange.numbers) + 1)

    def _step(self) -> None:
        try:
            logits = self._batch.step([row.token_id for row in self._rows])
        except torch.OutOfMemoryError:
            log.exception("the longest of %d answers ends, as memory does not suffice", len(self._rows))
            longest = max(self._rows, key=lambda row: row.length).exchange
            self._post.tell(longest, EngineError("there is no memory to go on with so long an answer"))
            return
        for row, row_logits, best, likeliest in zip(
            self._rows, logits, *(numbers.tolist() for numbers in logits.max(1)), strict=True
        ):
            go_on = partial(self._go_on, row, row_logits, best, likeliest)
            self._post.attempt(go_on, [row.exchange], _FAILED)

    def _go_on(self, row: AnswerRow, logits: Tensor, best: float, likeliest: int) -> None:
        if not isfinite(best):  # the largest of numbers of which one is NaN is NaN
            raise FloatingPointError(f"the largest logit is {best}: the model's numbers overflow")
        piece = row.go_on(logits, likeliest)
        if piece is not None:
            self._post.tell(row.exchange, piece)

    def _leave(self) -> None:
        """Those who have ended, or whom nobody listens to, leave the batch."""
        staying = [
            index
            for index, row in enumerate(self._rows)
            if row.finish_reason is None and not row.exchange.gone
        ]
        if len(staying) == len(self._rows):
            return
        for index, row in enumerate(self._rows):
            if row.finish_reason is not None and row.choice == 0:
                with suppress(torch.OutOfMemoryError):  # it is read again then
                    self._batch.remember(index)
        kept = [self._rows[index] for index in self._batch.keep(staying)]
        self._give_room(len(self._rows) - len(kept))
        self._rows = kept


def _positions(config: PretrainedConfig) -> int | None:
    """How many tokens the model can have; None where positions are turned by angles, of which there are always more."""
    has_angles = bool(getattr(config, "rope_parameters", None))
    return None if has_angles else getattr(config, "max_position_embeddings", None)


def _ends(language: PreTrainedModel) -> frozenset[int]:
    """The tokens with which an answer ends. What else the model's own settings ask for is said to be left out."""
    settings = language.generation_config
    others = unheeded(language, {}) | ({"suppress_tokens"} if settings.suppress_tokens else set())
    if others:
        log.warning(
            "the model's generation_config sets %s; answers are written without", ", ".join(sorted(others))
        )
    ends = settings.eos_token_id
    return frozenset(ends if isinstance(ends, list) else {ends} - {None})
