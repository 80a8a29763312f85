"""Random dialogues as long as SparklesDialogue's, and the prompts of the benchmarks, without either at hand.

Of their lengths the original's README and files tell the means; what is assumed besides says so.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparkles.data.encoding import Encoded
from sparkles.prompt_format import MINIGPT4
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID, Image

MOST_TOKENS, MOST_NEW_TOKENS = 1_024, 1_000
"""Of a dialogue in training, and of an answer, as in the original."""
_TOKENS_PER_WORD = 4 / 3  # the rule of thumb for English: LLaMA's tokenizer was not at hand to count
_TOKENS_PER_MENTION = 18  # of "IMAGE#2331159<Img></Img>" besides the image: LLaMA has a token for each digit
_TOKENS_OF_ROLES = 11  # of "###Human: " and "###Assistant:"
_DEVIATION = 0.25  # of a text's length, as a part of its mean; assumed, since means alone are published
_FIRST_TEXT_ID = 3  # those before are the unknown token, and those that begin and end a text


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How long the messages of a data set are on average, and how many images it shows."""

    question_words: float
    answer_words: float
    first_images: tuple[int, ...]
    """Of first turns, equally often; a second turn has one more."""


CC = Texts(question_words=26.3, answer_words=184.6, first_images=(1, 2, 3))
VG = Texts(question_words=31.5, answer_words=210.5, first_images=(2, 3))
"""Words: README of the original, Statistics. Images: its files, one for each number, are drawn equally often."""
BISON = replace(VG, question_words=39 + 11, first_images=(2,))
"""Our prompt and a caption of COCO. Answers are taken to be as long as those that were learnt, here and below."""
NLVR2 = replace(VG, question_words=39 + 13.7, first_images=(2,))
"""Our prompt and a statement: 13.7 words are the mean of the first 200 of the public test split."""
SPARKLES_EVAL = VG


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Tokens of a question, without its images' embeddings, and of its answer."""

    question: int
    images: int
    answer: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, and how many tokens its answer has."""

    prompt: Encoded
    length: int


Item = list[Question]
"""Of a benchmark: its turns, each prompt of which holds those before and answers of their lengths."""


class Writer:
    """Draws dialogues; the same ones for the same arguments and calls.

    Args:
        num_query_tokens: slots of an image.
        vocabulary: tokens that the language model knows.
        shortened_to: part of their length that texts keep.
    """

    def __init__(self, *, num_query_tokens: int, vocabulary: int, shortened_to: float = 1.0) -> None:
        self.num_query_tokens = num_query_tokens
        self._ids = range(_FIRST_TEXT_ID, vocabulary)
        self._shortened_to = shortened_to
        self._random = random.Random(0)
        self._system = self._text(self._tokens(len(MINIGPT4.system_message.split())))

    def sample(self) -> Encoded:
        """A sample of the paper's mixture: CC and VG equally often, first turns twice as often as second ones."""
        turns = self._dialogue(self._random.choice((CC, VG)))
        if self._random.random() < 2 / 3:
            return self._encode(turns[:1], learnt=(1.0,))
        return self._encode(turns, learnt=(0.0, 1.0))

    def whole(self) -> Encoded:
        """A dialogue with a loss on both answers, that on the first twice."""
        return self._encode(self._dialogue(self._random.choice((CC, VG))), learnt=(2.0, 1.0))

    def benchmarks(self, items: int) -> list[list[Item]]:
        """So many items of BISON, of NLVR2 and of SparklesEval, which alone has two turns."""
        return [
            [self._item(self._dialogue(texts)[:turns]) for _ in range(items)]
            for texts, turns in ((BISON, 1), (NLVR2, 1), (SPARKLES_EVAL, 2))
        ]

    def _dialogue(self, texts: Texts) -> list[Turn]:
        """Two turns."""
        return [
            Turn(
                question=self._about(texts.question_words) + _TOKENS_OF_ROLES + images * _TOKENS_PER_MENTION,
                images=images,
                answer=min(self._about(texts.answer_words), MOST_NEW_TOKENS),
            )
            for images in (self._random.choice(texts.first_images), 1)
        ]

    def _item(self, turns: Sequence[Turn]) -> Item:
        whole = self._encode(turns, learnt=(0.0,) * len(turns), start=self._system)
        item: Item = []
        end, shown = 1 + len(self._system), 0
        for turn in turns:
            end += turn.question + turn.images * self.num_query_tokens
            shown += turn.images
            prompt = Encoded(input_ids=whole.input_ids[:end], labels=None, images=whole.images[:shown])
            item.append(Question(prompt=prompt, length=turn.answer))
            end += turn.answer
        return item

    def _encode(
        self, turns: Sequence[Turn], *, learnt: Sequence[float], start: Sequence[int] = ()
    ) -> Encoded:
        """Token ids with the images' slots among each question, and labels on the answers whose weight is not 0."""
        ids = [1, *start]
        labels, weights = [IGNORE_INDEX] * len(ids), [0.0] * len(ids)
        images: list[Image] = []
        for turn, weight in zip(turns, learnt, strict=True):
            question = self._text(turn.question)
            for number in range(turn.images):
                place = (number + 1) * turn.question // (turn.images + 1) + number * self.num_query_tokens
                question[place:place] = [IMAGE_TOKEN_ID] * self.num_query_tokens
                images.append(Image(image_id=len(images)))
            answer = self._text(min(turn.answer, MOST_TOKENS - len(ids) - len(question)))
            ids += question + answer
            labels += [IGNORE_INDEX] * len(question) + (answer if weight else [IGNORE_INDEX] * len(answer))
            weights += [weight] * (len(question) + len(answer))
        return Encoded(input_ids=ids, labels=labels, loss_weights=weights, images=tuple(images))

    def _about(self, words: float) -> int:
        return self._tokens(words * max(self._random.gauss(1.0, _DEVIATION), 0.2))

    def _tokens(self, words: float) -> int:
        return max(4, round(self._shortened_to * _TOKENS_PER_WORD * words))

    def _text(self, length: int) -> list[int]:
        return self._random.choices(self._ids, k=max(length, 0))
