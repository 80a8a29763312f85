"""One model, many conversations: requests join the running batch and leave it between two of its steps.

    engine = Engine(model=model, encoder=encoder, transform=transform)
    async for piece in engine.answer(question):
        print(piece.text, end="")

One thread encodes pictures, another computes answers; whoever asks does so from an event loop, of which there may be
several. Up to the rounding of sums, an answer does not depend on what else is in the batch: each draws from a generator
of its own.
"""

import asyncio
import logging
import queue
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from threading import BoundedSemaphore, Lock, Thread
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TopPLogitsWarper

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder
from sparkles.data.images import ImageTransform
from sparkles.eval.choosing import StopStrings
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.serve.answer_text import AnswerText, TokenScore
from sparkles.serve.seen_pictures import SeenPictures
from sparkles.types import IMAGE_TOKEN_ID, InputError

FinishReason = Literal["stop", "length", "content_filter"]
SMALLEST_TEMPERATURE = 0.01
"""Below, the likeliest token is taken."""

_PICTURES_KEPT = 1_024
_SHARE_TO_JOIN = 1 / 8
"""Of the rows: so many prompts wait for each other before they are read."""
_SECONDS_FOR_COMPANY = 0.05

log = logging.getLogger(__name__)


class FullError(RuntimeError):
    """All places are taken, those to wait in too."""


class LateError(RuntimeError):
    """The time for an answer was over before its first token."""


class EngineError(RuntimeError):
    """The model failed while it wrote this answer (the cause is in the log), or will write no more."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when an answer ends.

    Raises:
        InputError: beams are to be drawn, or to tell the probabilities of their tokens.
    """

    max_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    """Of the first choice, counted up for the others; None draws one."""
    stop: tuple[str, ...] = ()
    """Besides those of the prompt format."""
    top_log_probs: int | None = None
    """How many of the likeliest tokens to tell beside each; None tells no probabilities."""
    beams: int = 1
    """More search for the likeliest answer rather than token, which is then known at its end only."""

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise InputError(f"beams must be at least 1, got {self.beams}")
        if self.beams > 1 and (self.temperature >= SMALLEST_TEMPERATURE or self.top_log_probs is not None):
            raise InputError(
                f"{self.beams} beams are not drawn and tell no probabilities; set temperature=0 and "
                "top_log_probs=None, or beams=1"
            )


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt as the model reads it."""

    encoded: Encoded
    pixel_values: Sequence[Tensor]
    """float32[3, H, W] of each of `encoded.images`."""
    sampling: Sampling
    choices: int = 1
    """Answers to it, each a row of the batch."""
    in_pieces: bool = True
    """Tell each answer as it comes; else whole, at its end, which costs the server less."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one of the answers goes on with."""

    choice: int
    text: str
    scores: list[TokenScore]
    num_tokens: int
    """Of the answer so far."""
    finish_reason: FinishReason | None = None
    """Set in the last piece of a choice."""


@dataclass(eq=False)
class _Exchange:
    """A question, and the way back to who asked it."""

    question: Question
    loop: asyncio.AbstractEventLoop
    deadline: float
    numbers: list[int]
    """Of the prompt, as `RunningBatch` has it."""
    pictures: dict[int, Tensor]
    """Their pixels, by the numbers that they have there."""
    features: dict[int, Tensor] | None = None
    """Likewise, once the pictures have been looked at."""
    arrived: float = field(default_factory=time.monotonic)
    news: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False
    """Nobody waits for the answer any more."""

    @property
    def is_over(self) -> bool:
        """No more of the answer is to be written."""
        return self.gone or time.monotonic() > self.deadline


class _Over(StoppingCriteria):
    """Ends the search for an answer that takes too long, or that nobody waits for."""

    def __init__(self, exchange: _Exchange) -> None:
        self.exchange = exchange

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """int64[beams, S] -> bool[beams]"""
        return torch.full(input_ids.shape[:1], self.exchange.is_over, device=input_ids.device)


