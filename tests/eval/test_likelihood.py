from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoder, EncodingError
from sparkles.data.images import load_image
from sparkles.eval.answers import conclusion, parse_choice
from sparkles.eval.responders import ModelResponder
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import image_reference
from sparkles.types import IGNORE_INDEX, Image, Message, Prompt, Sample

MakeResponder = Callable[..., ModelResponder]
TRUTH, IMAGES = ("TRUE", "FALSE"), ("IMAGE#1", "IMAGE#2", "IMAGE#12")


def question(text: str, *paths: Path, options: tuple[str, ...] = TRUTH) -> Prompt:
    images = tuple(Image(image_id=number, path=path) for number, path in enumerate(paths, start=1))
    content = " ".join([text, *(image_reference(image.image_id) for image in images)])
    return Prompt(messages=(Message(role="user", content=content, images=images),), options=options)


@pytest.fixture
def prompts(pictures: Path) -> list[Prompt]:
    red, green = pictures / "red.png", pictures / "green.png"
    return [
        question("Short?", red),
        question("A much longer question about", green, red, options=IMAGES),
        question("Same?", green),
        question("Without any picture?"),
        question("Which?", red, green, options=IMAGES),
    ]


def answer_loss(
    model: SparklesChat, encoder: Encoder, responder: ModelResponder, prompt: Prompt, option: str
) -> float:
    """The training loss of the option's sentence, summed over its tokens, with the system message in front."""
    trained = Encoder(
        tokenizer=encoder.tokenizer,
        prompt_format=encoder.prompt_format,
        num_query_tokens=encoder.num_query_tokens,
        max_length=encoder.max_length,
        system_in_training=True,
    ).encode_sample(Sample(prompt=prompt, answer=conclusion(option)))
    pixels = [responder.transform(load_image(image)) for image in trained.images]
    batch = pad_batch([trained], pixels, pad_token_id=encoder.pad_token_id, side="right")
    with torch.no_grad():
        return float(model(batch)) * int((batch["labels"] != IGNORE_INDEX).sum())


def test_options_differ_by_the_loss_that_training_would_have(
    model: SparklesChat, encoder: Encoder, make_responder: MakeResponder, prompts: list[Prompt]
) -> None:
    responder = make_responder(batch_size=2)
    for prompt, response in zip(prompts, responder.respond(prompts), strict=True):
        losses = {option: answer_loss(model, encoder, responder, prompt, option) for option in prompt.options}
        likeliest = min(losses, key=losses.__getitem__)
        for option, loss in losses.items():
            # What the sentences begin with in common is left out of all of them.
            difference = response.log_probs[option] - response.log_probs[likeliest]
            assert difference == pytest.approx(losses[likeliest] - loss, abs=1e-3)
        assert response.text == conclusion(likeliest)
        assert parse_choice(response.text, prompt.options) == likeliest
        assert response.seconds > 0


def test_probabilities_depend_neither_on_batch_size_nor_on_order(
    make_responder: MakeResponder, prompts: list[Prompt]
) -> None:
    same_number = [replace(prompt, options=TRUTH) for prompt in prompts]
    alone = [make_responder(batch_size=1).respond([prompt])[0].log_probs for prompt in same_number]
    together = make_responder(batch_size=5).respond(same_number[::-1])
    for response, expected in zip(together[::-1], alone, strict=True):
        assert response.log_probs == pytest.approx(expected, abs=1e-4)
    assert len({round(found["TRUE"], 3) for found in alone}) == len(prompts)


def test_pictures_are_encoded_once_and_nothing_is_generated(
    model: SparklesChat, make_responder: MakeResponder, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = model.encode_images

    def count(pixel_values: torch.Tensor) -> torch.Tensor:
        encoded.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(model, "encode_images", count)
    monkeypatch.setattr(model, "generate", None)
    make_responder().respond([prompts[0], prompts[2]])
    assert encoded == [2]


def test_prompts_with_and_without_options_may_come_together(
    make_responder: MakeResponder, prompts: list[Prompt]
) -> None:
    mixed = [prompts[0], replace(prompts[0], options=()), prompts[1]]
    chosen, spoken, other = make_responder().respond(mixed)
    assert set(chosen.log_probs) == set(TRUTH)
    assert spoken.log_probs == {}
    assert set(other.log_probs) == set(IMAGES)


def test_an_answer_without_room_behind_the_prompt_is_refused(
    encoder: Encoder, make_responder: MakeResponder, prompts: list[Prompt]
) -> None:
    length = len(encoder.encode_prompt(prompts[0]).input_ids)
    tight = Encoder(
        tokenizer=encoder.tokenizer,
        prompt_format=encoder.prompt_format,
        num_query_tokens=encoder.num_query_tokens,
        max_length=length,
    )
    with pytest.raises(EncodingError, match="no room for an answer behind the prompt"):
        make_responder(encoder=tight).respond(prompts[:1])
