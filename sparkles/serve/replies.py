"""From the pieces of an answer to what OpenAI's clients read, whole or in chunks."""

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace

from openai.types import CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionTokenLogprob,
    chat_completion,
    chat_completion_chunk,
)
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from sparkles.serve.answer_text import TokenScore
from sparkles.serve.question import Piece, Question


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """One piece for each choice, in order."""
    by_choice: dict[int, Piece] = {}
    for piece in pieces:
        if (earlier := by_choice.get(piece.choice)) is not None:
            text, scores = earlier.text + piece.text, [*earlier.scores, *piece.scores]
            piece = replace(piece, text=text, scores=scores)
        by_choice[piece.choice] = piece
    return [by_choice[choice] for choice in sorted(by_choice)]


class Reply:
    """What is the same in all parts of one reply.

    Args:
        model: who answers.
    """

    def __init__(self, question: Question, *, model: str) -> None:
        self._num_prompt_tokens = len(question.encoded.input_ids)
        self._has_scores = question.sampling.top_log_probs is not None
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model

    def whole(self, answers: Sequence[Piece]) -> ChatCompletion:
        """All choices, of each one piece."""
        choices = [
            chat_completion.Choice(
                index=answer.choice,
                message=ChatCompletionMessage(role="assistant", content=answer.text, refusal=None),
                logprobs=chat_completion.ChoiceLogprobs(content=_log_probs(answer.scores), refusal=None)
                if self._has_scores
                else None,
                finish_reason=answer.finish_reason or "stop",
            )
            for answer in answers
        ]
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=choices,
            usage=self._usage(sum(answer.num_tokens for answer in answers)),
        )

    def start(self, choice: int) -> ChatCompletionChunk:
        """The first chunk of a choice, which says who speaks."""
        delta = chat_completion_chunk.ChoiceDelta(role="assistant", content="")
        return self._chunk(
            [chat_completion_chunk.Choice(index=choice, delta=delta, logprobs=None, finish_reason=None)]
        )

    def part(self, piece: Piece) -> ChatCompletionChunk:
        """What one of the choices goes on with."""
        log_probs = chat_completion_chunk.ChoiceLogprobs(content=_log_probs(piece.scores), refusal=None)
        choice = chat_completion_chunk.Choice(
            index=piece.choice,
            delta=chat_completion_chunk.ChoiceDelta(content=piece.text)
            if piece.text
            else chat_completion_chunk.ChoiceDelta(),
            logprobs=log_probs if self._has_scores else None,
            finish_reason=piece.finish_reason,
        )
        return self._chunk([choice])

    def end(self, num_tokens: int) -> ChatCompletionChunk:
        """The chunk that tells the usage."""
        return self._chunk([], usage=self._usage(num_tokens))

    def _chunk(
        self, choices: list[chat_completion_chunk.Choice], usage: CompletionUsage | None = None
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
        )

    def _usage(self, num_tokens: int) -> CompletionUsage:
        return CompletionUsage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=num_tokens,
            total_tokens=self._num_prompt_tokens + num_tokens,
        )


def _log_probs(scores: Iterable[TokenScore]) -> list[ChatCompletionTokenLogprob]:
    return [
        ChatCompletionTokenLogprob(
            token=score.text,
            bytes=_bytes(score.text),
            logprob=score.log_prob,
            top_logprobs=[
                TopLogprob(token=text, bytes=_bytes(text), logprob=value) for text, value in score.likeliest
            ],
        )
        for score in scores
    ]


def _bytes(text: str) -> list[int] | None:
    """None for a token that is a part of a character only."""
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
