"""One model, many conversations: requests join the running batch and leave it between two of its steps.

    engine = Engine(model=model, encoder=encoder, transform=transform)
    async for piece in engine.answer(question):
        print(piece.text, end="")

One thread computes; whoever asks does so from an event loop, of which there may be several. Up to the rounding of sums,
an answer does not depend on what else is in the batch: each draws from a generator of its own.
"""

import asyncio
import logging
import queue
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Thread
from typing import Literal

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder
from sparkles.data.images import ImageTransform
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.serve.answer_text import AnswerText, TokenScore
from sparkles.serve.running_batch import RunningBatch
from sparkles.types import InputError

FinishReason = Literal["stop", "length", "content_filter"]
SMALLEST_TEMPERATURE = 0.01
"""Below, the likeliest token is taken."""

log = logging.getLogger(__name__)


class FullError(RuntimeError):
    """All places are taken, those to wait in too."""


class LateError(RuntimeError):
    """The time for an answer was over before its first token."""


class EngineError(RuntimeError):
    """The model failed while it wrote this answer (the cause is in the log), or will write no more."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen, and when an answer ends."""

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


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt as the model reads it."""

    encoded: Encoded
    pixel_values: Sequence[Tensor]
    """float32[3, H, W] of each of `encoded.images`."""
    sampling: Sampling
    choices: int = 1
    """Answers to it, each a row of the batch."""


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
    news: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False
    """Nobody waits for the answer any more."""


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
        elif self.num_tokens == self.sampling.max_tokens or time.monotonic() > self.exchange.deadline:
            self.finish_reason = "length"
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
        self._arrivals: queue.SimpleQueue[_Exchange | None] = queue.SimpleQueue()
        self._waiting: deque[_Exchange] = deque()
        self._closing = False
        self._rows: list[_Row] = []
        self._batch = RunningBatch(model.language)
        self._news: dict[asyncio.AbstractEventLoop, list[tuple[_Exchange, Piece | Exception]]] = defaultdict(
            list
        )
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

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
        if not self._thread.is_alive():
            raise EngineError("the engine is closed")
        exchange = _Exchange(question, asyncio.get_running_loop(), time.monotonic() + self.seconds)
        self._arrivals.put(exchange)
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

    def close(self) -> None:
        """Answer what was asked so far, then end."""
        self._arrivals.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _work(self) -> None:
        while self._gather():
            joining = self._next_to_join()
            if joining:
                self._attempt(self._join, joining)
                self._leave()
            if self._rows:
                self._attempt(self._step, [row.exchange for row in self._rows])
                self._leave()
            self._deliver()
        with suppress(queue.Empty):
            while (late := self._arrivals.get(block=False)) is not None:
                self._tell(late, EngineError("the engine is closed"))
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
                if arrival is None:
                    self._closing = True
                else:
                    self._waiting.append(arrival)
                    block = False
        return bool(self._rows or self._waiting or not self._closing)

    def _next_to_join(self) -> list[_Exchange]:
        """Those for whom there is room now; whoever is late or gone waits no longer."""
        now = time.monotonic()
        for exchange in self._waiting:
            if now > exchange.deadline:
                self._tell(exchange, LateError(f"no place for the answer within {self.seconds:g} seconds"))
        self._waiting = deque(exchange for exchange in self._waiting if not exchange.gone)
        room = self.max_batch_size - len(self._rows)
        joining = []
        while self._waiting and self._waiting[0].question.choices <= room:
            joining.append(self._waiting.popleft())
            room -= joining[-1].question.choices
        return joining

    def _join(self, exchanges: Sequence[_Exchange]) -> None:
        questions = [exchange.question for exchange in exchanges]
        batch = pad_batch(
            [question.encoded for question in questions],
            [pixels for question in questions for pixels in question.pixel_values],
            pad_token_id=self.encoder.pad_token_id,
            side="left",
        )
        batch = {name: tensor.to(self.model.language.device) for name, tensor in batch.items()}
        embeds = self.model.embed(batch["input_ids"], batch["pixel_values"])
        copies = [question.choices for question in questions]
        rows = [
            _Row(exchange, choice, self._answer_text(exchange.question.sampling))
            for exchange in exchanges
            for choice in range(exchange.question.choices)
        ]
        logits = self._batch.join(embeds, batch["attention_mask"], copies)
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
        if staying:
            self._rows = [self._rows[index] for index in self._batch.keep(staying)]
        else:
            self._rows, self._batch = [], RunningBatch(self.model.language)

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
