"""How the items of a benchmark are asked: under a control or as they are, and how often."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sparkles.eval.benchmark import Item, Scorer
from sparkles.eval.controls import Control
from sparkles.eval.courses import Course
from sparkles.prompt_format import IMAGE_PLACEHOLDER, strip_tags
from sparkles.types import Dialogue, InputError, Message, Prompt, Response

Mode = Literal["generate", "likelihood", "paper"]

PAPER_TRIES = 20
"""The original draws again without end; of answers that are read half the time, one in a million needs more."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The defaults ask each item once, as it is.

    Raises:
        InputError: the settings do not fit each other.
    """

    control: Control | None = None
    """What is changed about the pictures, see `sparkles.eval.controls`."""
    plain: str | Path | None = None
    """Run folder of the same model without the control: the effect goes into the metrics and reports of both."""
    mode: Mode = "generate"
    """generate: the answer is read from the response. likelihood: it is the option that the model finds likeliest.
    paper: as generate, but drawn from the first try on, and again while it cannot be read (at most `PAPER_TRIES` times
    if `tries` does not say)."""
    tries: int = 1
    """An answer that cannot be read is asked for again, up to so many times in all; later tries are sampled."""
    seed: int = 0
    """Of what is drawn: wrong pictures, and with the id of an item and the try its sampled answers."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise InputError(f"eval.tries must be at least 1, got {self.tries}")
        if self.plain is not None and self.control is None:
            raise InputError(
                f"eval.plain={self.plain} is what a control is held against, and there is none; set eval.control=..."
            )
        if self.plain is not None and not Path(self.plain).is_dir():
            raise InputError(f"eval.plain={self.plain}: no such run folder")

    @property
    def most_tries(self) -> int:
        return PAPER_TRIES if (self.mode, self.tries) == ("paper", 1) else self.tries

    def settings(self, scorer: Scorer) -> tuple[str, ...]:
        """What of this an answer depends on beyond its item and the responder."""
        if scorer.needs_judge or (self.mode, self.tries) == ("generate", 1):
            return ()
        return (self.mode, f"{self.most_tries} tries")


PLAINLY = Asking()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An item, and what the responder said to it."""

    item: Item
    messages: tuple[Message, ...] = ()
    """Of the last try."""
    tries: tuple[dict[str, Any], ...] = ()
    """See `Prediction.tries`."""
    failure: str = ""
    """Why the item is not finished; empty if it is."""

    @property
    def dialogue(self) -> Dialogue:
        return judged_dialogue(self.item, [one.content for one in self.messages if one.role == "assistant"])


def judged_dialogue(item: Item, answers: Sequence[str]) -> Dialogue:
    """The answers behind the questions as they were meant, which a control may have changed."""
    questions = item.judged or item.questions
    messages = [
        message
        for question, answer in zip(questions, answers, strict=True)
        for message in (question, Message(role="assistant", content=answer))
    ]
    return Dialogue(messages=tuple(messages), dialogue_id=item.item_id)


def ask(item: Item, scorer: Scorer, asking: Asking = PLAINLY) -> Course[Asked]:
    """What the responder says to the item, asked again as `asking` has it while no answer can be read from it.

    Each question stands behind the answers to the earlier ones.
    """
    options = scorer.options if asking.mode == "likelihood" else ()
    asked = Asked(item=item)
    for number in range(1, 1 + asking.most_tries):
        asked = replace(asked, messages=())
        for turn, question in enumerate(item.questions, start=1):
            messages = (*asked.messages, question)
            response = yield Prompt(
                messages=messages, item_id=item.item_id, try_number=number, options=options
            )
            # An answer shows no images: a tag that the model made up would be taken for one in the next prompt.
            answer = strip_tags(response.text).replace(IMAGE_PLACEHOLDER, "")
            asked = replace(
                asked,
                messages=(*messages, Message(role="assistant", content=answer)),
                tries=(*asked.tries, _record(turn, response)),
                failure=response.failure,
            )
            if asked.failure:
                return asked
        if scorer.needs_judge or not _is_unread(asked, scorer):  # whatever was said can be judged
            break
    return asked


def _is_unread(asked: Asked, scorer: Scorer) -> bool:
    [score] = scorer.score([asked.item], [asked.dialogue], None)
    return score.answer is None


def _record(turn: int, response: Response) -> dict[str, Any]:
    record = {
        "turn": turn,
        "response": response.text,
        "seconds": round(response.seconds, 4),
        "truncated": response.truncated,
    }
    if response.log_probs:
        record["log_probs"] = {option: round(value, 4) for option, value in response.log_probs.items()}
    return record
