"""From samples and prompts to token ids with slots for image embeddings.

T tokens of one dialogue; Q query tokens, so each image fills Q slots in a row, all `IMAGE_TOKEN_ID`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple, Protocol, get_args

import rich.text

from sparkles.prompt_format import IMAGE_PLACEHOLDER, PromptFormat, check_tags, images_first
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID, Image, InputError, Message, Prompt, Sample, images_of

ImagePlacement = Literal["word", "sentence"]


class Tokenizer(Protocol):
    """What is needed of a tokenizer; every one of `transformers` has it."""

    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str: ...


class EncodingError(InputError):
    """A dialogue that cannot be brought within the length limit, or a tokenizer that lacks a token."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One dialogue as the model reads it."""

    input_ids: list[int]
    """int[T], `IMAGE_TOKEN_ID` in image slots."""
    labels: list[int] | None
    """int[T], `IGNORE_INDEX` where there is no loss; None at inference."""
    loss_weights: list[float] | None = None
    """float[T], of the loss on each label; None where all weigh the same."""
    images: tuple[Image, ...]
    """Those whose slots are in `input_ids`, in order: fewer than the dialogue's if turns were dropped."""
    dropped_turns: int = 0
    """Oldest turns left out to fit `max_length`."""
    dropped_tokens: int = 0
    """Tokens cut off to fit `max_length`: from the end of the answer, or anywhere with `Encoder.cut_anywhere`."""
    visible: slice = field(default_factory=lambda: slice(None))
    """What the model may look at: all, unless a cut fell inside an image, whose slots stay together here."""

    @property
    def hides_slots(self) -> bool:
        """Whether a cut fell inside an image."""
        return len(self.input_ids[self.visible]) < len(self.input_ids)


class Answered(NamedTuple):
    """A prompt, without and with its answer."""

    prompt: list[int]
    """int[T]"""
    whole: list[int]
    """int[T + S]"""