class _Row:
    """One answer that is being written."""

    def __init__(self, exchange: _Exchange, choice: int, text: AnswerText) -> None:
        self.exchange = exchange
        self.sampling = exchange.question.sampling
        self.choice = choice
        self.text = text
        self.token_id = 0  # the newest
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._generator = torch.Generator()
        if self.sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.sampling.seed + choice)

    def go_on(self, logits: Tensor, likeliest: int) -> Piece | None:
        """Choose the next token by float32[V]; what may be shown of it.

        Args:
            likeliest: token id of the largest logit.
        """
        self.token_id = likeliest
        if self.sampling.temperature >= SMALLEST_TEMPERATURE:
            self.token_id = self._draw(logits)
        score = None if self.sampling.top_log_probs is None else self._score(logits)
        self.text.add(self.token_id, score)
        self.num_tokens += 1
        if self.text.ended:
            self.finish_reason = "stop"
        elif self.num_tokens == self.sampling.max_tokens or self.exchange.is_over:
            self.finish_reason = "length"
        if self.finish_reason is None and not self.exchange.question.in_pieces:
            return None
        text, scores = self.text.take(last=self.finish_reason is not None)
        if not text and self.finish_reason is None:
            return None
        return Piece(
            choice=self.choice,
            text=text,
            scores=scores,
            num_tokens=self.num_tokens,
            finish_reason=self.finish_reason,
        )

    def _draw(self, logits: Tensor) -> int:
        scores = logits / self.sampling.temperature
        if self.sampling.top_p < 1:
            scores = TopPLogitsWarper(self.sampling.top_p)(None, scores[None])[0]
        # On the CPU, so that a seed draws the same on every device.
        return int(torch.multinomial(scores.softmax(0).cpu(), 1, generator=self._generator))

    def _score(self, logits: Tensor) -> TokenScore:
        log_probs = logits.log_softmax(0)
        likeliest = log_probs.topk(self.sampling.top_log_probs or 0)
        return TokenScore(
            text=self.text.spell(self.token_id),
            log_prob=float(log_probs[self.token_id]),
            likeliest=tuple(
                (self.text.spell(token_id), value)
                for value, token_id in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
            ),
        )


