"""Conversations of the web chat, with the nano model behind them."""

import asyncio
import base64
import copy
import io
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from sparkles.data.images import load_image
from sparkles.prompt_format import IMAGE_TAG, SYSTEM_MESSAGE
from sparkles.serve.conversation import (
    Chat,
    ChatError,
    Conversation,
    Conversations,
    Part,
    Turn,
    Upload,
    Visitors,
)
from sparkles.serve.engine import Engine
from sparkles.serve.limits import Limits
from sparkles.serve.question import Piece, Question, Sampling
from sparkles.types import IMAGE_TOKEN_ID, Image
from tests.serve.conftest import MAX_TOKENS, EndlessText, Nano, data_url

GREEDY = Sampling(max_tokens=MAX_TOKENS)
LONG = Sampling(max_tokens=1_000)
NOISE = data_url(PIL.Image.effect_noise((200, 200), 90))
Scenes = Callable[[int], list[Path]]


def parts(text: str, *pictures: Path) -> list[Part]:
    """`text` with a picture at each {}."""
    words = text.split("{}")
    between: list[Part] = [{"picture": data_url(picture)} for picture in pictures]
    found: list[Part] = [{"text": words[0]}]
    for picture, word in zip(between, words[1:], strict=True):
        found += [picture, {"text": word}]
    return [part for part in found if part != {"text": ""}]


async def last(turns: AsyncGenerator[Turn]) -> Turn:
    """The turn as it ends."""
    return [turn async for turn in turns][-1]


class Table:
    """A chat and a conversation, and what reaches the engine."""

    def __init__(self, engine: Engine, nano: Nano, monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
        self.chat = Chat(engine, limits=Limits(**limits))
        self.conversation = Conversation()
        self.asked: list[Question] = []
        self._nano = nano
        answer = engine.answer

        def remember(question: Question) -> AsyncGenerator[Piece]:
            self.asked.append(question)
            return answer(question)

        monkeypatch.setattr(engine, "answer", remember)

    def ask(self, text: str, *pictures: Path, sampling: Sampling = GREEDY) -> Turn:
        return asyncio.run(last(self.chat.ask(self.conversation, parts(text, *pictures), sampling)))

    def retry(self, sampling: Sampling = GREEDY) -> Turn:
        return asyncio.run(last(self.chat.retry(self.conversation, sampling)))

    @property
    def prompt(self) -> str:
        """What reached the engine last; `[8]` is a picture."""
        described = self._nano.encoder.describe(self.asked[-1].encoded).plain
        return described.replace("[8 image slots]", "[8]").partition(SYSTEM_MESSAGE)[2]

    def saw(self, *pictures: Path) -> bool:
        """Whether these and no others reached the engine last."""
        seen = self.asked[-1].pixel_values
        expected = [self._nano.transform(load_image(Image(image_id=0, path=path))) for path in pictures]
        return len(seen) == len(expected) and all(map(torch.equal, seen, expected))


@pytest.fixture
def table(engine: Engine, nano: Nano, monkeypatch: pytest.MonkeyPatch) -> Table:
    return Table(engine, nano, monkeypatch)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)


# --- moderation


def test_a_question_that_must_not_pass_is_not_asked(table: Table, scenes: Scenes) -> None:
    judged: list[tuple[str, int]] = []

    def moderation(text: str, pictures: Sequence[PIL.Image.Image]) -> str:
        judged.append((text, len(pictures)))
        return "no stars, please" if "star" in text else ""

    table.chat.moderation = moderation
    table.ask("Describe {}.", *scenes(1))
    with pytest.raises(ChatError, match="no stars, please"):
        table.ask("Is there a star in {}?", *scenes(1))
    assert len(table.conversation.turns) == len(table.asked) == 1
    asked = [(text, number) for text, number in judged if number]
    assert [number for _, number in asked] == [1, 2], "with the pictures of earlier turns"
    assert "Describe" in asked[1][0], "as the model would see it"


