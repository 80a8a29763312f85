"""The terminal chat, mostly with a stand-in for the model; how answers come is tested beside `speakers`."""

import copy
import json
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console

from sparkles.prompt_format import IMAGE_PLACEHOLDER, IMAGE_TAG, MINIGPT4
from sparkles.serve.__main__ import main
from sparkles.serve.conversation import Chat
from sparkles.serve.engine import Engine
from sparkles.serve.limits import Limits
from sparkles.serve.question import Sampling
from sparkles.serve.terminal.speakers import LiveAnswers, Speaker, WholeAnswers
from sparkles.serve.terminal.talk import Talk, run
from sparkles.types import Prompt, Response
from tests.scripted_server import Reply, ScriptedServer
from tests.serve.conftest import MAX_TOKENS, EndlessText, Nano

GREEDY = Sampling(max_tokens=MAX_TOKENS)
REPOSITORY = Path(__file__).resolve().parents[2]
Scenes = Callable[[int], list[Path]]
RunMain = Callable[..., None]


@dataclass
class Echo:
    """Says what was asked last, and remembers every prompt."""

    text: str | None = None
    name: str = "echo"
    asked: list[Prompt] = field(default_factory=list)
    interrupted: Sequence[int] = ()
    """Questions, from 1, during which Ctrl-C is pressed."""
    failure: str = ""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        for prompt in prompts:
            MINIGPT4.render_prompt(prompt.messages, system=True)  # refuses tags that do not match the images
        if len(self.asked) in self.interrupted:
            signal.raise_signal(signal.SIGINT)
        return [
            Response(text=self.text or prompt.messages[-1].content, failure=self.failure)
            for prompt in prompts
        ]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Whatever started the tests may have switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """cat.png and my dog.png in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "my dog.png"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


class Session:
    """Lines at a terminal, or into a file, and what is printed."""

    def __init__(
        self,
        speaker: Speaker,
        *,
        fixed: bool = False,
        sampling: Sampling = GREEDY,
        file: StringIO | None = None,
    ) -> None:
        self.file = file or StringIO()
        console = Console(file=self.file, width=200, highlight=False)
        self.talk = Talk(speaker, console, sampling=sampling, name="nano", fixed=fixed)
        self.drafts: list[str] = []

    def type(self, *lines: str) -> str:
        """What they bring about, until the end of the input."""
        start, remaining = len(self.file.getvalue()), iter(lines)

        def read(draft: str) -> str:
            self.drafts.append(draft)
            try:
                return next(remaining)
            except StopIteration:
                raise EOFError from None

        run(self.talk, read)
        return self.file.getvalue()[start:].partition("╯\n")[2]


def session(responder: Echo, **options: bool) -> Session:
    return Session(WholeAnswers(responder), **options)


# --- asking


def test_pictures_are_numbered_over_the_turns_and_said_so() -> None:
    echo = Echo()
    said = session(echo).type("Compare @cat.png with @cat.png.", "And now?", 'What of @"my dog.png"?')
    assert said == (
        "IMAGE#1 cat.png, IMAGE#2 cat.png\n"
        "Sparkles: Compare IMAGE#1 with IMAGE#2.\n"
        "Sparkles: And now?\n"
        "IMAGE#3 my dog.png\n"
        "Sparkles: What of IMAGE#3?\n"
        "\n"
    )
    assert [image.image_id for image in echo.asked[-1].images] == ["1", "2", "3"]
    assert [len(prompt.messages) for prompt in echo.asked] == [1, 3, 5]
    assert echo.asked[-1].messages[-1].content == f"What of IMAGE#3{IMAGE_TAG}?"


@pytest.mark.parametrize(
    "typed",
    [IMAGE_PLACEHOLDER, IMAGE_TAG, f"<Image{IMAGE_PLACEHOLDER}Here>", f"<Img><Image{IMAGE_TAG}Here></Img>"],
)
def test_tags_that_users_or_models_write_show_no_picture(typed: str) -> None:
    echo = Echo(text=f"I see IMAGE#1{typed}.")
    session(echo).type(f"Is {typed} in @cat.png?", "And again?")
    assert [len(prompt.images) for prompt in echo.asked] == [1, 1]


def test_a_missing_picture_is_said_and_the_question_comes_back_to_be_changed() -> None:
    echo = Echo(text="A cat.")
    chat = session(echo)
    said = chat.type("Describe @cat.png.", "And @missing.png?", 'And @"my dog.png"?', "/quit", "Unheard.")
    assert "cannot read missing.png: No such file or directory; expected a picture behind @" in said
    assert said.count("Sparkles: A cat.") == 2
    assert [image.image_id for image in echo.asked[-1].images] == ["1", "2"]
    assert chat.drafts == ["", "", "And @missing.png?", ""]


def test_a_speaker_that_fails_is_said_and_the_question_comes_back() -> None:
    chat = session(Echo(failure="no_key: set OPENAI_API_KEY"))
    assert chat.type("Hello?") == "no_key: set OPENAI_API_KEY\n\n"
    assert chat.drafts == ["", "Hello?"]
    assert chat.talk.conversation.turns == []


@pytest.mark.parametrize("lines", [("Hi.", "", "   ", "/quit", "Unheard."), ("Hi.", "", "   ")])
def test_it_ends_with_quit_or_with_the_input(lines: Sequence[str]) -> None:
    echo = Echo()
    session(echo).type(*lines)
    assert len(echo.asked) == 1


def test_ctrl_c_where_one_types_leaves_when_it_is_pressed_twice_in_a_row() -> None:
    echo = Echo()
    chat = session(echo)
    typed = iter([None, "Hi.", None, None])

    def read(draft: str) -> str:
        if (line := next(typed)) is None:
            raise KeyboardInterrupt
        return line

    run(chat.talk, read)
    assert len(echo.asked) == 1
    assert chat.file.getvalue().count("Ctrl-C once more, or Ctrl-D, leaves.") == 2


def test_ctrl_c_when_the_answer_has_just_ended_keeps_the_conversation() -> None:
    class Hasty(StringIO):
        is_pressed = False

        def write(self, text: str) -> int:
            if "Stopped;" in text and not self.is_pressed:
                self.is_pressed = True
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    echo = Echo(interrupted=[1])
    said = Session(WholeAnswers(echo), file=Hasty()).type("Hi.", "And now?")
    assert "Ctrl-C once more, or Ctrl-D, leaves." in said
    assert echo.asked[-1].messages[0].content == "Hi.\nAnd now?"


def test_what_a_model_writes_is_text_and_moves_no_cursor() -> None:
    said = session(Echo(text="[red]not red[/] \x1b[2J\x9b31m\rred [/]")).type("Hi.")
    assert said == "Sparkles: [red]not red[/] [2J31mred [/]\n\n"


def test_hints_and_help_are_shown_first() -> None:
    chat = session(Echo())
    run(chat.talk, lambda draft: "/quit", hints=["weights: nano"])
    assert 'Quote a path with spaces: @"my cat.png"' in chat.file.getvalue()
    assert "weights: nano" in chat.file.getvalue()


# --- answers of an engine


class Impatient(StringIO):
    """Ctrl-C is pressed when so many characters of an answer have been printed."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters: int | None = characters

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.characters and len(self.getvalue().partition("Sparkles: ")[2]) > self.characters:
            self.characters = None
            signal.raise_signal(signal.SIGINT)
        return written


