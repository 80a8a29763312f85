from dataclasses import replace
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sparkles.prompt_format import MINIGPT4, PromptFormat, PromptFormatError, image_reference
from sparkles.types import Image, Message

CONF = Path(__file__).parents[1] / "conf" / "prompt_format"
FORMATS = ["minigpt4", "chatml", "vicuna_v11"]


def load(name: str) -> PromptFormat:
    prompt_format: PromptFormat = instantiate(OmegaConf.load(CONF / f"{name}.yaml"))
    return prompt_format


def show(image_id: int) -> Message:
    return Message(
        role="user", content=f"and {image_reference(image_id)}?", images=(Image(image_id=image_id),)
    )


def say(content: str) -> Message:
    return Message(role="assistant", content=content)


def test_the_default_of_the_configuration_is_the_format_of_the_paper() -> None:
    assert load("minigpt4") == MINIGPT4


def test_vicuna_is_spoken_to_as_it_was_trained() -> None:
    vicuna = load("vicuna_v11")
    messages = [Message(role="user", content="a?"), say("b."), Message(role="user", content="c?")]
    assert vicuna.render_prompt(messages, system=False) == "USER: a? ASSISTANT: b.</s>USER: c? ASSISTANT:"
    assert vicuna.render_prompt(messages[:1], system=True).endswith("user's questions. USER: a? ASSISTANT:")
    assert vicuna.render_answer("d.") == " d.</s>"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("num_turns", [1, 2, 5])
def test_a_rendered_prompt_is_parsed_back(name: str, num_turns: int) -> None:
    messages: tuple[Message, ...] = (Message(role="user", content="Without any image."),)
    for turn in range(1, num_turns):
        messages += (say(f"It is {turn}."), show(turn))
    text = load(name).render_prompt(messages, system=False)
    images = [image for message in messages for image in message.images]
    assert load(name).parse_prompt(text, images) == messages


@pytest.mark.parametrize(
    "answer", [say(f"See {image_reference(3)}."), replace(say("See it."), images=(Image(image_id=3),))]
)
def test_an_image_in_an_answer_is_refused(answer: Message) -> None:
    with pytest.raises(PromptFormatError, match="message 1: an assistant message shows an image"):
        MINIGPT4.render_prompt([show(1), answer, show(2)], system=False)


def test_an_image_in_an_answer_of_a_file_is_refused() -> None:
    text = f"###Human: a###Assistant: see {image_reference(3)}###Human: b###Assistant:"
    with pytest.raises(PromptFormatError, match="message 1: an assistant message shows an image"):
        MINIGPT4.parse_prompt(text, [Image(image_id=3)])


@pytest.mark.parametrize("messages", [(), (say("a"),), (show(1), say("a")), (show(1), show(2), show(3))])
def test_messages_out_of_order_are_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(PromptFormatError, match="messages must alternate and end with user"):
        MINIGPT4.render_prompt(messages, system=False)
