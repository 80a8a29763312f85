"""Several prompts about one thing, one after the other: what is asked next may depend on the answer before."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from sparkles.types import Prompt, Responder, Response

T = TypeVar("T")

Course = Generator[Prompt, Response, T]
"""Gives prompts, is sent their responses, and returns what came of it."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """A course that asks no more."""

    value: T


@runtime_checkable
class Conversing(Protocol):
    """A responder that goes on with each course as soon as its last prompt is answered."""

    def converse(self, courses: Sequence[Course[T]]) -> Iterator[tuple[int, T]]:
        """What comes of each course, with its index, as they end."""
        ...


def follow(courses: Sequence[Course[T]], responder: Responder, *, at_once: int) -> Iterator[tuple[int, T]]:
    """What comes of each course, with its index, as they end.

    Args:
        at_once: courses that are under way together, where the responder does not choose that by itself.
    """
    if isinstance(responder, Conversing):
        yield from responder.converse(courses)
        return
    yield from in_rounds(courses, responder.respond, at_once=at_once)


def in_rounds(
    courses: Sequence[Course[T]], respond: Callable[[Sequence[Prompt]], Sequence[Response]], *, at_once: int
) -> Iterator[tuple[int, T]]:
    """As `follow`; of those under way, each goes on when the prompts of all are answered."""
    for start in range(0, len(courses), at_once):
        answered: dict[int, Response | None] = dict.fromkeys(range(len(courses))[start : start + at_once])
        while answered:
            asked: dict[int, Prompt] = {}
            for index, response in answered.items():
                match go_on(courses[index], response):
                    case Ended(value):
                        yield index, value
                    case Prompt() as prompt:
                        asked[index] = prompt
            answered = dict(zip(asked, respond(list(asked.values())) if asked else [], strict=True))


def go_on(course: Course[T], response: Response | None) -> Prompt | Ended[T]:
    """What follows the response, or begins the course if there is none yet."""
    try:
        return next(course) if response is None else course.send(response)
    except StopIteration as end:
        return Ended(end.value)


def once(prompt: Prompt) -> Course[Response]:
    """A course of one prompt."""
    return (yield prompt)
