from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console

from sparkles.data.images import ImageError
from sparkles.prompt_format import IMAGE_PLACEHOLDER, IMAGE_TAG, MINIGPT4, check_tags
from sparkles.serve.tui import Talk, parse_message, run, show_answer
from sparkles.types import Prompt, Response

CAT = f"IMAGE#1{IMAGE_TAG}"


@dataclass
class Echo:
    """Says what was asked last, and remembers every prompt."""

    text: str | None = None
    name: str = "echo"
    asked: list[Prompt] = field(default_factory=list)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        for prompt in prompts:
            MINIGPT4.render_prompt(prompt.messages, system=True)  # refuses tags that do not match the images
        return [Response(text=self.text or prompt.messages[-1].content) for prompt in prompts]


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """cat.png, my dog.png and what?.png in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "my dog.png", "what?.png"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def lines(*texts: str) -> Callable[[], str]:
    """Reads these lines, and then the end of the input."""
    remaining: Iterator[str] = iter(texts)

    def read() -> str:
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    return read


# --- pictures between words


@pytest.mark.parametrize(
    ("text", "content", "names"),
    [
        ("Describe @cat.png", f"Describe {CAT}", ["cat.png"]),
        ("Describe @cat.png.", f"Describe {CAT}.", ["cat.png"]),
        ("Is @cat.png, well, a cat?", f"Is {CAT}, well, a cat?", ["cat.png"]),
        ("What is in (@cat.png)?!", f"What is in ({CAT})?!", ["cat.png"]),
        ("He said '@cat.png'.", f"He said '{CAT}'.", ["cat.png"]),
        ('See @"my dog.png".', f"See {CAT}.", ["my dog.png"]),
        ('See @"what?.png"?', f"See {CAT}?", ["what?.png"]),
        ("See @what?.png?", f"See {CAT}?", ["what?.png"]),
        ("@cat.png", CAT, ["cat.png"]),
        ("@./cat.png and\n@cat.png", f"{CAT} and\nIMAGE#2{IMAGE_TAG}", ["cat.png", "cat.png"]),
    ],
)
def test_paths_become_references_where_they_stand(text: str, content: str, names: list[str]) -> None:
    message = parse_message(text, first_id=1)
    assert message.content == content
    assert [image.path and image.path.name for image in message.images] == names
    assert [image.image_id for image in message.images] == list(range(1, len(names) + 1))


def test_a_path_may_begin_at_home_or_at_the_root(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures))
    message = parse_message(f"@~/cat.png and @{pictures}/cat.png", first_id=1)
    assert [image.path for image in message.images] == [pictures / "cat.png"] * 2


def test_words_without_pictures_stay_as_they_are() -> None:
    message = parse_message("Tell me about IMAGE#1, please.", first_id=2)
    assert (message.content, message.images) == ("Tell me about IMAGE#1, please.", ())


@pytest.mark.parametrize("path", ["dog.png", '"no such.png"', "~nobody-of-this-name/cat.png", "."])
def test_a_path_that_is_no_picture_is_refused_with_its_name(path: str) -> None:
    with pytest.raises(ImageError, match=r"cannot read .*image 1"):
        parse_message(f"Describe @{path}", first_id=1)


def test_a_file_that_is_no_picture_is_refused_with_its_name(pictures: Path) -> None:
    (pictures / "notes.txt").write_text("no pixels")
    with pytest.raises(ImageError, match=r"cannot read notes.txt"):
        parse_message("Describe @notes.txt.", first_id=1)


@pytest.mark.parametrize(
    "typed",
    [
        IMAGE_PLACEHOLDER,
        IMAGE_TAG,
        f"IMAGE#4{IMAGE_TAG}",
        f"<Image{IMAGE_PLACEHOLDER}Here>",
        f"<Img><Image{IMAGE_TAG}Here></Img>",
        f"<{IMAGE_PLACEHOLDER}>",
    ],
)
def test_a_placeholder_typed_by_hand_does_no_harm(typed: str) -> None:
    message = parse_message(f"Is {typed} in @cat.png?", first_id=1)
    check_tags(message.content, message.images, "message")
    assert message.content.endswith(f"in {CAT}?")


# --- a conversation


def test_ids_go_on_over_the_turns_and_each_turn_sees_all_before() -> None:
    echo = Echo()
    talk = Talk(echo)
    talk.ask("Compare @cat.png with @cat.png.")
    talk.ask("And now?")
    talk.ask('What of @"my dog.png"?')
    assert [image.image_id for image in echo.asked[-1].images] == [1, 2, 3]
    assert [len(prompt.messages) for prompt in echo.asked] == [1, 3, 5]
    assert talk.messages[-2].content == f"What of IMAGE#3{IMAGE_TAG}?"


def test_tags_in_an_answer_are_not_taken_for_pictures() -> None:
    talk = Talk(Echo(text=f"I see IMAGE#1{IMAGE_TAG} and <Image{IMAGE_PLACEHOLDER}Here>."))
    assert IMAGE_PLACEHOLDER not in talk.ask("Describe @cat.png.")
    assert talk.ask("And again?").startswith("I see IMAGE#1 and")


def test_a_failed_question_leaves_the_conversation_as_it_was() -> None:
    talk = Talk(Echo())
    talk.ask("Describe @cat.png.")
    before = talk.messages
    with pytest.raises(ImageError):
        talk.ask("Compare @cat.png with @missing.png.")
    assert talk.messages == before
    assert talk.next_image_id == 2


# --- the terminal


def test_a_missing_picture_is_said_and_the_conversation_goes_on(console: Console) -> None:
    echo = Echo(text="A cat.")
    run(echo, console, read=lines("Describe @cat.png.", "And @missing.png?", 'And @"my dog.png"?', "/quit"))
    assert "cannot read missing.png (image 2)" in printed(console)
    assert printed(console).count("Sparkles: A cat.") == 2
    assert [image.image_id for image in echo.asked[-1].images] == [1, 2]


@pytest.mark.parametrize("last", [("/quit",), ()])
def test_it_ends_with_quit_or_with_the_input(console: Console, last: tuple[str, ...]) -> None:
    echo = Echo(text="Hello.")
    run(echo, console, read=lines("Hi.", "", "   ", *last))
    assert len(echo.asked) == 1


def test_clear_begins_a_new_conversation(console: Console) -> None:
    echo = Echo(text="Yes.")
    run(echo, console, read=lines("Describe @cat.png.", "/clear", "Describe @cat.png."))
    assert [len(prompt.messages) for prompt in echo.asked] == [1, 1]
    assert echo.asked[-1].images[0].image_id == 1


def test_ctrl_c_stops_an_answer_and_not_the_chat(console: Console) -> None:
    class Slow(Echo):
        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            answered = super().respond(prompts)
            if len(self.asked) == 1:
                raise KeyboardInterrupt
            return answered

    slow = Slow()
    run(slow, console, read=lines("One?", "Two?"))
    assert [len(prompt.messages) for prompt in slow.asked] == [1, 1]
    assert "Sparkles: Two?" in printed(console)


def test_brackets_in_an_answer_are_text_and_no_markup(console: Console) -> None:
    assert show_answer(Talk(Echo(text="[red]not red[/] [/]")), "Hi.", console)
    assert "Sparkles: [red]not red[/] [/]" in printed(console)


def test_hints_and_help_are_shown_first(console: Console) -> None:
    run(Echo(), console, hints=["weights: nano"], read=lines())
    assert 'Quote a path with spaces: @"my cat.png"' in printed(console)
    assert "weights: nano" in printed(console)
