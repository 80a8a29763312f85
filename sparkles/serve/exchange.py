"""A question on its way through the engine: who asked it, its answers as they are written, and their way back."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from sparkles.serve.answer_text import AnswerText, TokenScore
from sparkles.serve.question import SMALLEST_TEMPERATURE, EngineError, FinishReason, Piece, Question

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Exchange:
    """A question, and the way back to who asked it."""

    question: Question
    loop: asyncio.AbstractEventLoop
    deadline: float
    numbers: list[int]
    """Of the prompt, as `RunningBatch` has it."""
    pictures: dict[int, Tensor]
    """Their pixels, by the numbers that they have there."""
    read: Tensor | None = None
    """What `PromptReader` made of the prompt, from then on until it enters the batch."""
    news: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False
    """Nobody waits for the answer any more."""

    @property
    def is_over(self) -> bool:
        """No more of the answer is to be written."""
        return self.gone or time.monotonic() > self.deadline


class AnswerRow:
    """One answer that is being written."""

    def __init__(self, exchange: Exchange, choice: int, text: AnswerText, most_tokens: int) -> None:
        self.exchange = exchange
        self.sampling = exchange.question.sampling
        self.choice = choice
        self.text = text
        self.token_id = exchange.numbers[-1]  # the newest
        self.num_tokens = 0
        self.most_tokens = most_tokens
        self.finish_reason: FinishReason | None = None
        self._generator = torch.Generator()
        if self.sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(self.sampling.seed + choice)

    @property
    def length(self) -> int:
        """Of prompt and answer, in tokens."""
        return len(self.exchange.numbers) + self.num_tokens

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
        elif self.num_tokens == self.most_tokens or self.exchange.is_over:
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


class Post:
    """Takes one thread's news to those who wait for them, waking each event loop once for all that is new."""

    def __init__(self) -> None:
        self._news: dict[asyncio.AbstractEventLoop, list[tuple[Exchange, Piece | Exception]]] = defaultdict(
            list
        )

    def tell(self, exchange: Exchange, news: Piece | Exception) -> None:
        exchange.gone = exchange.gone or isinstance(news, Exception)
        self._news[exchange.loop].append((exchange, news))

    def deliver(self) -> None:
        while self._news:
            loop, news = self._news.popitem()
            try:
                loop.call_soon_threadsafe(_hand_over, news)
            except RuntimeError:  # the loop is closed
                for exchange, _ in news:
                    exchange.gone = True

    def attempt(self, task: Callable[[], object], exchanges: Sequence[Exchange], failure: str) -> bool:
        """Do it; if it fails, those whom it was for get no answer, and the others go on. Whether it succeeded."""
        try:
            task()
            return True
        except Exception:  # whatever the model raises, from a full memory to a bug
            log.exception("%d answers failed", len(exchanges))
            for exchange in exchanges:
                self.tell(exchange, EngineError(failure))
            return False


def _hand_over(news: Sequence[tuple[Exchange, Piece | Exception]]) -> None:
    for exchange, piece in news:
        exchange.news.put_nowait(piece)
