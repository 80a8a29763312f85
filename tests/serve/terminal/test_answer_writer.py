from io import StringIO

import pytest
from rich.console import Console

from sparkles.serve.terminal.answer_writer import AnswerWriter


def written(*states: str, terminal: bool = True, width: int = 20) -> list[str]:
    """What stands there after each state of an answer, and after its end."""
    file = StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    writer = AnswerWriter(console)
    shown = []
    for state in states:
        writer.write(state)
        shown.append(file.getvalue())
    writer.end()
    return [*shown, file.getvalue()]


def test_words_appear_when_they_are_whole() -> None:
    assert written("A", "A bi", "A big", "A big ") == [
        "Sparkles: ",
        "Sparkles: A",
        "Sparkles: A",
        "Sparkles: A big",
        "Sparkles: A big\n",
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("one two three four", "Sparkles: one two\nthree four\n"),
        ("one two to", "Sparkles: one two to\n"),
        ("one\n\ntwo three four five", "Sparkles: one\n\ntwo three four five\n"),
        ("incomprehensibilities", "Sparkles: \nincomprehensibilities\n"),
        ("一二三四五六七", "Sparkles: 一二三四五\n六七\n"),
        ("[red]not red[/]", "Sparkles: [red]not\nred[/]\n"),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_terminals_lines_end_between_words_however_the_answer_comes(
    answer: str, expected: str, step: int
) -> None:
    states = [answer[:end] for end in range(step, len(answer), step)]
    assert written(*states, answer)[-1].replace(" \n", "\n") == expected.replace(" \n", "\n")


def test_a_file_gets_all_at_once_on_one_line() -> None:
    assert written("one two three fo", "one two three four", terminal=False) == [
        "Sparkles: one two three fo",
        "Sparkles: one two three four",
        "Sparkles: one two three four\n",
    ]


def test_without_an_answer_nothing_is_written() -> None:
    assert written("", "") == ["", "", ""]
