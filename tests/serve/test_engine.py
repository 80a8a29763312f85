import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkles.eval.responders import ModelResponder
from sparkles.models.decoding import RunningBatch
from sparkles.serve.engine import Engine
from sparkles.serve.question import EngineError, FullError, LateError, Piece, Question, Sampling
from sparkles.serve.replies import merged
from sparkles.types import InputError, Message, Prompt
from tests.serve.conftest import EndlessText, Nano

MakePrompts = Callable[[int], list[Prompt]]


@pytest.fixture
def make_engine(nano: Nano) -> Iterator[Callable[..., Engine]]:
    engines = []

    def make(**options: Any) -> Engine:
        engines.append(nano.engine(**options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


async def answers(engine: Engine, question: Question) -> list[Piece]:
    """Each choice whole."""
    return merged([piece async for piece in engine.answer(question)])


async def together(engine: Engine, questions: Sequence[Question], *, every: float = 0.0) -> list[list[Piece]]:
    """All at once, or one `every` so many seconds."""

    async def later(index: int, question: Question) -> list[Piece]:
        await asyncio.sleep(index * every)
        return await answers(engine, question)

    return await asyncio.gather(*(later(index, question) for index, question in enumerate(questions)))


def texts(found: Sequence[Sequence[Piece]]) -> list[str]:
    return [answer.text for one in found for answer in one]


# --- what is answered


@pytest.mark.parametrize("every", [0.0, 0.02])
def test_greedy_answers_are_the_responders_whatever_shares_the_batch(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, every: float
) -> None:
    asked = prompts(12)
    expected = nano.responder.respond(asked)
    found = asyncio.run(
        together(make_engine(max_batch_size=5), [nano.question(p) for p in asked], every=every)
    )
    assert texts(found) == [response.text for response in expected]
    assert len(set(texts(found))) > 8, "a test of order needs answers that differ"
    assert [one[0].finish_reason == "length" for one in found] == [one.truncated for one in expected]


def test_a_draw_depends_on_its_seed_alone(nano: Nano, engine: Engine, prompts: MakePrompts) -> None:
    first, second = prompts(2)
    drawn = {"temperature": 1.5, "top_p": 0.95}
    questions = [
        nano.question(first, choices=3, seed=7, **drawn),
        nano.question(second, choices=2, seed=7, **drawn),
        nano.question(first, seed=8, **drawn),
    ]
    three, two, one = asyncio.run(together(engine, questions))
    assert texts([one]) == [three[1].text]
    assert texts(asyncio.run(together(engine, questions[:1]))) == texts([three])
    assert len({*texts([three]), *texts([two])}) == 5


def test_a_small_share_of_the_probability_leaves_the_likeliest_token(
    nano: Nano, engine: Engine, prompts: MakePrompts
) -> None:
    (prompt,) = prompts(1)
    greedy, narrow, cold = (
        nano.question(prompt, seed=1, **sampling)
        for sampling in ({}, {"temperature": 1.0, "top_p": 1e-6}, {"temperature": 1e-6})
    )
    found = texts(asyncio.run(together(engine, [greedy, narrow, cold])))
    assert len(set(found)) == 1


def test_an_answer_ends_at_its_limit_and_at_its_stop_strings(
    nano: Nano, engine: Engine, prompts: MakePrompts
) -> None:
    (prompt,) = prompts(1)
    (whole,) = asyncio.run(answers(engine, nano.question(prompt)))
    word = whole.text.split()[3]
    questions = [nano.question(prompt, max_tokens=3), nano.question(prompt, stop=(word,))]
    (short,), (stopped,) = asyncio.run(together(engine, questions))
    assert (short.finish_reason, short.num_tokens) == ("length", 3)
    assert whole.text.startswith(short.text)
    assert (stopped.finish_reason, stopped.text) == ("stop", whole.text.partition(word)[0].strip())


def test_beams_search_for_the_likeliest_answer(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts
) -> None:
    asked, engine = prompts(3), make_engine()
    beams = [nano.question(prompt, beams=3, max_tokens=40) for prompt in asked]
    greedy = [nano.question(prompt, max_tokens=40) for prompt in asked]
    found = asyncio.run(together(engine, [*beams, *greedy]))
    expected = ModelResponder(
        model=nano.model,
        encoder=nano.encoder,
        transform=nano.transform,
        generation={"max_new_tokens": 40, "num_beams": 3},
        batch_size=1,
    ).respond(asked)
    assert texts(found[:3]) == [response.text for response in expected]
    assert texts(found[3:]) == texts(asyncio.run(together(engine, greedy)))
    assert [one[0].finish_reason == "length" for one in found[:3]] == [one.truncated for one in expected]
    (cut,) = asyncio.run(answers(engine, nano.question(asked[0], beams=2, max_tokens=3)))
    assert (cut.finish_reason, cut.num_tokens) == ("length", 3)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"beams": 0}, "beams must be at least 1, got 0"),
        (
            {"beams": 2, "temperature": 1.0},
            "needs temperature 0, .*; got 2 beams at temperature 1",
        ),
        ({"beams": 2, "top_log_probs": 0}, "tells no probabilities"),
    ],
)
def test_beams_are_neither_drawn_nor_told(sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(max_tokens=1, **sampling)


def test_log_probabilities_are_those_of_the_model(nano: Nano, engine: Engine, prompts: MakePrompts) -> None:
    (prompt,) = prompts(1)
    (answer,) = asyncio.run(answers(engine, nano.question(prompt, top_log_probs=3)))
    assert "".join(score.text for score in answer.scores).strip() == answer.text
    for score in answer.scores:
        assert score.likeliest[0] == (score.text, score.log_prob)  # the likeliest token was taken
        values = [value for _, value in score.likeliest]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert max(values) <= 0


# --- what is not done twice


def test_an_answer_that_is_not_wanted_in_pieces_comes_whole(
    nano: Nano, engine: Engine, prompts: MakePrompts
) -> None:
    question = nano.question(prompts(1)[0], choices=2, temperature=1.0, seed=1, top_log_probs=1)

    async def pieces(question: Question) -> list[Piece]:
        return [piece async for piece in engine.answer(question)]

    whole = asyncio.run(pieces(replace(question, in_pieces=False)))
    assert len(whole) == 2
    assert merged(whole) == asyncio.run(answers(engine, question))


@pytest.fixture
def read(nano: Nano) -> Iterator[list[int]]:
    """How many tokens of prompts the model has read, each time."""
    numbers: list[int] = []
    handle = nano.model.language.model.register_forward_pre_hook(
        lambda _module, _args, inputs: numbers.append(
            0 if inputs["inputs_embeds"] is None else inputs["inputs_embeds"].shape[:2].numel()
        ),
        with_kwargs=True,
    )
    yield numbers
    handle.remove()


def test_the_next_turn_of_a_conversation_is_all_that_is_read_of_it(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, read: list[int]
) -> None:
    (prompt,) = prompts(1)
    engine = make_engine()
    (answer,) = asyncio.run(answers(engine, nano.question(prompt)))
    said = Message(role="assistant", content=answer.text)
    second = replace(
        prompt, messages=(*prompt.messages, said, Message(role="user", content="Are you sure about IMAGE#1?"))
    )
    expected = nano.responder.respond([second])[0].text
    read.clear()
    assert texts([asyncio.run(answers(engine, nano.question(second)))]) == [expected]
    assert 0 < sum(read) < 40


@pytest.mark.parametrize(("most", "tokens", "groups"), [(8, 8, [4]), (2, 8, [2, 2]), (8, 3, [3, 1])])
def test_prompts_that_arrive_together_are_read_together_within_limits(
    nano: Nano,
    make_engine: Callable[..., Engine],
    prompts: MakePrompts,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    tokens: int,  # times those of a prompt
    groups: list[int],
) -> None:
    question = nano.question(prompts(1)[0])
    monkeypatch.setattr("sparkles.serve.engine._MOST_READ_TOGETHER", most)
    monkeypatch.setattr(
        "sparkles.serve.engine._MOST_TOKENS_READ_TOGETHER", tokens * len(question.encoded.input_ids)
    )
    engine = make_engine()
    sizes: list[int] = []
    others_have_arrived = threading.Event()
    read = engine._reader.read

    def watch(numbers: Sequence[Sequence[int]]) -> list[Tensor]:
        sizes.append(len(numbers))
        assert others_have_arrived.wait(10)
        return read(numbers)

    monkeypatch.setattr(engine._reader, "read", watch)

    async def ask() -> None:
        asking = [asyncio.ensure_future(answers(engine, question))]
        while not sizes:
            await asyncio.sleep(0.01)
        asking += [asyncio.ensure_future(answers(engine, question)) for _ in range(4)]
        while len(engine._arrived) < 4:
            await asyncio.sleep(0.01)
        others_have_arrived.set()
        await asyncio.gather(*asking)

    asyncio.run(ask())
    assert sizes == [1, *groups]


def test_a_picture_that_is_shown_again_is_not_encoded_again(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = nano.model.encode_images

    def count(pixel_values: Tensor) -> Tensor:
        encoded.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(nano.model, "encode_images", count)
    asked = prompts(4)[3]
    engine = make_engine(remembered_bytes=0)
    first = texts([asyncio.run(answers(engine, nano.question(asked)))])
    again = replace(asked, messages=(replace(asked.messages[0], content="So, " + asked.messages[0].content),))
    asyncio.run(answers(engine, nano.question(again)))
    assert encoded == [4]
    assert texts([asyncio.run(answers(engine, nano.question(asked)))]) == first


def test_a_search_encodes_its_pictures_once(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = nano.model.encode_images
    monkeypatch.setattr(
        nano.model, "encode_images", lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    )
    asyncio.run(answers(make_engine(), nano.question(prompts(2)[1], beams=2, max_tokens=3)))
    assert encoded == [2]


# --- who comes, who goes


def test_whoever_stops_listening_makes_room(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)
    endless, short = (nano.question(prompts(1)[0], max_tokens=number) for number in (1_000_000, 3))
    engine = make_engine(max_batch_size=1, seconds=60.0)

    async def leave_early() -> list[Piece]:
        async with aclosing(engine.answer(endless)) as pieces:
            await anext(pieces)
        async with asyncio.timeout(20):
            return await answers(engine, short)

    (answer,) = asyncio.run(leave_early())
    assert answer.num_tokens == 3


def test_what_takes_too_long_ends_as_it_is_or_is_refused(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)
    engine = make_engine(max_batch_size=1, seconds=0.5)
    questions = [nano.question(prompt, max_tokens=1_000_000) for prompt in prompts(2)]

    async def ask() -> list[list[Piece] | BaseException]:
        asking = [asyncio.ensure_future(answers(engine, questions[0]))]
        await asyncio.sleep(0.05)  # it is put
        engine.seconds = 0.2  # for the other, which waits for its place
        asking.append(asyncio.ensure_future(answers(engine, questions[1])))
        return await asyncio.gather(*asking, return_exceptions=True)

    first, second = asyncio.run(ask())
    assert isinstance(first, list)
    assert first[0].finish_reason == "length"
    assert first[0].num_tokens > 1
    assert isinstance(second, LateError)


def test_whoever_waits_to_be_read_is_refused_in_time_too(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)
    engine = make_engine(max_batch_size=1, seconds=30.0)
    questions = [nano.question(prompt, max_tokens=1_000_000) for prompt in prompts(3)]

    async def ask() -> None:
        writing, read_ahead = (asyncio.ensure_future(answers(engine, one)) for one in questions[:2])
        async with asyncio.timeout(10):
            while engine._room:  # for the second to be read while the first is answered
                await asyncio.sleep(0.01)
        engine.seconds = 0.2
        with pytest.raises(LateError, match=r"within 0\.2 seconds"):
            async with asyncio.timeout(10):
                await answers(engine, questions[2])
        for one in (writing, read_ahead):
            one.cancel()

    asyncio.run(ask())


def test_room_to_read_is_given_back_whatever_happens(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(max_batch_size=2)
    room = engine._room
    (prompt,) = prompts(1)
    question = nano.question(prompt, choices=2)

    async def leave_early() -> None:
        async with aclosing(engine.answer(question)) as pieces:
            await anext(pieces)

    async def ask() -> None:
        for part in ("encode_images", "embed"):
            with monkeypatch.context() as broken:
                broken.setattr(nano.model, part, lambda *_: 1 / 0)
                with pytest.raises(EngineError):
                    await answers(engine, nano.question(prompts(3)[2]))
        with monkeypatch.context() as broken:
            broken.setattr(engine._batch, "step", lambda _: 1 / 0)
            with pytest.raises(EngineError):
                await answers(engine, question)
        await asyncio.gather(*(leave_early() for _ in range(4)))
        await together(engine, [question, nano.question(prompt, beams=2, max_tokens=3), question])

    asyncio.run(ask())
    engine.close()
    assert engine._room == room


def test_places_are_limited_and_given_back(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_batch_size=1, max_waiting=1)
    for _ in range(2):
        with (
            engine.place(),
            engine.place(),
            pytest.raises(FullError, match="as many requests"),
            engine.place(),
        ):
            pass


def test_more_choices_than_rows_are_refused(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts
) -> None:
    question = nano.question(prompts(1)[0], choices=3)
    with pytest.raises(InputError, match="3 choices, but max_batch_size=2"):
        asyncio.run(answers(make_engine(max_batch_size=2), question))


def test_pictures_that_cannot_be_encoded_cost_the_answers_about_them(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    question = nano.question(prompts(1)[0])
    with monkeypatch.context() as broken:
        broken.setattr(nano.model, "encode_images", lambda pixel_values: 1 / 0)
        with pytest.raises(EngineError, match="failed to look at the pictures"):
            asyncio.run(answers(engine, question))
    assert texts([asyncio.run(answers(engine, question))])


def test_a_failure_of_the_model_costs_one_answer(
    nano: Nano,
    make_engine: Callable[..., Engine],
    prompts: MakePrompts,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (prompt,) = prompts(1)
    engine = make_engine()
    with monkeypatch.context() as broken:
        broken.setattr(nano.model, "embed", lambda *_: 1 / 0)
        with pytest.raises(EngineError, match="failed to answer"):
            asyncio.run(answers(engine, nano.question(prompt)))
    assert "ZeroDivisionError" in caplog.text
    assert texts([asyncio.run(answers(engine, nano.question(prompt)))]) == [
        nano.responder.respond([prompt])[0].text
    ]


@pytest.mark.parametrize("part", ["keep", "remember"])
def test_a_failure_between_two_steps_ends_no_more_than_the_answers_of_that_moment(
    nano: Nano,
    make_engine: Callable[..., Engine],
    prompts: MakePrompts,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    engine = make_engine()
    room = engine._room
    first, second = prompts(2)

    async def ask() -> None:
        async with aclosing(engine.answer(nano.question(first, max_tokens=1_000_000))) as pieces:
            await anext(pieces)
            (short,) = await answers(engine, nano.question(second, max_tokens=3))
            assert short.num_tokens == 3, "it had ended"
            with pytest.raises(EngineError, match="failed to answer"):
                async for _ in pieces:
                    pass

    with monkeypatch.context() as broken:
        broken.setattr(RunningBatch, part, lambda *_: 1 / 0)
        broken.setattr("sparkles.serve.engine.AnswerText", EndlessText)
        asyncio.run(ask())
    found = asyncio.run(together(engine, [nano.question(first), nano.question(second)]))
    assert texts(found) == [response.text for response in nano.responder.respond([first, second])]
    engine.close()
    assert engine._room == room


def test_what_cannot_be_remembered_is_read_again(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    def no_memory(_: int) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(engine._batch, "remember", no_memory)
    asked = prompts(3)
    found = asyncio.run(together(engine, [nano.question(prompt) for prompt in asked]))
    assert texts(found) == [response.text for response in nano.responder.respond(asked)]


@pytest.mark.parametrize("spoil", [torch.nan, torch.inf])
def test_numbers_that_overflow_cost_the_answer_that_they_belong_to(
    nano: Nano,
    make_engine: Callable[..., Engine],
    prompts: MakePrompts,
    monkeypatch: pytest.MonkeyPatch,
    spoil: float,
) -> None:
    engine = make_engine()
    step = engine._batch.step

    def step_and_spoil(token_ids: Sequence[int]) -> Tensor:
        logits = step(token_ids)
        for row, running in zip(logits, engine._rows, strict=True):
            if running.sampling.seed == 1:
                row[7] = spoil
        return logits

    monkeypatch.setattr(engine._batch, "step", step_and_spoil)
    first, second = prompts(2)

    async def ask() -> list[list[Piece] | BaseException]:
        questions = [nano.question(first, seed=1, temperature=1.0), nano.question(second)]
        return await asyncio.gather(*(answers(engine, one) for one in questions), return_exceptions=True)

    broken, whole = asyncio.run(ask())
    assert isinstance(broken, EngineError)
    assert isinstance(whole, list)
    assert texts([whole]) == [nano.responder.respond([second])[0].text]


def test_where_memory_does_not_suffice_the_longest_answer_ends(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    room = engine._room
    short, *_, long = sorted(prompts(5), key=lambda prompt: len(nano.question(prompt).encoded.input_ids))
    most = len(nano.question(long).encoded.input_ids)
    step = engine._batch.step

    def step_within_memory(token_ids: Sequence[int]) -> Tensor:
        if max(row.length for row in engine._rows) > most:
            raise torch.OutOfMemoryError
        return step(token_ids)

    monkeypatch.setattr(engine._batch, "step", step_within_memory)

    async def ask() -> list[list[Piece] | BaseException]:
        questions = [nano.question(one, max_tokens=most) for one in (short, long)]
        return await asyncio.gather(*(answers(engine, one) for one in questions), return_exceptions=True)

    whole, ended = asyncio.run(ask())
    assert "no memory to go on with so long an answer" in str(ended)
    assert isinstance(whole, list)
    assert texts([whole]) == [nano.responder.respond([short])[0].text]
    engine.close()
    assert engine._room == room


@pytest.mark.parametrize("thread", ["_gather", "_next_to_read"])
def test_when_a_thread_of_the_engine_dies_all_who_wait_are_told(
    nano: Nano,
    make_engine: Callable[..., Engine],
    prompts: MakePrompts,
    monkeypatch: pytest.MonkeyPatch,
    thread: str,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)
    engine = make_engine(max_batch_size=2)
    asked = [nano.question(prompt, max_tokens=200) for prompt in prompts(6)]

    async def ask() -> list[list[Piece] | BaseException]:
        waiting = [asyncio.ensure_future(answers(engine, one)) for one in asked]
        while not engine._rows:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(engine, thread, lambda *_: 1 / 0)
        waiting.append(asyncio.ensure_future(answers(engine, asked[0])))  # which wakes the thread
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)

    found = asyncio.run(ask())
    assert any(isinstance(one, EngineError) for one in found)
    assert all(isinstance(one, EngineError | list) for one in found)
    with pytest.raises(EngineError, match="closed"):
        asyncio.run(answers(engine, asked[0]))


def test_an_answer_ends_with_any_of_the_models_own_end_tokens(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (prompt,) = prompts(1)
    whole = nano.responder.respond([prompt])[0].text
    end = nano.encoder.tokenizer(whole, add_special_tokens=False)["input_ids"][3]
    monkeypatch.setattr(nano.model.language.generation_config, "eos_token_id", [2, end])
    engine = make_engine()
    (answer,) = asyncio.run(answers(engine, nano.question(prompt)))
    assert answer.finish_reason == "stop"
    assert whole.startswith(answer.text)
    assert len(answer.text) < len(whole)


def test_what_the_model_asks_for_in_vain_is_said(
    nano: Nano,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(nano.model.language.generation_config, "repetition_penalty", 1.1)
    make_engine()
    assert "generation_config sets repetition_penalty; answers are written without" in caplog.text


def test_a_model_with_learned_positions_is_not_led_beyond_them(
    nano: Nano, make_engine: Callable[..., Engine], prompts: MakePrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = nano.model.language.config
    monkeypatch.setattr(config, "rope_parameters", None)
    monkeypatch.setattr(config, "max_position_embeddings", nano.encoder.max_prompt_length)
    engine = make_engine()
    monkeypatch.setattr("sparkles.serve.engine.AnswerText", EndlessText)
    question = nano.question(prompts(1)[0], max_tokens=1_000_000)
    (answer,) = asyncio.run(answers(engine, question))
    assert answer.num_tokens == nano.encoder.max_prompt_length - len(question.encoded.input_ids) + 1
    assert answer.finish_reason == "length"
    monkeypatch.setattr(config, "max_position_embeddings", nano.encoder.max_prompt_length - 1)
    with pytest.raises(InputError, match=r"the model knows \d+ positions; set data\.max_prompt_length"):
        make_engine()


def test_half_a_picture_is_refused(nano: Nano, engine: Engine, prompts: MakePrompts) -> None:
    question = nano.question(prompts(1)[0])
    cut = replace(question.encoded, visible=slice(1, len(question.encoded.input_ids)))
    with pytest.raises(InputError, match="a picture was cut in two"):
        asyncio.run(answers(engine, replace(question, encoded=cut)))


def test_what_was_asked_before_the_end_is_answered(nano: Nano, prompts: MakePrompts) -> None:
    asked = prompts(4)
    engine = nano.engine(max_batch_size=2)

    async def close_early() -> list[list[Piece]]:
        asking = asyncio.ensure_future(together(engine, [nano.question(prompt) for prompt in asked]))
        await asyncio.sleep(0.05)  # the questions are put
        await asyncio.to_thread(engine.close)
        return await asking

    found = asyncio.run(close_early())
    assert texts(found) == [response.text for response in nano.responder.respond(asked)]
    with pytest.raises(EngineError, match="closed"):
        asyncio.run(answers(engine, nano.question(asked[0])))
