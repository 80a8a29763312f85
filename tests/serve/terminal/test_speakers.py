"""Who answers in the terminal; Ctrl-C is a real signal here."""

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
import pytest

from sparkles.data.images import load_image
from sparkles.prompt_format import MINIGPT4
from sparkles.serve.conversation import Chat, ChatError, Conversation
from sparkles.serve.engine import Engine
from sparkles.serve.question import Piece, Question, Sampling
from sparkles.serve.terminal.speakers import LiveAnswers, Speaker, WholeAnswers
from sparkles.types import Prompt, Response
from tests.serve.conftest import MAX_TOKENS, EndlessText, data_url

GREEDY = Sampling(max_tokens=MAX_TOKENS)
LONG = Sampling(max_tokens=1_000)
Scenes = Callable[[int], list[Path]]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Whatever started the tests may have switched it off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass
class Echo:
    """Says what was asked last, and remembers every prompt with the sizes of its pictures."""

    response: Response | None = None
    name: str = "echo"
    asked: list[Prompt] = field(default_factory=list)
    sizes: list[list[tuple[int, int]]] = field(default_factory=list)
    interrupt: bool = False

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        [prompt] = prompts
        self.asked.append(prompt)
        self.sizes.append([load_image(image).size for image in prompt.images])
        MINIGPT4.render_prompt(prompt.messages, system=True)  # refuses tags that do not match the images
        if self.interrupt:
            signal.raise_signal(signal.SIGINT)
        return [self.response or Response(text=prompt.messages[-1].content)]


def ask(speaker: Speaker, conversation: Conversation, text: str, *pictures: Path) -> list[str]:
    """The states of the answer."""
    parts = [{"text": text}, *({"picture": data_url(picture)} for picture in pictures)]
    return [turn.answer for turn in speaker.ask(conversation, parts, GREEDY)]


# --- an engine


def test_answers_are_those_of_the_web_chat_and_grow(engine: Engine, scenes: Scenes) -> None:
    async def listen() -> list[str]:
        parts = [{"text": "Describe "}, {"picture": data_url(scenes(1)[0])}]
        return [turn.answer async for turn in Chat(engine).ask(Conversation(), parts, GREEDY)]

    conversation = Conversation()
    states = ask(LiveAnswers(Chat(engine)), conversation, "Describe ", *scenes(1))
    assert states[0] == ""
    assert len(states) > 5
    assert states == asyncio.run(listen())
    [again] = {turn.answer for turn in [*LiveAnswers(Chat(engine)).retry(conversation, GREEDY)]}
    assert again == states[-1]
    assert (len(conversation.turns), conversation.turns[0].tries) == (1, 2)


def test_ctrl_c_while_it_waits_keeps_what_there_is(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(question: Question) -> AsyncGenerator[Piece]:
        yield Piece(choice=0, text="A red", scores=[], num_tokens=2)
        asyncio.get_running_loop().call_later(0.02, signal.raise_signal, signal.SIGINT)
        await asyncio.sleep(60)

    monkeypatch.setattr(engine, "answer", answer)
    conversation = Conversation()
    with pytest.raises(KeyboardInterrupt):
        ask(LiveAnswers(Chat(engine)), conversation, "Hello?")
    [turn] = conversation.turns
    assert (turn.answer, turn.ending, conversation.answering) == ("A red", "stopped", False)


def test_ctrl_c_between_two_words_keeps_what_there_is(
    engine: Engine, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_early() -> None:
        parts = [{"text": "Describe "}, {"picture": data_url(scenes(1)[0])}]
        with closing(LiveAnswers(Chat(engine)).ask(conversation, parts, LONG)) as turns:
            for number, _ in enumerate(turns):
                if number == 5:
                    signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)
    conversation = Conversation()
    with pytest.raises(KeyboardInterrupt):
        stop_early()
    [turn] = conversation.turns
    assert turn.answer
    assert (turn.ending, conversation.answering) == ("stopped", False)
    monkeypatch.undo()
    assert ask(LiveAnswers(Chat(engine)), conversation, "And now?")[-1], "the engine is free again"


def test_ctrl_c_before_the_question_is_read_leaves_the_conversation_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Chat, "_read", read)
    conversation = Conversation()
    with pytest.raises(KeyboardInterrupt):
        ask(LiveAnswers(Chat(engine)), conversation, "Hello?")
    assert (conversation.turns, conversation.answering) == ([], False)


# --- any responder


def test_a_responder_is_shown_all_pictures_so_far_by_number(scenes: Scenes, tmp_path: Path) -> None:
    echo, conversation = Echo(), Conversation()
    wide = tmp_path / "wide.png"
    PIL.Image.new("RGB", (9, 4)).save(wide)
    speaker = WholeAnswers(echo)
    assert ask(speaker, conversation, "Describe ", *scenes(1)) == ["", "Describe IMAGE#1"]
    ask(speaker, conversation, "And ", wide)
    assert [image.image_id for image in echo.asked[-1].images] == ["1", "2"]
    assert echo.sizes[-1] == [(72, 72), (9, 4)]
    assert [message.content[:10] for message in echo.asked[-1].messages] == [
        "Describe I",
        "Describe I",
        "And IMAGE#",
    ]
    assert not any(image.path.exists() for image in echo.asked[-1].images if image.path), "nothing is left"


def test_another_try_is_another_draw() -> None:
    echo, conversation = Echo(), Conversation()
    speaker = WholeAnswers(echo)
    with pytest.raises(ChatError, match="nothing was asked yet"):
        [*speaker.retry(conversation, GREEDY)]
    ask(speaker, conversation, "Hello?")
    [*speaker.retry(conversation, GREEDY)]
    assert [prompt.try_number for prompt in echo.asked] == [1, 2]
    assert [len(prompt.messages) for prompt in echo.asked] == [1, 1]
    assert len(conversation.turns) == 1


def test_a_responder_that_could_not_be_asked_is_told_and_costs_one_question() -> None:
    conversation = Conversation()
    ask(WholeAnswers(Echo()), conversation, "Hello?")
    before = conversation.turns
    with pytest.raises(ChatError, match="timeout: nobody there"):
        ask(WholeAnswers(Echo(Response(text="", failure="timeout: nobody there"))), conversation, "And now?")
    assert conversation.turns is before


def test_a_responder_that_is_stopped_has_not_answered() -> None:
    conversation = Conversation()
    with pytest.raises(KeyboardInterrupt):
        ask(WholeAnswers(Echo(interrupt=True)), conversation, "Hello?")
    assert [(turn.answer, turn.ending) for turn in conversation.turns] == [("", "stopped")]
    echo = Echo()
    ask(WholeAnswers(echo), conversation, "And now?")
    assert echo.asked[0].messages[0].content == "Hello?\nAnd now?"


@pytest.mark.parametrize(("truncated", "ending"), [(False, "stop"), (True, "length")])
def test_the_ending_is_told(truncated: bool, ending: str) -> None:
    conversation = Conversation()
    ask(WholeAnswers(Echo(Response(text="Yes.", truncated=truncated))), conversation, "Hello?")
    assert conversation.turns[0].ending == ending