def test_an_answer_that_must_not_pass_is_not_shown_not_even_its_beginning(engine: Engine) -> None:
    async def listen() -> list[tuple[str, str]]:
        chat = Chat(engine, moderation=lambda text, pictures: "" if "Hi" in text else "unfit")
        return [(turn.answer, turn.ending) async for turn in chat.ask(conversation, parts("Hi"), GREEDY)]

    conversation = Conversation()
    assert asyncio.run(listen()) == [("", ""), ("", "content_filter")]
    assert not conversation.answering


def test_an_answer_that_may_pass_is_shown_whole(engine: Engine, table: Table) -> None:
    async def listen() -> list[str]:
        chat = Chat(engine, moderation=lambda text, pictures: "")
        return [turn.answer async for turn in chat.ask(Conversation(), parts("Hi"), GREEDY)]

    assert asyncio.run(listen()) == ["", table.ask("Hi").answer]


# --- asking


def test_pictures_reach_the_model_at_their_words(table: Table, scenes: Scenes, nano: Nano) -> None:
    one, two = scenes(2)
    turn = table.ask("Compare {} with {}, please.", one, two)
    assert table.prompt == (
        "###Human: Compare IMAGE#1<Img>[8]</Img> with IMAGE#2<Img>[8]</Img>, please.###Assistant:"
    )
    assert table.saw(one, two)
    prompt = table.conversation.prompt
    located = tuple(replace(image, path=path) for image, path in zip(prompt.images, (one, two), strict=True))
    question = replace(prompt.messages[0], images=located)
    assert turn.answer == nano.responder.respond([replace(prompt, messages=(question,))])[0].text
    assert turn.ending == "stop"


def test_pictures_are_numbered_over_the_turns_and_each_turn_sees_all_before(
    table: Table, scenes: Scenes
) -> None:
    one, two, three = scenes(3)
    first = table.ask("What is in {} and {}?", one, two)
    table.ask("Which has more objects, IMAGE#2 or {}?", three)
    assert table.prompt == (
        "###Human: What is in IMAGE#1<Img>[8]</Img> and IMAGE#2<Img>[8]</Img>?"
        f"###Assistant: {first.answer}"
        "###Human: Which has more objects, IMAGE#2 or IMAGE#3<Img>[8]</Img>?###Assistant:"
    )
    assert table.saw(one, two, three)
    assert list(table.conversation.uploads) == ["1", "2", "3"]
    assert [image.image_id for image in table.conversation.messages[2].images] == ["3"]


def test_an_answer_grows_until_it_ends(engine: Engine, scenes: Scenes) -> None:
    async def listen() -> list[tuple[str, str, bool]]:
        asking = Chat(engine).ask(conversation, parts("Describe {}.", *scenes(1)), GREEDY)
        return [(turn.answer, turn.ending, conversation.answering) async for turn in asking]

    conversation = Conversation()
    states = asyncio.run(listen())
    assert states[0] == ("", "", True)
    assert len(states) > 5
    for (before, ending, answering), (after, _, _) in pairwise(states):
        assert after.startswith(before)
        assert (ending, answering) == ("", True)
    assert states[-1][:2] == (conversation.turns[0].answer, "stop")
    assert not conversation.answering


