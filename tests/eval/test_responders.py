import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparkles.data.encoding import Encoder
from sparkles.data.features import FeatureCache
from sparkles.data.images import ImageTransform, load_image
from sparkles.eval import responders
from sparkles.eval.choosing import SeededNoise, StopStrings
from sparkles.eval.responders import ModelResponder
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import MINIGPT4, image_reference
from sparkles.types import IMAGE_TOKEN_ID, Image, InputError, Message, Prompt, Responder


class ScriptedModel(nn.Module):
    """Says the same text to everyone, as a row of ids; keeps the batches that it got."""

    def __init__(self, encoder: Encoder, text: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.new_ids = torch.tensor(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.batches: list[Mapping[str, torch.Tensor]] = []
        self.num_encoded = 0

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.num_encoded += len(pixel_values)
        return pixel_values.flatten(2)

    def encode_to_keep(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encode_images(pixel_values).half()

    def generate(self, batch: Mapping[str, torch.Tensor], **generation: Any) -> torch.Tensor:
        self.batches.append(batch)
        return self.new_ids.expand(len(batch["input_ids"]), -1)


def ask(text: str, *paths: Path, **about: Any) -> Prompt:
    images = tuple(Image(image_id=i, path=path) for i, path in enumerate(paths, start=1))
    content = " ".join([text, *(image_reference(image.image_id) for image in images)])
    return Prompt(messages=(Message(role="user", content=content, images=images),), **about)


@pytest.fixture
def prompts(pictures: Path) -> list[Prompt]:
    red, green = pictures / "red.png", pictures / "green.png"
    return [
        ask("Short?", red),
        ask("A much longer question about", green, red),
        ask("Same?", green),
        ask("Without any picture?"),
        ask("And?", red, red),
    ]


@pytest.mark.parametrize("drawn", [{}, {"do_sample": True, "temperature": 2.0}])
def test_answers_depend_neither_on_batch_size_nor_on_order(
    greedy: Mapping[str, Any],
    make_responder: Callable[..., ModelResponder],
    pictures: Path,
    drawn: dict[str, Any],
) -> None:
    files = [pictures / "red.png", pictures / "green.png", pictures / "33.jpg"]
    prompts = [
        ask("Why? " * (1 + n % 5), *files[: n % 4], item_id=str(n), try_number=1 + n % 2) for n in range(33)
    ]
    generation = {**greedy, **drawn}
    alone = [
        response.text for response in make_responder(generation=generation, batch_size=1).respond(prompts)
    ]
    assert len(set(alone)) > 20, "a test of order needs answers that differ"
    together = make_responder(generation=generation, batch_size=32)
    assert [response.text for response in together.respond(prompts)] == alone
    assert [response.text for response in together.respond(prompts[::-1])] == alone[::-1]


def test_half_pictures_are_seen_as_in_a_prompt_alone(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], pictures: Path
) -> None:
    shown = ask("", pictures / "red.png", pictures / "green.png").messages[0]
    prompts = [
        Prompt(messages=(replace(shown, content=shown.content + "?" * n),), item_id=str(n)) for n in range(8)
    ]
    cutting = copy.copy(encoder)
    cutting.cut_anywhere = True
    ids = encoder.encode_prompt(prompts[0]).input_ids
    cutting.max_prompt_length = len(ids) - ids.index(IMAGE_TOKEN_ID) + 3
    halved = [cutting.encode_prompt(prompt).hides_slots for prompt in prompts]
    assert True in halved
    assert False in halved
    alone = make_responder(encoder=cutting, batch_size=1)
    expected = [alone._in_batches([prompt])[0].text for prompt in prompts]
    found = make_responder(encoder=cutting).respond(prompts)
    assert [response.text for response in found] == expected


def test_a_draw_belongs_to_item_turn_try_and_seed(
    greedy: Mapping[str, Any], make_responder: Callable[..., ModelResponder]
) -> None:
    sampled = {**greedy, "do_sample": True, "temperature": 3.0, "top_k": 0, "top_p": 1.0}

    def said(responder: ModelResponder, *prompts: Prompt) -> list[str]:
        return [response.text for response in responder.respond(prompts)]

    first, again = ask("Well?", item_id="1"), ask("Well?", item_id="1")
    other, retry = ask("Well?", item_id="2"), ask("Well?", item_id="1", try_number=2)
    answers = said(make_responder(generation=sampled), first, again, other, retry)
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3
    assert said(make_responder(generation=sampled, seed=1), first) != answers[:1]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert said(make_responder(generation=sampled), first) == answers[:1]
    assert torch.equal(torch.get_rng_state(), state), "a training that is going on draws from that one"


def test_only_later_tries_are_drawn_where_the_first_is_greedy(
    make_responder: Callable[..., ModelResponder],
) -> None:
    responder = make_responder()
    answers = {
        try_number: {
            responder.respond([ask("Well?", item_id=str(n), try_number=try_number)])[0].text for n in range(4)
        }
        for try_number in (1, 2)
    }
    assert len(answers[1]) == 1
    assert len(answers[2]) > 1


def test_noise_draws_with_the_probabilities_of_the_scores() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    rows = 4_000
    noise = SeededNoise([torch.Generator().manual_seed(seed) for seed in range(rows)])
    drawn = noise(None, probabilities.log().expand(rows, -1)).argmax(dim=1)
    shares = drawn.bincount(minlength=4) / rows
    assert shares[3] == 0
    torch.testing.assert_close(shares, probabilities, atol=0.025, rtol=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_beams": 3}, "num_beams cannot be combined with do_sample=true here"),
        ({"typical_p": 0.5}, "it takes temperature, top_k, top_p, min_p"),
        ({"temperature": 0.0}, "has to be a strictly positive float"),
    ],
)
def test_what_cannot_be_drawn_by_item_is_refused(
    greedy: Mapping[str, Any],
    make_responder: Callable[..., ModelResponder],
    setting: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        make_responder(generation={**greedy, "do_sample": True, **setting})


class SmallMemory(ScriptedModel):
    """Has room for `room` prompts."""

    room = 3

    def generate(self, batch: Mapping[str, torch.Tensor], **generation: Any) -> torch.Tensor:
        new_ids = super().generate(batch, **generation)
        if len(new_ids) > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return new_ids


def test_batches_are_halved_until_they_fit_the_memory(
    encoder: Encoder, make_responder: Callable[..., ModelResponder]
) -> None:
    model = SmallMemory(encoder, "ok###")
    responder = make_responder(model=model, batch_size=16)
    questions = [ask("Well?", item_id=str(n)) for n in range(20)]
    assert [response.text for response in responder.respond(questions)] == ["ok"] * 20
    assert [len(batch["input_ids"]) for batch in model.batches] == [16, 8, 4, *[2] * 10]
    model.batches.clear()
    responder.respond(questions[:4])
    assert [len(batch["input_ids"]) for batch in model.batches] == [2, 2], "what fits is remembered"


def test_one_prompt_that_does_not_fit_ends_with_advice(
    encoder: Encoder, make_responder: Callable[..., ModelResponder]
) -> None:
    model = SmallMemory(encoder, "ok###")
    model.room = 0
    with pytest.raises(
        InputError, match="one prompt alone does not fit into the device's memory; lower max_new_tokens"
    ):
        make_responder(model=model, batch_size=4).respond([ask("Well?")] * 4)


def test_auto_grows_from_batch_to_batch_while_the_device_has_room(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responders, "FIRST_BATCH_SIZE", 2)
    questions = [ask("Well?")] * 22

    def sizes(device: str, room: int) -> list[int]:
        model = SmallMemory(encoder, "ok###")
        model.room = room
        with monkeypatch.context() as patch:
            patch.setattr(ModelResponder, "_device", torch.device(device))
            responder = make_responder(model=model)
            patch.setattr(ModelResponder, "_device", torch.device("cpu"))  # here, tensors go nowhere else
            responder.respond(questions)
        return [len(batch["input_ids"]) for batch in model.batches]

    assert sizes("cuda", room=5) == [2, 4, 8, 4, 4, 4, 4]
    assert sizes("cpu", room=5) == [2] * 11


def test_features_stand_in_the_order_of_the_batch(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], pictures: Path, prompts: list[Prompt]
) -> None:
    model = ScriptedModel(encoder, "ok###")
    responder = make_responder(model=model)
    responder.respond(prompts[:2])
    longest_first = ["green.png", "red.png", "red.png"]
    expected = [
        responder.transform(load_image(Image(image_id=1, path=pictures / name))) for name in longest_first
    ]
    assert torch.equal(model.batches[0]["image_features"], torch.stack(expected).flatten(2))


def test_a_picture_is_encoded_once_for_all_prompts(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], prompts: list[Prompt]
) -> None:
    model = ScriptedModel(encoder, "ok###")
    responder = make_responder(model=model, batch_size=2)
    responder.respond(prompts)
    different = {image for prompt in prompts for image in prompt.images}
    assert model.num_encoded == len(different)
    responder.respond(prompts)
    assert model.num_encoded == len(different)