class Engine:
    """Answers questions, many at a time.

    Args:
        encoder: of prompts; whoever asks encodes with it.
        transform: of pictures; whoever asks applies it.
        max_batch_size: answers that are written at the same time.
        max_waiting: requests that may wait for one of these places.
        remembered_bytes: of what the model has read, kept for the next turns of conversations.
        seconds: for an answer. What is written then ends as if it had reached its last token.
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
        self.encoder = encoder
        self.transform = transform
        self.max_batch_size = max_batch_size
        self.seconds = seconds
        self._places = BoundedSemaphore(max_batch_size + max_waiting)
        self._door = Lock()
        self._closed = False
        self._to_look_at: queue.SimpleQueue[_Exchange | None] = queue.SimpleQueue()
        self._arrivals: queue.SimpleQueue[_Exchange | None] = queue.SimpleQueue()
        self._waiting: deque[_Exchange] = deque()
        self._closing = False
        self._rows: list[_Row] = []
        self._pictures = SeenPictures(model, most=_PICTURES_KEPT)
        self._joining: dict[int, Tensor] = {}  # features of their pictures
        self._batch = model.running_batch(
            lambda numbers: torch.stack([self._joining[number] for number in numbers]),
            remembered_bytes=remembered_bytes,
        )
        self._news: dict[asyncio.AbstractEventLoop, list[tuple[_Exchange, Piece | Exception]]] = defaultdict(
            list
        )
        self._threads = [
            Thread(target=task, name=name, daemon=True)
            for task, name in ((self._look, "pictures"), (self._work, "engine"))
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
            InputError: more choices than rows.
            LateError: the time was over before the first token.
            EngineError: the model failed.
        """
        if question.choices > self.max_batch_size:
            raise InputError(
                f"{question.choices} choices, but max_batch_size={self.max_batch_size}; ask for fewer"
            )
        exchange = self._exchange(question)
        with self._door:
            if self._closed or not all(thread.is_alive() for thread in self._threads):
                raise EngineError("the engine is closed")
            self._to_look_at.put(exchange)
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

    def _exchange(self, question: Question) -> _Exchange:
        encoded = question.encoded
        numbers = [self._pictures.number(pixels) for pixels in question.pixel_values]
        slots = iter([number for number in numbers for _ in range(self.encoder.num_query_tokens)])
        ids = [next(slots) if token_id == IMAGE_TOKEN_ID else token_id for token_id in encoded.input_ids]
        return _Exchange(
            question=question,
            loop=asyncio.get_running_loop(),
            deadline=time.monotonic() + self.seconds,
            numbers=ids[encoded.visible],
            pictures=dict(zip(numbers, question.pixel_values, strict=True)),
        )

    def close(self) -> None:
        """Answer what was asked so far, then end."""
        with self._door:
            self._closed = True
            self._to_look_at.put(None)  # behind everyone
        for thread in self._threads:
            thread.join()

    @torch.inference_mode()
    def _look(self) -> None:
        """Encode pictures, those of all who have arrived together, and let these in."""
        is_open = True
        while is_open:
            arrived = [self._to_look_at.get()]
            with suppress(queue.Empty):
                while arrived[-1] is not None:
                    arrived.append(self._to_look_at.get(block=False))
            is_open = arrived[-1] is not None
            exchanges = [one for one in arrived if one is not None and not one.gone]
            try:
                found = self._pictures.look(
                    {number: pixels for one in exchanges for number, pixels in one.pictures.items()}
                )
                for one in exchanges:
                    one.features = {number: found[number] for number in one.pictures}
            except Exception:  # whatever the model raises
                log.exception("the pictures of %d questions could not be looked at", len(exchanges))
            for one in exchanges:
                self._arrivals.put(one)
        self._arrivals.put(None)

    @torch.inference_mode()
    def _work(self) -> None:
        while self._gather():
            joining = self._next_to_join()
            for searching in [exchange for exchange in joining if exchange.question.sampling.beams > 1]:
                joining.remove(searching)
                self._attempt(self._search, [searching])
            if joining:
                self._attempt(self._join, joining)
                self._leave()
            if self._rows:
                self._attempt(self._step, [row.exchange for row in self._rows])
                self._leave()
            self._deliver()

    def _attempt(self, task: Callable[[Sequence[_Exchange]], None], exchanges: Sequence[_Exchange]) -> None:
        """Do it; if it fails, those whom it was for get no answer, and the others go on."""
        try:
            task(exchanges)
        except Exception:  # whatever the model raises, from a full memory to a bug
            log.exception("%d answers failed", len(exchanges))
            for exchange in exchanges:
                self._tell(exchange, EngineError("the model failed to answer"))

    def _gather(self) -> bool:
        """Take in what has arrived, waiting for it if there is nothing else to do; whether there is work."""
        block = not (self._rows or self._waiting)
        with suppress(queue.Empty):
            while not self._closing:
                arrival = self._arrivals.get(block=block)
                block = False
                if arrival is None:
                    self._closing = True
                elif arrival.features is None:
                    self._tell(arrival, EngineError("the model failed to look at the pictures"))
                else:
                    self._waiting.append(arrival)
        return bool(self._rows or self._waiting or not self._closing)

    def _next_to_join(self) -> list[_Exchange]:
        """Those for whom there is room now; whoever is late or gone waits no longer."""
        now = time.monotonic()
        for exchange in self._waiting:
            if now > exchange.deadline:
                self._tell(exchange, LateError(f"no place for the answer within {self.seconds:g} seconds"))
        self._waiting = deque(exchange for exchange in self._waiting if not exchange.gone)
        room = self.max_batch_size - len(self._rows)
        if self._waits_for_company(now):
            return []
        joining = []
        while self._waiting and self._waiting[0].question.choices <= room:
            joining.append(self._waiting.popleft())
            room -= joining[-1].question.choices
        return joining

    def _waits_for_company(self, now: float) -> bool:
        """Prompts are read together, since each reading makes all rows wait; but none is kept waiting for long."""
        enough = min(len(self._waiting) + 1, 1 + int(_SHARE_TO_JOIN * len(self._rows)))
        return (
            bool(self._waiting)
            and len(self._waiting) < enough
            and now - self._waiting[0].arrived < _SECONDS_FOR_COMPANY
        )

    def _search(self, exchanges: Sequence[_Exchange]) -> None:
        """Answer one question by beam search, while the rows of the batch wait."""
        [exchange] = exchanges
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
            max_new_tokens=sampling.max_tokens,
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
            self._tell(exchange, piece)

    def _join(self, exchanges: Sequence[_Exchange]) -> None:
        self._joining = {
            number: one for exchange in exchanges for number, one in (exchange.features or {}).items()
        }
        order, logits = self._batch.join(
            [exchange.numbers for exchange in exchanges],
            [exchange.question.choices for exchange in exchanges],
        )
        choices = [count() for _ in exchanges]
        rows = [
            _Row(
                exchanges[index],
                next(choices[index]),
                self._answer_text(exchanges[index].question.sampling),
            )
            for index in order
        ]
        self._rows += rows
        self._go_on(rows, logits)

    def _answer_text(self, sampling: Sampling) -> AnswerText:
        return AnswerText(self.encoder.tokenizer, (*self.encoder.prompt_format.stop_strings, *sampling.stop))

    def _step(self, _: Sequence[_Exchange]) -> None:
        self._go_on(self._rows, self._batch.step([row.token_id for row in self._rows]))

    def _go_on(self, rows: Sequence[_Row], logits: Tensor) -> None:
        for row, row_logits, likeliest in zip(rows, logits, logits.argmax(1).tolist(), strict=True):
            piece = row.go_on(row_logits, likeliest)
            if piece is not None:
                self._tell(row.exchange, piece)

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
                self._batch.remember(index)
        self._rows = [self._rows[index] for index in self._batch.keep(staying)]

    def _tell(self, exchange: _Exchange, news: Piece | Exception) -> None:
        exchange.gone = exchange.gone or isinstance(news, Exception)
        self._news[exchange.loop].append((exchange, news))

    def _deliver(self) -> None:
        """Wake each event loop once for all that is new."""
        while self._news:
            loop, news = self._news.popitem()
            try:
                loop.call_soon_threadsafe(_hand_over, news)
            except RuntimeError:  # the loop is closed
                for exchange, _ in news:
                    exchange.gone = True


def _hand_over(news: Sequence[tuple[_Exchange, Piece | Exception]]) -> None:
    for exchange, piece in news:
        exchange.news.put_nowait(piece)