@pytest.mark.usefixtures("endless")
def test_one_answer_at_a_time(engine: Engine, scenes: Scenes) -> None:
    async def ask_twice() -> None:
        chat = Chat(engine)
        async with aclosing(chat.ask(conversation, parts("Describe {}.", *scenes(1)), LONG)) as turns:
            await anext(turns)
            for other in (
                chat.ask(conversation, parts("And now?"), GREEDY),
                chat.retry(conversation, GREEDY),
            ):
                with pytest.raises(ChatError, match="still being written"):
                    await anext(other)
            with pytest.raises(ChatError, match="still being written"):
                conversation.take_back()

    conversation = Conversation()
    asyncio.run(ask_twice())
    assert [turn.ending for turn in conversation.turns] == ["stopped"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the question is empty"),
        ([{"text": " \n"}], "the question is empty"),
        ([{"sound": "la"}], "consists of texts and pictures"),
        ([{"text": 7}], "consists of texts and pictures"),
        (["text"], "consists of texts and pictures"),
        ([{"picture": "https://example.org/cat.png"}], "expected data:image"),
        ([{"picture": "data:image/png;base64,AAAA"}], "cannot be read"),
        ([{"picture": data_url(PIL.Image.new("1", (3_000, 3_000)))}], "at most 1,000,000 are taken"),
        ([{"picture": data_url(PIL.Image.new("1", (1, 1)))}] * 17, "17 pictures in a question"),
        ([{"text": "word " * 20_000}], "too long: the model reads 1024 tokens, and a picture takes 8"),
        ([{"text": "word " * 2_000}], "too long"),
        ([{"text": "x" * 65_000}, {"picture": NOISE}], "has become too large; begin a new one"),
    ],
)
def test_a_question_that_cannot_be_asked_leaves_the_conversation_as_it_was(
    engine: Engine, given: list[Any], message: str
) -> None:
    chat = Chat(engine, limits=Limits(image_pixels=1_000_000, body_bytes=100_000))
    conversation = Conversation()
    with pytest.raises(ChatError, match=message):
        asyncio.run(last(chat.ask(conversation, given, GREEDY)))
    assert (conversation.turns, conversation.answering) == ([], False)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"max_tokens": 1_025}, "max_tokens is 1025; expected 1 to 1024"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"seed": -1}, "seed is -1"),
        ({"beams": 9}, "beams is 9; expected 1 to 8"),
    ],
)
def test_settings_are_checked_wherever_they_come_from(
    table: Table, sampling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ChatError, match=message):
        table.ask("Hello?", sampling=Sampling(**{"max_tokens": 8, **sampling}))
    assert table.conversation.turns == []


def test_tags_typed_by_hand_show_no_picture(table: Table, scenes: Scenes) -> None:
    table.ask(f"Is {IMAGE_TAG} in {{}}?", *scenes(1))
    assert table.prompt == "###Human: Is  in IMAGE#1<Img>[8]</Img>?###Assistant:"