def test_features_of_a_cache_are_those_that_it_would_have_been_given(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], prompts: list[Prompt], tmp_path: Path
) -> None:
    def features() -> tuple[int, list[torch.Tensor]]:
        model = ScriptedModel(encoder, "ok###")
        cache = FeatureCache(tmp_path / "features", encoder_hash="abc", shape=(3, 16 * 16))
        make_responder(model=model, features=cache).respond(prompts)
        return model.num_encoded, [batch["image_features"] for batch in model.batches]

    (first_time, expected), (later, found) = features(), features()
    assert first_time > later == 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert expected[0].dtype == torch.float16


def test_generation_stops_at_the_stop_string_of_each_row(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], prompts: list[Prompt]
) -> None:
    full = make_responder().respond(prompts)
    stop = full[0].text[3:5]
    prompt_format = replace(MINIGPT4, end_of_answer=stop)
    stopping = Encoder(
        tokenizer=encoder.tokenizer,
        prompt_format=prompt_format,
        num_query_tokens=encoder.num_query_tokens,
        max_length=600,
    )
    cut = make_responder(encoder=stopping).respond(prompts)
    assert [response.text for response in cut] == [
        response.text.partition(stop)[0].strip() for response in full
    ]
    assert [response.truncated for response in cut] == [stop not in response.text for response in full]
    assert not all(response.truncated for response in cut)


