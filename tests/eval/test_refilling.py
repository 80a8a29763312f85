"""Answers of different lengths, each in the place of one that has ended, are those that are given alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.evaluation import InBatches
from sparkles.data.encoding import Encoder
from sparkles.eval.courses import Course, in_rounds
from sparkles.eval.refilling import heeds
from sparkles.eval.responders import ModelResponder
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import MINIGPT4, image_reference
from sparkles.types import Image, InputError, Message, Prompt

MakeResponder = Callable[..., ModelResponder]


def ask(text: str, *paths: Path, **about: Any) -> Prompt:
    images = tuple(Image(image_id=i, path=path) for i, path in enumerate(paths, start=1))
    content = " ".join([text, *(image_reference(image.image_id) for image in images)])
    return Prompt(messages=(Message(role="user", content=content, images=images),), **about)


@pytest.fixture
def ending(encoder: Encoder, make_responder: MakeResponder) -> MakeResponder:
    """Makes responders whose answers end at a letter, and so have different lengths."""
    prompt_format = replace(MINIGPT4, end_of_answer="e")
    stopping = Encoder(
        tokenizer=encoder.tokenizer,
        prompt_format=prompt_format,
        num_query_tokens=encoder.num_query_tokens,
        max_length=600,
    )
    return lambda **options: make_responder(
        **{"encoder": stopping, "generation": {"max_new_tokens": 24}} | options
    )


@pytest.fixture
def prompts(pictures: Path) -> list[Prompt]:
    files = [pictures / "red.png", pictures / "green.png", pictures / "33.jpg"]
    return [
        ask("Why? " * (1 + n % 5), *files[: n % 4], item_id=str(n), try_number=1 + n % 3 // 2)
        for n in range(14)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True, "temperature": 2.0, "top_k": 7},
        {"do_sample": True, "temperature": 3.0, "suppress_tokens": [*range(30)]},
    ],
)
def test_answers_are_those_of_transformers_one_at_a_time(
    model: SparklesChat, ending: MakeResponder, prompts: Sequence[Prompt], settings: dict[str, Any]
) -> None:
    generation = {"max_new_tokens": 24, **settings}
    alone = ending(model=InBatches(model), generation=generation, batch_size=1).respond(prompts)
    assert len({len(one.text) for one in alone}) > 3, "answers have to end at different times"
    for batch_size in (1, 4, 32):
        responder = ending(generation=generation, batch_size=batch_size)
        assert responder._desk is not None
        found = responder.respond(prompts)
        assert [(one.text, one.truncated) for one in found] == [(one.text, one.truncated) for one in alone]
        assert [one.text for one in responder.respond(prompts[::-1])] == [one.text for one in alone[::-1]]


def test_a_course_goes_on_while_others_are_still_answered(
    model: SparklesChat, ending: MakeResponder, prompts: Sequence[Prompt]
) -> None:
    events: list[tuple[int, int]] = []

    def talk(index: int, first: Prompt) -> Course[list[str]]:
        messages, said = first.messages, []
        for turn in range(3):
            response = yield Prompt(messages=messages, item_id=str(index))
            events.append((index, turn))
            said.append(response.text)
            answer = Message(role="assistant", content=response.text or "none")
            messages = (*messages, answer, Message(role="user", content="And?"))
        return said

    responder = ending(batch_size=5)
    read: list[int] = []
    handle = model.language.model.register_forward_pre_hook(
        lambda _module, _args, inputs: read.append(
            0 if inputs["inputs_embeds"] is None else inputs["inputs_embeds"].shape[:2].numel()
        ),
        with_kwargs=True,
    )
    found = dict(responder.converse([talk(index, one) for index, one in enumerate(prompts)]))
    handle.remove()
    last_of_first_turn = max(place for place, (_, turn) in enumerate(events) if turn == 0)
    assert min(place for place, (_, turn) in enumerate(events) if turn == 2) < last_of_first_turn
    alone = ending(model=InBatches(model), batch_size=1)
    assert found == dict(in_rounds([talk(*one) for one in enumerate(prompts)], alone.respond, at_once=1))
    everything = sum(len(responder.encoder.encode_prompt(one).input_ids) for one in prompts for _ in range(3))
    assert sum(read) < everything / 2, "later turns go on from what the earlier ones have read"


class SmallMemory(nn.Module):
    """A model whose device has room for some rows."""

    def __init__(self, chat: SparklesChat, room: int) -> None:
        super().__init__()
        self.chat, self.room = chat, room
        self.language = chat.language
        self.most = 0

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        return self.chat.encode_images(pixel_values)

    def running_batch(self, features: Callable[[Sequence[int]], Tensor]) -> Any:
        batch: Any = self.chat.running_batch(features)
        step = batch.step

        def limited(token_ids: Sequence[int]) -> Tensor:
            if len(token_ids) > self.room:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            self.most = max(self.most, len(token_ids))
            return step(token_ids)

        batch.step = limited
        return batch


def test_rows_are_fewer_until_they_fit_the_memory(
    model: SparklesChat, ending: MakeResponder, prompts: Sequence[Prompt]
) -> None:
    small = SmallMemory(model, room=3)
    responder = ending(model=small, batch_size=16)
    texts = [one.text for one in responder.respond(prompts)]
    assert texts == [one.text for one in ending().respond(prompts)]
    assert small.most == 3, "14, 7, 3"


def test_one_prompt_that_does_not_fit_ends_with_advice(
    model: SparklesChat, ending: MakeResponder, prompts: Sequence[Prompt]
) -> None:
    with pytest.raises(InputError, match="one prompt alone does not fit into the device's memory; lower max"):
        ending(model=SmallMemory(model, room=0), batch_size=4).respond(prompts)


def test_options_and_answers_may_be_asked_together(ending: MakeResponder, prompts: Sequence[Prompt]) -> None:
    responder = ending()
    mixed = [
        replace(one, options=("IMAGE#1", "IMAGE#2") if index % 3 == 0 else ())
        for index, one in enumerate(prompts)
    ]
    found = responder.respond(mixed)
    assert [bool(one.log_probs) for one in found] == [bool(one.options) for one in mixed]
    assert [one.text for one in found[1::3]] == [one.text for one in responder.respond(prompts)[1::3]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"do_sample": True, "top_p": 0.3, "min_p": 0.1}, True),
        ({"num_beams": 1, "repetition_penalty": 1.0}, True),
        ({"num_beams": 3}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"min_new_tokens": 4}, False),
        ({"stopping_criteria": []}, False),
    ],
)
def test_what_is_asked_beyond_the_choice_of_tokens_is_left_to_transformers(
    model: SparklesChat, settings: dict[str, Any], expected: bool
) -> None:
    assert heeds(model.language, {"max_new_tokens": 5, **settings}) == expected


def test_the_time_is_shared_by_those_who_are_answered_in_it(
    ending: MakeResponder, prompts: Sequence[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1_000_000))
    monkeypatch.setattr("sparkles.eval.refilling.time.perf_counter", lambda: float(next(clock)))
    responder = ending(batch_size=4)
    steps = 0
    assert responder._desk is not None
    batch: Any = responder._desk._batch
    step, join = batch.step, batch.join

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            return function(*arguments)

        return counted

    batch.step, batch.join = count(step), count(join)
    assert sum(one.seconds for one in responder.respond(prompts)) == pytest.approx(steps)