class Encoder:
    """Turns rendered text into token ids.

    The text is split at the image placeholders, white space beside a placeholder is dropped, and each segment
    is tokenised on its own: the ids then do not depend on how a tokenizer treats added tokens, and with
    sentencepiece they are the original's.

    Three switches follow the original, or the paper, where that is not what one would want:

    Args:
        num_query_tokens: Q.
        max_length: tokens of a dialogue with its image slots.
        max_prompt_length: tokens of a prompt at inference; None for `max_length`.
        cut_anywhere: too long a text loses its end in training, be that a question or half an image, and its front
            at inference, where the system message and the first image are (as the original); otherwise the end of
            the answer, then whole turns.
        unmask_prompt_end: labels begin one token before the end of the prompt as far as `max_length` lets it
            stand. The original takes that token for the space in front of the answer; if the prompt was cut, it is
            a word of the question or part of an image.
        system_in_training: training texts begin with the system message (as the paper says, not its code).

    And one is an experiment:

    Args:
        image_placement: "word" leaves images where the text refers to them; "sentence" puts those of a message in
            front of it, as other models have them.

    Raises:
        EncodingError: the tokenizer lacks the prompt format's BOS, or `image_placement` is neither.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        prompt_format: PromptFormat,
        num_query_tokens: int,
        max_length: int,
        max_prompt_length: int | None = None,
        cut_anywhere: bool = False,
        unmask_prompt_end: bool = False,
        system_in_training: bool = False,
        image_placement: ImagePlacement = "word",
    ) -> None:
        if image_placement not in get_args(ImagePlacement):
            raise EncodingError(
                f"image_placement={image_placement!r}, expected 'word' or 'sentence'; set data.image_placement"
            )
        if prompt_format.add_bos and tokenizer.bos_token_id is None:
            raise EncodingError(
                f"prompt format {prompt_format.name!r} starts with BOS but the tokenizer has none; "
                "set prompt_format.add_bos=false or use a tokenizer with a bos_token"
            )
        self.tokenizer = tokenizer
        self.prompt_format = prompt_format
        self.num_query_tokens = num_query_tokens
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length or max_length
        self.cut_anywhere = cut_anywhere
        self.unmask_prompt_end = unmask_prompt_end
        self.system_in_training = system_in_training
        self.image_placement = image_placement

    @property
    def pad_token_id(self) -> int:
        """The padding token, or the end of sequence where the tokenizer has none (as LLaMA's)."""
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return token_id
        raise EncodingError("the tokenizer has neither pad_token nor eos_token; set one of them")

    def encode_sample(self, sample: Sample, earlier_weights: Sequence[float] = ()) -> Encoded:
        """Prompt and answer, with labels from the first token that the answer adds.

        Too long a text loses the end of its answer. If the prompt alone is too long, its oldest turns go
        first, each whole and with its images; images are never cut.

        Args:
            earlier_weights: of the loss on each answer within the prompt, relative to the last answer's; none
                learns the last answer alone. What is learnt of an answer is what its own sample would have.

        Raises:
            EncodingError: the last turn's prompt alone exceeds `max_length`, or `earlier_weights` are given for
                another number of answers than the prompt has.
            PromptFormatError: tags and images do not match.
        """
        answer = self.prompt_format.render_answer(sample.answer)
        check_tags(answer, (), "answer")
        # Prompt and answer are tokenised jointly: where they meet, a token may hold the end of one and the start
        # of the other, and then it belongs to the answer.
        messages, earlier, (prompt_ids, input_ids) = self._fit(
            self._placed(sample.prompt.messages),
            system=self.system_in_training,
            answer=answer,
            earlier=bool(earlier_weights),
        )
        start = _common_prefix(prompt_ids, input_ids)
        if self.unmask_prompt_end:
            start = self._end_of_masked_prompt(messages)
        encoded = Encoded(
            input_ids=input_ids,
            labels=[IGNORE_INDEX] * start + input_ids[start:],
            images=images_of(messages),
            dropped_turns=_num_turns(sample.prompt.messages) - _num_turns(messages),
        )
        if earlier_weights:
            encoded = self._with_earlier_answers(encoded, earlier, earlier_weights)
        return self._cut(encoded, start=0, stop=min(len(input_ids), self.max_length))

    def encode_prompt(self, prompt: Prompt, *, system: bool = True) -> Encoded:
        """A prompt that waits for its answer; if it is too long, its oldest turns are left out.

        Raises:
            EncodingError: the last turn alone exceeds `max_prompt_length`.
            PromptFormatError: tags and images do not match.
        """
        messages, _, (input_ids, _) = self._fit(self._placed(prompt.messages), system=system)
        encoded = Encoded(
            input_ids=input_ids,
            labels=None,
            images=images_of(messages),
            dropped_turns=_num_turns(prompt.messages) - _num_turns(messages),
        )
        return self._cut(encoded, start=max(0, len(input_ids) - self.max_prompt_length), stop=len(input_ids))

    def describe(self, encoded: Encoded) -> rich.text.Text:
        """The tokens as text: bold green with loss, plain without, image slots counted in brackets."""
        description = rich.text.Text()
        labels = encoded.labels or [IGNORE_INDEX] * len(encoded.input_ids)
        pairs = zip(encoded.input_ids, labels, strict=True)
        for (is_image, has_loss), run in groupby(
            pairs, key=lambda pair: (pair[0] == IMAGE_TOKEN_ID, pair[1] != IGNORE_INDEX)
        ):
            token_ids = [token_id for token_id, _ in run]
            if is_image:
                description.append(f"[{len(token_ids)} image slots]", style="cyan")
            else:
                description.append(self.tokenizer.decode(token_ids), style="bold green" if has_loss else "")
        return description

    def _placed(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self.image_placement == "word":
            return messages
        return [
            replace(message, content=images_first(message.content)) if message.images else message
            for message in messages
        ]

    def _fit(
        self, messages: Sequence[Message], *, system: bool, answer: str = "", earlier: bool = False
    ) -> tuple[Sequence[Message], list[Answered], Answered]:
        """Drop oldest turns until the prompt is within its limit, and leaves a token to the answer if there is one.

        Returns:
            The messages left; with `earlier`, the ids of each answer among them; and those of `answer` behind all.
        """
        setting, limit = (
            ("max_length", self.max_length) if answer else ("max_prompt_length", self.max_prompt_length)
        )
        room = limit - bool(answer)
        while True:
            answers = [
                (
                    self._render(messages[:end], system),
                    self.prompt_format.render_answer(messages[end].content),
                )
                for end in (range(1, len(messages), 2) if earlier else ())
            ]
            text = self._render(messages, system)
            *earlier_ids, ids = self._tokenize([*answers, (text, answer)])
            if len(ids.prompt) <= room or self.cut_anywhere:
                return messages, earlier_ids, ids
            if len(messages) == 1:
                raise EncodingError(
                    f"the last turn alone needs {len(ids.prompt)} tokens ({len(messages[0].images)} images of "
                    f"{self.num_query_tokens} among them), but {setting}={limit} leaves {room} "
                    f"for the prompt; set {setting} to at least {limit + len(ids.prompt) - room}, "
                    f"or leave this dialogue out. Text: {text[:80]!r}"
                )
            messages = messages[2:]

    def _render(self, messages: Sequence[Message], system: bool) -> str:
        return self.prompt_format.render_prompt(messages, system=system)

    def _with_earlier_answers(
        self, encoded: Encoded, earlier: Sequence[Answered], weights: Sequence[float]
    ) -> Encoded:
        """Labels on the answers within the prompt too, as far as their turns were not dropped."""
        if len(weights) != len(earlier) + encoded.dropped_turns:
            raise EncodingError(
                f"loss weights {tuple(weights)} for the earlier answers of a prompt that has "
                f"{len(earlier) + encoded.dropped_turns}; "
                "earlier_turns of the subset must name one subset for each turn before its last"
            )
        assert encoded.labels is not None
        labels, loss_weights = list(encoded.labels), [1.0] * len(encoded.labels)
        for answer, weight in zip(earlier, weights[encoded.dropped_turns :], strict=True):
            # Where the end of the answer shares a token with the question behind it, that token is not learnt.
            start, stop = (_common_prefix(ids, encoded.input_ids) for ids in answer)
            if weight:
                labels[start:stop] = encoded.input_ids[start:stop]
                loss_weights[start:stop] = [weight] * (stop - start)
        return replace(encoded, labels=labels, loss_weights=loss_weights)

    def _end_of_masked_prompt(self, messages: Sequence[Message]) -> int:
        """How many tokens the original leaves without loss: see `unmask_prompt_end`."""
        space = self.prompt_format.answer_prefix
        [ids] = self._tokenize([(self._render(messages, self.system_in_training), space)])
        return min(len(ids.whole), self.max_length) - space.endswith(" ")

    def _cut(self, encoded: Encoded, *, start: int, stop: int) -> Encoded:
        """The tokens from `start` to `stop`, and invisible ones to complete an image that is cut at either end."""
        slots_before = encoded.input_ids[:start].count(IMAGE_TOKEN_ID)
        slots_until = encoded.input_ids[:stop].count(IMAGE_TOKEN_ID)
        before, behind = slots_before % self.num_query_tokens, -slots_until % self.num_query_tokens
        kept = slice(start - before, stop + behind)
        visible = slice(before, before + stop - start)
        labels, loss_weights = encoded.labels, encoded.loss_weights
        if labels is not None:
            labels = [IGNORE_INDEX] * before + labels[start:stop] + [IGNORE_INDEX] * behind
        if loss_weights is not None:
            loss_weights = [0.0] * before + loss_weights[start:stop] + [0.0] * behind
        return replace(
            encoded,
            input_ids=encoded.input_ids[kept],
            labels=labels,
            loss_weights=loss_weights,
            images=encoded.images[
                slots_before // self.num_query_tokens : (slots_until + behind) // self.num_query_tokens
            ],
            dropped_tokens=len(encoded.input_ids) - (stop - start),
            visible=visible,
        )

    def _tokenize(self, texts: Sequence[tuple[str, str]]) -> list[Answered]:
        """The ids of rendered prompts and their answers; `num_query_tokens` slots for each placeholder."""
        # Only the last segment differs between a prompt and the whole.
        segments = [(*_segments(prompt), answer) for prompt, answer in texts]
        # One call: what a tokenizer costs is mostly the calls.
        flat = [text for *shared, last, answer in segments for text in (*shared, last, last + answer)]
        ids = iter(self.tokenizer(flat, add_special_tokens=False)["input_ids"])
        begin: list[int] = []
        if self.prompt_format.add_bos and self.tokenizer.bos_token_id is not None:
            begin.append(self.tokenizer.bos_token_id)
        answered = []
        for *shared, _, _ in segments:
            start = list(begin)
            for _ in shared:
                start += [*next(ids), *[IMAGE_TOKEN_ID] * self.num_query_tokens]
            answered.append(Answered(start + next(ids), start + next(ids)))
        return answered


def _segments(text: str) -> list[str]:
    """Text between image placeholders, without the white space that touches one.

    >>> _segments("see <ImageHere> and <ImageHere>")
    ['see', 'and', '']
    """
    segments = text.split(IMAGE_PLACEHOLDER)
    segments = [segments[0], *(segment.lstrip() for segment in segments[1:])]
    return [*(segment.rstrip() for segment in segments[:-1]), segments[-1]]


def _common_prefix(first: list[int], second: list[int]) -> int:
    """How many leading elements agree.

    >>> _common_prefix([1, 2, 3], [1, 2, 9, 9])
    2
    """
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _num_turns(messages: Sequence[Message]) -> int:
    return sum(message.role == "user" for message in messages)