@pytest.mark.parametrize(("gigabytes", "expected"), [(8, 256), (0.001, 16), (0, 1)])
def test_auto_takes_on_a_cpu_what_some_memory_holds(
    make_responder: Callable[..., ModelResponder],
    monkeypatch: pytest.MonkeyPatch,
    gigabytes: float,
    expected: int,
) -> None:
    monkeypatch.setattr(responders, "_BYTES_ON_CPU", int(gigabytes * 2**30))
    monkeypatch.setattr(responders, "bytes_of_a_token", lambda language: 64)
    assert make_responder().batch_size == expected


@pytest.mark.parametrize(
    ("said", "text", "truncated"),
    [
        (" Two cats.###Human: more", "Two cats.", False),
        ("No end", "No end", True),
        ("Ends</s>", "Ends", False),
    ],
)
def test_the_answer_ends_where_the_turn_ends(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], said: str, text: str, truncated: bool
) -> None:
    [response] = make_responder(model=ScriptedModel(encoder, said)).respond([ask("Well?")])
    assert (response.text, response.truncated) == (text, truncated)
    assert response.seconds > 0


@pytest.mark.parametrize("end", ["</s>", "<pad>"])
def test_an_answer_may_end_with_a_special_token(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], end: str
) -> None:
    ending = Encoder(
        tokenizer=encoder.tokenizer,
        prompt_format=replace(MINIGPT4, end_of_answer=end),
        num_query_tokens=encoder.num_query_tokens,
        max_length=600,
    )
    for said, truncated in ((f" Two cats.{end}", False), (" Two cats.", True)):
        [response] = make_responder(encoder=ending, model=ScriptedModel(encoder, said)).respond(
            [ask("Well?")]
        )
        assert (response.text, response.truncated) == ("Two cats.", truncated)


def test_the_original_spells_the_end_token_and_drops_what_precedes_a_repeated_role(
    encoder: Encoder, make_responder: Callable[..., ModelResponder]
) -> None:
    model = ScriptedModel(encoder, " Human: a Assistant: b Assistant: c</s>d")
    for switch, text in ((True, "c</s>"), (False, "Human: a Assistant: b Assistant: c")):
        [response] = make_responder(model=model, original_answer_text=switch).respond([ask("Well?")])
        assert (response.text, response.truncated) == (text, False)


def test_a_stop_string_is_found_in_each_row_however_tokens_divide_it(encoder: Encoder) -> None:
    rows = ["long before ###", "##", "not yet ## #", "###"]
    texts = [row.rjust(20) for row in rows]
    ids = torch.tensor(encoder.tokenizer(texts, add_special_tokens=False)["input_ids"])
    stop = StopStrings(["###", "and another"], encoder.tokenizer)
    assert stop(ids, None).tolist() == [True, False, False, True]


def test_batches_are_left_padded_and_of_similar_length(
    encoder: Encoder, make_responder: Callable[..., ModelResponder]
) -> None:
    model = ScriptedModel(encoder, "ok###")
    questions = [ask(text * 10) for text in ("a", "bbbb", "c", "dddd")]
    make_responder(model=model, batch_size=2).respond(questions)
    lengths = [batch["input_ids"].shape[1] for batch in model.batches]
    assert lengths == [lengths[1] + 30, lengths[1]]
    assert all(batch["attention_mask"][:, -1].all() for batch in model.batches)


def test_the_name_tells_weights_and_settings_apart(
    greedy: Mapping[str, Any], model: SparklesChat, make_responder: Callable[..., ModelResponder]
) -> None:
    name = make_responder().name
    assert make_responder(batch_size=3).name == name
    assert make_responder(seed=1).name != name
    assert make_responder(transform=ImageTransform(image_size=16, mean=(0.5, 0.5, 0.5))).name != name
    assert make_responder(generation={**greedy, "max_new_tokens": 9}).name != name
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.projector.parameters())[-1] += 1
    assert make_responder(model=other).name != name


def test_the_model_is_left_as_it_was(encoder: Encoder, make_responder: Callable[..., ModelResponder]) -> None:
    model = ScriptedModel(encoder, "ok###").train()
    responder: Responder = make_responder(model=model)
    responder.respond([ask("Well?")])
    assert model.training


def test_settings_without_a_limit_are_refused(make_responder: Callable[..., ModelResponder]) -> None:
    with pytest.raises(ValueError, match="sets no limit; add max_new_tokens"):
        make_responder(generation={"do_sample": False})
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make_responder(batch_size=0)