def test_an_answer_comes_in_pieces_and_is_whole_in_a_file(engine: Engine, scenes: Scenes) -> None:
    class Counting(StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            return super().write(text)

    chat = Session(LiveAnswers(Chat(engine)), file=Counting())
    said = chat.type(f"Describe @{scenes(1)[0]}.")
    [turn] = chat.talk.conversation.turns
    assert said == f"IMAGE#1 {scenes(1)[0]}\nSparkles: {turn.answer}\n\n"
    assert turn.answer.startswith("IMAGE#1 has")
    assert isinstance(chat.file, Counting)
    assert chat.file.writes > 10
    assert "\x1b" not in said


def test_ctrl_c_stops_an_answer_and_what_there_is_of_it_stays(
    engine: Engine, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = Session(LiveAnswers(Chat(engine)), sampling=replace(GREEDY, max_tokens=1_000), file=Impatient(30))
    with monkeypatch.context() as patched:
        patched.setattr("sparkles.serve.engine.AnswerText", EndlessText)
        said = chat.type(f"Describe @{scenes(1)[0]}.")
    [turn] = chat.talk.conversation.turns
    assert turn.ending == "stopped"
    assert 30 < len(turn.answer) < 200
    assert said.endswith(f"Sparkles: {turn.answer}\nStopped.\n\n")
    assert "IMAGE#1" in chat.type("And what is in IMAGE#1?", "/quit"), "the conversation goes on"
    assert chat.talk.conversation.prompt.messages[1].content == turn.answer


def test_a_question_that_is_stopped_before_any_answer_is_read_with_the_next() -> None:
    echo = Echo(interrupted=[1])
    said = session(echo).type("Here is @cat.png.", "Is it red?")
    assert "Stopped; the question will be read with the next, or /edit it." in said
    assert echo.asked[-1].messages[0].content == f"Here is IMAGE#1{IMAGE_TAG}.\nIs it red?"


def test_whole_oldest_turns_that_no_longer_fit_are_told_once(nano: Nano, scenes: Scenes) -> None:
    encoder = copy.copy(nano.encoder)
    encoder.max_prompt_length = 150
    engine = replace(nano, encoder=encoder).engine()
    chat = Session(LiveAnswers(Chat(engine)), sampling=Sampling(max_tokens=20))
    paths = scenes(8)
    for path in paths:
        before = chat.talk.conversation.forgotten
        said = chat.type(f"Describe @{path}.")
        forgotten = chat.talk.conversation.forgotten
        assert ("no longer sees" in said) == (forgotten > before)
    engine.close()
    assert 1 < forgotten < 8
    numbers = ", ".join(f"IMAGE#{number}" for number in range(1, forgotten + 1))
    assert f"no longer sees the first {forgotten} questions ({numbers})." in chat.file.getvalue()
    listed = chat.type("/pictures").splitlines()
    assert listed[0] == f"IMAGE#1 {paths[0]} (no longer seen by the model)"
    assert listed[7] == f"IMAGE#8 {paths[7]}"
    assert sum("no longer seen" in line for line in listed) == forgotten


def test_an_answer_that_is_cut_off_says_what_to_do(engine: Engine, scenes: Scenes) -> None:
    chat = Session(LiveAnswers(Chat(engine)))
    said = chat.type("/set length 3", f"Describe @{scenes(1)[0]}.")
    assert "The answer was cut off after 3 tokens; /set max_tokens allows more." in said


# --- commands


def test_retry_asks_again_with_all_pictures() -> None:
    echo = Echo()
    chat = session(echo)
    said = chat.type("/retry", "Describe @cat.png.", "/retry")
    assert said.startswith("nothing was asked yet\n")
    assert [prompt.try_number for prompt in echo.asked] == [1, 2]
    assert len(echo.asked[-1].images) == len(chat.talk.conversation.turns) == 1


def test_retry_of_the_likeliest_answer_says_why_it_is_the_same(engine: Engine, scenes: Scenes) -> None:
    chat = Session(LiveAnswers(Chat(engine)))
    hint = "The likeliest answer is the same each time; /set temperature 0.7 draws others."
    assert hint in chat.type(f"Describe @{scenes(1)[0]}.", "/retry")
    assert hint not in chat.type("/set temperature 1.5", "/set seed 3", "/retry")


@pytest.mark.parametrize("command", ["/edit", "/undo"])
def test_the_last_question_is_taken_back_as_it_was_typed(command: str) -> None:
    echo = Echo()
    chat = session(echo)
    question = 'Compare @"my dog.png" with IMAGE#1 and @./cat.png.'
    assert "nothing was asked yet" in chat.type(command)
    chat.type("Describe @cat.png.", question, command)
    assert chat.drafts[-1] == question
    assert len(chat.talk.conversation.turns) == 1
    chat.type(question)
    assert echo.asked[-1] == replace(echo.asked[1], messages=echo.asked[-1].messages)
    assert [message.content for message in echo.asked[-1].messages] == [
        message.content for message in echo.asked[1].messages
    ]


def test_clear_begins_a_new_conversation() -> None:
    echo = Echo()
    said = session(echo).type("Describe @cat.png.", "/clear", "/pictures", 'Describe @"my dog.png".')
    assert [len(prompt.messages) for prompt in echo.asked] == [1, 1]
    assert "A new conversation.\nNo pictures yet" in said
    assert "IMAGE#1 my dog.png" in said


def test_pictures_are_listed_with_their_numbers() -> None:
    said = session(Echo()).type('Is @cat.png or @"my dog.png" red?', "And @./cat.png?", "/pictures")
    assert said.endswith("IMAGE#1 cat.png\nIMAGE#2 my dog.png\nIMAGE#3 ./cat.png\n\n")


def test_settings_are_listed_and_changed() -> None:
    chat = Session(WholeAnswers(Echo()))
    said = chat.type(
        "/set",
        "/set temperature 0.7",
        "/set top_p 0.9",
        "/set length 30",
        "/set seed 3",
        "/set temperature 0",
    )
    assert "max_tokens   80" in said
    assert "seed         none" in said
    assert "temperature is 0.7 from now on." in said
    assert chat.talk.sampling == Sampling(max_tokens=30, top_p=0.9, seed=3)
    chat.type("/set seed none", "/set beams 4", "Hello?")
    assert chat.talk.sampling == Sampling(max_tokens=30, top_p=0.9, beams=4)
    assert chat.talk.conversation.turns[-1].sampling == chat.talk.sampling


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "/set temprature 1",
            "/set temprature: no such setting; did you mean temperature? There are temperature",
        ),
        ("/set temperature warm", "/set temperature warm: expected a number, as in /set temperature 1"),
        ("/set beams", "/set beams : expected a whole number"),
        ("/set beams 1.5", "/set beams 1.5: expected a whole number"),
        ("/set beams 0", "beams must be at least 1, got 0"),
        ("/retri", "there is no /retri; did you mean /retry? /help lists what there is"),
        ("/xyz now", "there is no /xyz. /help lists what there is"),
    ],
)
def test_what_is_wrong_with_a_command_is_said(line: str, expected: str) -> None:
    chat = session(Echo())
    assert chat.type(line).startswith(expected)
    assert chat.talk.sampling == GREEDY


