from collections.abc import Iterator, Sequence

from sparkles.eval.courses import Course, follow, once
from sparkles.types import Message, Prompt, Response


def prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), item_id=text)


class Echo:
    """Repeats each prompt; keeps what it was asked together."""

    name = "echo"

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.rounds.append([one.item_id for one in prompts])
        return [Response(text=one.item_id) for one in prompts]


class Eager(Echo):
    """Goes on with the last course until it ends."""

    def converse(self, courses: Sequence[Course[str]]) -> Iterator[tuple[int, str]]:
        for index in reversed(range(len(courses))):
            yield index, f"course {index}"


def count_to(number: int, name: str) -> Course[str]:
    said = ""
    for turn in range(number):
        response = yield prompt(f"{name}{turn}")
        said += f" {response.text}"
    return said


def test_courses_go_on_in_rounds_and_end_when_they_ask_no_more() -> None:
    responder = Echo()
    courses = [count_to(number, name) for number, name in ((2, "a"), (0, "b"), (3, "c"), (1, "d"))]
    found = list(follow(courses, responder, at_once=3))
    assert found == [(1, ""), (0, " a0 a1"), (2, " c0 c1 c2"), (3, " d0")]
    assert responder.rounds == [["a0", "c0"], ["a1", "c1"], ["c2"], ["d0"]]


def test_a_responder_that_can_leads_the_courses_itself() -> None:
    responder = Eager()
    assert list(follow([once(prompt("a")), once(prompt("b"))], responder, at_once=1)) == [
        (1, "course 1"),
        (0, "course 0"),
    ]
    assert responder.rounds == []
