"""The values that every part of Sparkles passes around: frozen dataclasses and the three seams.

`dialogue.messages` alternate user, assistant, user, ...; each user message carries the images that its
text refers to, in the order of the tags. A `Prompt` ends with a user message and waits for an answer; a
`Sample` is a prompt together with the answer to learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

IMAGE_TOKEN_ID = -200
"""Stands in `input_ids` wherever an image embedding is spliced in. Negative, so no text can produce it."""

IGNORE_INDEX = -100
"""Stands in `labels` wherever there is no loss (the convention of torch and transformers)."""

Role = Literal["user", "assistant"]


class InputError(ValueError):
    """A mistake in the user's files or settings.

    The message says what, where, what was expected and what to do; commands end with it, without a traceback.
    """


@dataclass(frozen=True, kw_only=True)
class Image:
    """One picture of a dialogue: its id as the text spells it, and where its pixels are."""

    image_id: int | str
    caption: str = ""
    """Ground-truth description; what a text-only model or a judge reads in place of the pixels."""
    path: Path | None = None
    box: tuple[int, int, int, int] | None = None
    """Crop (left, upper, right, lower) in pixels of the file; None for the whole picture."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """What one side said. `content` holds one `<Img><ImageHere></Img>` tag for each of `images`, in order."""

    role: Role
    content: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A whole conversation of one or more turns (user, assistant, user, assistant, ...)."""

    messages: tuple[Message, ...]
    dialogue_id: str = ""

    @property
    def images(self) -> tuple[Image, ...]:
        return images_of(self.messages)

    @property
    def num_turns(self) -> int:
        return sum(message.role == "assistant" for message in self.messages)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Messages that end with the user's: what a `Responder` answers."""

    messages: tuple[Message, ...]
    item_id: str = ""
    """Whose question it is: where answers are sampled, each item gets a draw of its own."""
    try_number: int = 1
    """Another number asks for another draw of the answer."""
    options: tuple[str, ...] = ()
    """Choose among these by how likely each is as the answer; without any, answer freely."""

    @property
    def images(self) -> tuple[Image, ...]:
        return images_of(self.messages)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training example: loss is on `answer` only (paper, section 3.2)."""

    prompt: Prompt
    answer: str

    @property
    def images(self) -> tuple[Image, ...]:
        return self.prompt.images


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a responder said to one prompt."""

    text: str
    seconds: float = 0.0
    """Wall time of the batch divided by its size."""
    truncated: bool = False
    """The answer hit the limit on new tokens before it ended."""
    refused: bool = False
    """The model or its provider would not answer, or broke the answer off."""
    failure: str = ""
    """Why there is no answer, where the responder could not be asked: `text` is then none. Another run asks again."""
    log_probs: Mapping[str, float] = field(default_factory=dict)
    """Of each of the prompt's options."""


CRITERIA = ("C1", "C2", "C3")
"""Image understanding and reasoning; cross-image and cross-turn coherence; relevance and completeness."""

CriterionScores = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judge's ratings, 1 to 10, of both answers of a two-turn dialogue; None where it could not rate."""

    scores: Mapping[str, CriterionScores] | None
    """{"A1": {"C1": 8.0, "C2": ..., "C3": ...}, "A2": {...}}, or None when unscored."""
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    judge: str = ""
    """Name and version of the judge."""
    unscored_reason: str = ""
    failed: bool = False
    """The judge could not be asked. Another run asks again."""
    members: Mapping[str, Mapping[str, CriterionScores]] = field(default_factory=dict)
    """The scores that each judge of an ensemble gave, by its name."""


@runtime_checkable
class Responder(Protocol):
    """Answers prompts: SparklesChat, an endpoint, or a scripted stand-in."""

    name: str

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer each prompt, in order."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Rates a finished two-turn dialogue whose images carry ground-truth captions."""

    name: str

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        """Rate each dialogue, in order."""
        ...


def images_of(messages: Sequence[Message]) -> tuple[Image, ...]:
    """Every image of the messages, in the order in which their tags stand."""
    return tuple(image for message in messages for image in message.images)