def test_a_setting_out_of_its_limits_is_refused_at_once(engine: Engine) -> None:
    chat = Session(LiveAnswers(Chat(engine, limits=Limits(tokens=100))))
    assert "max_tokens is 101; expected 1 to 100" in chat.type("/set max_tokens 101")
    assert chat.talk.sampling == GREEDY


def test_a_question_that_cannot_be_asked_comes_back(engine: Engine) -> None:
    chat = Session(LiveAnswers(Chat(engine, limits=Limits(tokens=100))))
    chat.talk.sampling = Sampling(max_tokens=101)  # as the command line may have it
    assert "max_tokens is 101; expected 1 to 100" in chat.type("Hello?")
    assert chat.drafts[-1] == "Hello?"


def test_a_speaker_that_heeds_no_settings_says_so() -> None:
    said = session(Echo(), fixed=True).type("/set temperature 1")
    assert "nano heeds no settings from here" in said


def test_a_question_may_begin_with_a_path() -> None:
    assert session(Echo()).type("/etc/hosts is a file, is it?").startswith("Sparkles: /etc/hosts is")


def test_help_lists_every_command() -> None:
    said = session(Echo()).type("/help")
    for word in ("/retry", "/edit", "/undo", "/clear", "/pictures", "/set NAME VALUE", "/save FILE", "/quit"):
        assert word in said


