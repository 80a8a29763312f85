"""From tokens to the text that may be shown: whole characters, and nothing that may yet become a stop string."""

from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache

from sparkles.data.encoding import Tokenizer

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers spell for bytes that are no whole character yet."""


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """A token of an answer, with the logarithms of its probability and of those of the likeliest in its place."""

    text: str
    log_prob: float
    likeliest: tuple[tuple[str, float], ...] = ()


class AnswerText:
    """The text of one answer, which grows token by token.

    All that `take` gave, put together, is what decoding all tokens at once gives: up to the first of `stops`, without
    special tokens and without white space at either end.

    Args:
        ends: token ids that end it besides the tokenizer's own.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], ends: Container[int] = ()) -> None:
        self.ended = False
        """A stop string or an end token has come."""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ends = ends
        self._text = ""
        self._shown = 0  # characters of it
        self._scores: deque[tuple[int, TokenScore]] = deque()  # not yet shown, with their places in the text
        # What a token adds depends on those in front of it, but on few: _ids[_context:] are decoded again with each
        # new one. Those behind _ids[_spelled] are bytes of a character that is not whole yet.
        self._ids: list[int] = []
        self._context = self._spelled = 0
        self._context_text = ""  # of _ids[_context:_spelled]

    def spell(self, token_id: int) -> str:
        """What this token would add."""
        return self._decode([*self._ids[self._context :], token_id])[len(self._context_text) :]

    def add(self, token_id: int, score: TokenScore | None = None) -> None:
        """Go on with the next token."""
        if score is not None:
            self._scores.append((len(self._text), score))
        added = self.spell(token_id)
        is_end = token_id in self._ends or token_id == self._tokenizer.eos_token_id
        if is_end or (not added and self._tokenizer.decode([token_id]) in self._stops):
            self.ended = True
            return
        self._ids.append(token_id)
        if not added.endswith(_INCOMPLETE):
            self._text += added
            self._context, self._spelled = self._spelled, len(self._ids)
            self._context_text = self._decode(self._ids[self._context :])
            self._cut()

    def take(self, *, last: bool = False) -> tuple[str, list[TokenScore]]:
        """The text that is new and certain, and its tokens; with `last` all that is left."""
        if last and not self.ended and self._spelled < len(self._ids):
            self._text += self._decode(self._ids[self._context :])[len(self._context_text) :]
            self._cut()
        certain = self._text if last or self.ended else self._text[: len(self._text) - self._held_back()]
        certain = certain.rstrip()
        start = max(self._shown, len(certain) - len(certain.lstrip()))
        self._shown = max(start, len(certain))
        scores = []
        while self._scores and self._scores[0][0] < self._shown:
            scores.append(self._scores.popleft()[1])
        return certain[start:], scores

    def _decode(self, token_ids: list[int]) -> str:
        return _spelled(self._tokenizer, tuple(token_ids))  # type: ignore[arg-type]  # every object has a hash

    def _cut(self) -> None:
        places = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if places:
            self._text = self._text[: min(places)]
            self.ended = True

    def _held_back(self) -> int:
        """Characters at the end that are the beginning of a stop string."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, len(stop))
                if self._text.endswith(stop[:length])
            ),
            default=0,
        )


@lru_cache(maxsize=2**16)
def _spelled(tokenizer: Tokenizer, token_ids: tuple[int, ...]) -> str:
    """Of few tokens, most of them pairs that have been spelled before: tokenizers take longer than all else here."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True)
