import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sparkles.eval.answers import parse_choice
from sparkles.models.language import load_language_model
from sparkles.nano import text_reference
from sparkles.nano.corpus import question
from sparkles.nano.language import BISON_KINDS, STATEMENTS, caption, parse_caption
from sparkles.nano.pretrain_language import build_language_model
from sparkles.nano.text_reference import TextReference, accuracy_by_kind
from sparkles.nano.world import Scene, Split
from sparkles.prompt_format import image_reference
from sparkles.types import Image, Message, Prompt, Responder, Response

SHIPPED = Path(text_reference.__file__).parent / "weights" / "language"
KINDS = [*BISON_KINDS, *STATEMENTS]


@pytest.fixture(scope="module")
def reference(nano_tokenizer: PreTrainedTokenizerBase) -> TextReference:
    torch.manual_seed(3)
    language = build_language_model(len(nano_tokenizer))
    with torch.no_grad():
        language.lm_head.weight.mul_(30)  # no near ties, which rounding could turn over
    return TextReference(language, nano_tokenizer, max_new_tokens=5)


def a_prompt(kind: str, split: Split = "train") -> tuple[Prompt, str]:
    """A question with captions for its images, and the true answer."""
    conversation = question(kind, random.Random(kind), split)
    asked, said = conversation.messages
    images = tuple(
        replace(image, caption=caption(scene))
        for image, scene in zip(asked.images, conversation.scenes, strict=True)
    )
    return Prompt(messages=(replace(asked, images=images),)), said.content


def texts(responses: Sequence[Response]) -> list[str]:
    return [response.text for response in responses]


def test_it_is_a_responder_whose_answers_do_not_depend_on_batch_or_order(reference: TextReference) -> None:
    assert isinstance(reference, Responder)
    prompts = [a_prompt(kind)[0] for kind in KINDS[2:7]]
    alone = [texts(reference.respond([prompt]))[0] for prompt in prompts]
    assert len(set(alone)) > 1
    assert texts(reference.respond(prompts)) == alone
    assert texts(reference.respond(prompts[::-1])) == alone[::-1]
    reference.batch_size = 2
    assert texts(reference.respond(prompts)) == alone


def test_a_picture_without_caption_is_refused(reference: TextReference) -> None:
    blind = replace(a_prompt("color")[0].messages[0], images=(Image(image_id=1), Image(image_id=2)))
    with pytest.raises(ValueError, match="not a caption of the scenes world: ''"):
        reference.respond([Prompt(messages=(blind,))])


def test_a_question_without_pictures_is_answered(reference: TextReference) -> None:
    (response,) = reference.respond([Prompt(messages=(Message(role="user", content="Hello."),))])
    assert response.truncated  # after five tokens
    assert "###" not in response.text


@dataclass
class Constant:
    """Always says the same."""

    text: str
    name: str = "constant"
    asked: list[Prompt] = field(default_factory=list)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [Response(text=self.text) for _ in prompts]


def test_who_answers_nothing_readable_is_never_right() -> None:
    assert accuracy_by_kind(Constant("No idea."), num=3) == dict.fromkeys(KINDS, 0.0)


def test_who_always_says_the_first_option_is_right_where_it_is_the_label() -> None:
    constant = Constant("Therefore, the answer is IMAGE#1. Therefore, the answer is TRUE.")
    accuracies = accuracy_by_kind(constant, num=20, seed=1)
    for kind in STATEMENTS:
        rng = random.Random(f"1/{kind}")
        answers = [question(kind, rng, "eval").messages[1].content for _ in range(20)]
        true = sum(parse_choice(answer, ["TRUE", "FALSE"]) == "TRUE" for answer in answers)
        assert accuracies[kind] == 100 * true / 20
    assert {parse_caption(image.caption).split for prompt in constant.asked for image in prompt.images} == {
        "eval"
    }


# --- what ships


@pytest.fixture(scope="module")
def shipped() -> TextReference:
    return TextReference(load_language_model(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED))


def test_the_weights_that_ship_say_what_the_captions_say(
    shipped: TextReference, two_scenes: dict[str, Scene]
) -> None:
    described = [caption(scene) for scene in two_scenes.values()]
    content = f"Describe {image_reference(1)}."
    asked = [
        Message(role="user", content=content, images=(Image(image_id=1, caption=text),)) for text in described
    ]
    responses = shipped.respond([Prompt(messages=(message,)) for message in asked])
    assert texts(responses) == [f"IMAGE#1 has {text}" for text in described]
    assert not any(response.truncated for response in responses)


def test_the_weights_that_ship_know_every_kind_of_question(shipped: TextReference) -> None:
    """One question of each, so that neither the language nor the prompts change without new weights."""
    asked = [a_prompt(kind, "eval") for kind in KINDS]
    options = [["IMAGE#1", "IMAGE#2"] if kind in BISON_KINDS else ["TRUE", "FALSE"] for kind in KINDS]
    responses = shipped.respond([prompt for prompt, _ in asked])
    wrong = [
        kind
        for kind, response, (_, label), choices in zip(KINDS, responses, asked, options, strict=True)
        if parse_choice(response.text, choices) != parse_choice(label, choices)
    ]
    assert len(wrong) <= 1, wrong


def test_the_weights_that_ship_have_passed_the_gate() -> None:
    accuracy = json.loads((SHIPPED.parent / "gate.json").read_text())["accuracy"]
    assert accuracy.keys() == set(KINDS)
    assert min(accuracy.values()) >= 97