def test_a_conversation_is_saved_as_a_page_and_as_a_training_dialogue(pictures: Path) -> None:
    chat = session(Echo(text="A cat."))
    assert "nothing to export yet" in chat.type("/save talk.html")
    said = chat.type(
        "Describe @cat.png.", "/save talk.html", '/save "my talk.zip"', "/save talk.html", "/save talk"
    )
    assert (
        "Saved to talk.html.\nSaved to my talk.zip.\ntalk.html is there already; choose another name\n"
        in said
    )
    assert "/save talk: expected a name that ends in .html (one page, to read) or .zip" in said
    assert "A cat." in (pictures / "talk.html").read_text()
    with zipfile.ZipFile(pictures / "my talk.zip") as archive:
        [annotations] = [name for name in archive.namelist() if name.startswith("annotations/")]
        assert "images/1.png" in archive.namelist()
        assert json.loads(archive.read(annotations))
    assert "No such file or directory" in chat.type("/save nowhere/talk.html")


# --- the program


def test_one_question_is_answered_and_nothing_else_printed(
    run_main: RunMain, scenes: Scenes, capsys: pytest.CaptureFixture[str], nano: Nano
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(main, "tui", f'message="Describe @{scenes(1)[0]}."', "threads=1")
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("Sparkles: IMAGE#1 has")
    assert said.count("\n") == 1


def test_one_question_that_cannot_be_asked_ends_with_an_error(
    run_main: RunMain, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_main(main, "tui", 'message="Describe @missing.png."', "threads=1")
    assert exit_.value.code == 1
    captured = capsys.readouterr()
    assert "cannot read missing.png" in captured.err
    assert captured.out == ""


def test_settings_that_would_not_be_heeded_are_refused(
    run_main: RunMain, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_main(main, "tui", "message=Hi", "+generation.do_sample=true")
    assert "generation.do_sample would not be heeded; set sampling.temperature" in capsys.readouterr().err


def test_generate_answers_where_the_engine_cannot(
    run_main: RunMain, scenes: Scenes, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_main(
            main, "tui", f'message="Describe @{scenes(1)[0]}."', "engine=null", "+generation.num_beams=2"
        )
    assert capsys.readouterr().out.startswith("Sparkles: IMAGE#1 has")


def test_a_model_behind_an_endpoint_can_be_talked_to(
    run_main: RunMain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    with ScriptedServer(lambda call: Reply(text=f"I was asked: {call.question}")) as server:
        arguments = (
            "responder=openai",
            "responder.model=other",
            f"responder.client.base_url={server.base_url}",
        )
        with pytest.raises(SystemExit) as exit_:
            run_main(main, "tui", 'message="Describe @cat.png."', *arguments)
    assert exit_.value.code == 0
    assert capsys.readouterr().out == "Sparkles: I was asked: Describe IMAGE#1.\n"


def test_without_input_it_ends_before_a_model_is_loaded(
    run_main: RunMain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SystemExit) as exit_:
        run_main(main, "tui", "checkpoint=nowhere.ckpt")
    said = capsys.readouterr().err
    assert exit_.value.code == 1
    assert "there is no input to read questions from; ask one with message=..." in said
    assert "Traceback" not in said


def test_it_needs_no_web_server() -> None:
    program = (
        "import sys\n"
        "for name in ('fastapi', 'gradio', 'starlette', 'uvicorn'): sys.modules[name] = None\n"
        "import sparkles.serve.terminal.line_input, sparkles.serve.terminal.speakers, sparkles.serve.terminal.talk"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