def test_a_failure_of_the_model_is_told_and_costs_one_question(
    table: Table, scenes: Scenes, nano: Nano, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = table.ask("Describe {}.", *scenes(1))
    with monkeypatch.context() as broken:
        broken.setattr(nano.model.language, "forward", lambda **_: 1 / 0)
        for attempt in (lambda: table.ask("And now?"), table.retry):
            with pytest.raises(ChatError, match="failed to answer"):
                attempt()
    assert table.conversation.turns == [turn]
    assert not table.conversation.answering


def test_a_full_house_is_told(nano: Nano, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = nano.engine(max_batch_size=1, max_waiting=0)
    table = Table(engine, nano, monkeypatch)
    with engine.place(), pytest.raises(ChatError, match="as many requests as the server takes"):
        table.ask("Hello?")
    engine.close()


def test_a_search_answers_in_one_piece(table: Table, scenes: Scenes) -> None:
    turn = table.ask("Describe {}.", *scenes(1), sampling=replace(GREEDY, beams=3))
    assert (turn.ending, table.asked[-1].sampling.beams) == ("stop", 3)
    assert turn.answer.startswith("IMAGE#1 has")


# --- stop, ask again, take back


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("by_leaving", [False, True])
def test_a_stopped_answer_is_kept_as_far_as_it_came(table: Table, scenes: Scenes, by_leaving: bool) -> None:
    async def stop_early() -> list[str]:
        states = []
        asking = table.chat.ask(table.conversation, parts("Describe {}.", *scenes(1)), LONG)
        async with asyncio.timeout(20), aclosing(asking) as turns:
            async for turn in turns:
                states.append(turn.answer)
                if len(states) == 6:
                    if by_leaving:
                        break
                    table.conversation.stop()
        return states

    states = asyncio.run(stop_early())
    (turn,) = table.conversation.turns
    assert (turn.answer, turn.ending) == (states[-1], "stopped")
    assert 6 <= len(states) < 30
    assert not table.conversation.answering


def test_a_question_that_was_stopped_before_any_answer_is_read_with_the_next(
    nano: Nano, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop_at_once(text: str, *pictures: Path) -> None:
        async for turn in table.chat.ask(table.conversation, parts(text, *pictures), GREEDY):
            assert turn.answer == ""
            table.conversation.stop()

    engine = nano.engine()
    table = Table(engine, nano, monkeypatch)
    asyncio.run(stop_at_once("Here is {}.", scenes(1)[0]))
    assert [turn.ending for turn in table.conversation.turns] == ["stopped"]
    table.ask("Describe it.")
    assert table.prompt == "###Human: Here is IMAGE#1<Img>[8]</Img>.\nDescribe it.###Assistant:"
    assert len(table.conversation.messages) == 4
    engine.close()


def test_the_last_question_is_asked_again_with_another_seed(table: Table, scenes: Scenes) -> None:
    table.ask("Hello?")
    drawn = Sampling(max_tokens=MAX_TOKENS, temperature=1.5, seed=7)
    first = table.ask("Describe {}.", *scenes(1), sampling=drawn)
    prompt = table.prompt
    answers = [first.answer]
    for tries in (2, 3):
        again = table.retry(drawn)
        assert (again.tries, table.asked[-1].sampling.seed) == (tries, 7 + tries - 1)
        assert table.prompt == prompt
        answers.append(again.answer)
    assert len(set(answers)) == 3
    assert len(table.conversation.turns) == 2
    assert table.retry().answer == table.retry().answer, "the likeliest answer is the same each time"


def test_nothing_can_be_asked_again_before_the_first_question(table: Table) -> None:
    with pytest.raises(ChatError, match="nothing was asked yet"):
        table.retry()
    assert table.conversation.take_back() == []


def test_the_last_question_is_taken_back_as_it_was_written(table: Table, scenes: Scenes) -> None:
    one, two = scenes(2)
    table.ask("Describe {}.", one)
    given = parts("Compare {} with IMAGE#1.", two)
    table.ask("Compare {} with IMAGE#1.", two)
    before = table.prompt
    taken = table.conversation.take_back()
    assert [list(part) for part in taken] == [list(part) for part in given]
    assert len(table.conversation.turns) == 1
    asyncio.run(last(table.chat.ask(table.conversation, taken, GREEDY)))
    assert table.prompt == before
    assert table.saw(one, two)


# --- pictures


def test_photographs_stand_upright_and_tell_no_place(table: Table) -> None:
    red_over_blue = PIL.Image.new("RGB", (40, 60), "red")
    red_over_blue.paste("blue", (0, 30, 40, 60))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown as it is, the picture lies on its side
    exif[0x010E] = "at home"
    file = io.BytesIO()
    red_over_blue.rotate(90, expand=True).save(file, "JPEG", exif=exif, quality=95)
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    asyncio.run(last(table.chat.ask(table.conversation, [{"picture": url}], GREEDY)))
    (upload,) = table.conversation.uploads.values()
    with PIL.Image.open(io.BytesIO(upload.content)) as kept:
        assert kept.size == (40, 60)
        red, _, blue = kept.getpixel((20, 5))  # type: ignore[misc]
        assert red > 200 > 60 > blue
        assert not kept.getexif()
    assert b"at home" not in upload.content
    assert upload.suffix == ".jpg"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_that_comes_back_from_the_page_is_the_same(table: Table, scenes: Scenes, kind: str) -> None:
    file = io.BytesIO()
    PIL.Image.open(scenes(1)[0]).save(file, kind)
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    uploads: list[Upload] = []
    given: list[Part] = [{"picture": url}]
    for _ in range(2):
        asyncio.run(last(table.chat.ask(table.conversation, given, Sampling(max_tokens=1))))
        uploads += table.conversation.uploads.values()
        given = list(table.conversation.take_back())
    first, second = uploads
    assert first.content == second.content
    assert first.digest == second.digest


# --- what no longer fits


def test_whole_oldest_turns_are_forgotten_and_counted(
    nano: Nano, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = copy.copy(nano.encoder)
    encoder.max_prompt_length = 150
    engine = replace(nano, encoder=encoder).engine()
    table = Table(engine, nano, monkeypatch)
    pictures = scenes(8)
    forgotten = []
    for index, picture in enumerate(pictures):
        table.ask("Describe {}.", picture, sampling=Sampling(max_tokens=20))
        forgotten.append(table.conversation.forgotten)
        encoded = table.asked[-1].encoded
        assert len(encoded.input_ids) <= 150
        assert SYSTEM_MESSAGE in nano.encoder.describe(encoded).plain
        assert encoded.input_ids.count(IMAGE_TOKEN_ID) == 8 * len(encoded.images), "no picture is cut"
        assert table.saw(*pictures[forgotten[-1] : index + 1])
        assert table.prompt.startswith(f"###Human: Describe IMAGE#{forgotten[-1] + 1}<Img>[8]</Img>")
    assert forgotten == sorted(forgotten)
    assert 0 == forgotten[1] < forgotten[-1] < 7
    assert len(table.conversation.turns) == 8, "all stay in sight"
    engine.close()


def test_the_model_sees_no_more_pictures_than_the_limit(
    engine: Engine, nano: Nano, scenes: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(engine, nano, monkeypatch, images=3)
    one, two, three, four = scenes(4)
    table.ask("Compare {} with {}.", one, two)
    table.ask("What is in {} and {}?", three, four)
    assert table.saw(three, four)
    assert table.conversation.forgotten == 1
    table.conversation.take_back()
    table.ask("What is in {}?", three)
    assert table.saw(one, two, three)
    assert table.conversation.forgotten == 0


# --- several conversations, several visitors


def test_conversations_of_a_visitor() -> None:
    mine = Conversations()
    first = mine.current
    assert mine.new() is first, "an empty one is as good as a new one"
    first.turns.append(Turn(("  What is\nin ", Upload(b""), "?"), GREEDY, answer="A star.", ending="stop"))
    second = mine.new()
    assert (mine.current, mine.all) == (second, [second, first])
    assert mine.open(first.key) is first
    assert mine.open("unknown") is first
    assert (first.title, second.title) == ("What is in IMAGE#1?", "")
    assert mine.delete(first.key) is second
    mine.clear()
    assert [conversation.turns for conversation in mine.all] == [[]]
    assert mine.current in mine.all


def test_the_oldest_conversation_gives_way_and_long_titles_are_cut() -> None:
    mine = Conversations()
    for number in range(60):
        mine.current.turns.append(Turn((f"{number} " * 40,), GREEDY))
        mine.new()
    assert len(mine.all) == Conversations.MOST
    assert mine.all[1].title.startswith("59 59")
    assert mine.all[1].title.endswith("…")
    assert len(mine.all[1].title) <= 48


def test_visitors_find_their_conversations_again_and_nobody_elses() -> None:
    visitors = Visitors(most=3)
    mine, others = visitors.welcome(secret(0)), visitors.welcome(secret(1))
    assert others is not mine
    assert visitors.welcome(secret(0)) is mine
    for number in (2, 3):
        visitors.welcome(secret(number))
        assert visitors.welcome(secret(0)) is mine
    assert visitors.welcome(secret(1)) is not others, "was longest not seen"


def secret(number: int) -> str:
    return f"{number:043}"


@pytest.mark.parametrize("guessable", ["", "made-up", "x" * 44, "ü" * 43])
def test_secrets_are_long(guessable: str) -> None:
    with pytest.raises(ChatError, match="expected a secret of 43"):
        Visitors().welcome(guessable)


def test_memory_is_bounded() -> None:
    visitors = Visitors(max_bytes=1_000)
    theirs = []
    for number in range(5):
        theirs.append(visitors.welcome(secret(number)))
        theirs[-1].current.turns.append(Turn(("x" * 400,), GREEDY))
    visitors.welcome(secret(4))
    assert [visitors.welcome(secret(number)) is theirs[number] for number in (3, 4)] == [True, True]
    assert visitors.welcome(secret(0)) is not theirs[0]


@pytest.mark.usefixtures("endless")
def test_all_answers_can_be_ended_at_once(table: Table) -> None:
    visitors = Visitors()

    async def ask(number: int) -> Turn:
        conversation = visitors.welcome(secret(number)).current
        async for turn in table.chat.ask(conversation, parts("Hi"), LONG):
            if turn.answer:
                visitors.stop()
        return conversation.turns[0]

    async def ask_all() -> list[Turn]:
        async with asyncio.timeout(20):
            return await asyncio.gather(*map(ask, range(3)))

    assert [turn.ending for turn in asyncio.run(ask_all())] == ["stopped"] * 3
