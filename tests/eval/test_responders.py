import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparkles.data.encoding import Encoder
from sparkles.data.images import ImageTransform, load_image
from sparkles.eval.responders import ModelResponder, StopStrings
from sparkles.models.projector import Projector
from sparkles.models.qformer import QFormer
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.models.vision import VisionEncoder
from sparkles.prompt_format import MINIGPT4, image_reference
from sparkles.types import Image, Message, Prompt, Responder

IMAGE_SIZE, NUM_QUERIES = 16, 2
GREEDY = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [0, 1, 2]}
"""Random weights choose any token; without the special ones every answer has its full length."""


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """One character, one token."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *map(chr, range(32, 127))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="?"
    )
    return Encoder(tokenizer=tokenizer, prompt_format=MINIGPT4, num_query_tokens=NUM_QUERIES, max_length=600)


@pytest.fixture(scope="module")
def model() -> SparklesChat:
    torch.manual_seed(0)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=98,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.3,  # enough for greedy choices that differ from token to token
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    return SparklesChat(
        vision=VisionEncoder(
            name="vit_tiny_patch16_224", img_size=IMAGE_SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=2
        ),
        qformer=QFormer(
            vision_hidden_size=24,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            num_query_tokens=NUM_QUERIES,
        ),
        projector=Projector(in_features=16, out_features=32),
        language=language,
    )


@pytest.fixture
def make_responder(model: SparklesChat, encoder: Encoder) -> Callable[..., ModelResponder]:
    def make(**options: Any) -> ModelResponder:
        transform = ImageTransform(image_size=IMAGE_SIZE)
        return ModelResponder(
            **{"model": model, "encoder": encoder, "transform": transform, "generation": GREEDY} | options
        )

    return make


class ScriptedModel(nn.Module):
    """Says the same text to everyone, as a row of ids; keeps the batches that it got."""

    def __init__(self, encoder: Encoder, text: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.new_ids = torch.tensor(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
        self.batches: list[Mapping[str, torch.Tensor]] = []

    def generate(self, batch: Mapping[str, torch.Tensor], **generation: Any) -> torch.Tensor:
        self.batches.append(batch)
        return self.new_ids.expand(len(batch["input_ids"]), -1)


def ask(text: str, *paths: Path) -> Prompt:
    images = tuple(Image(image_id=i, path=path) for i, path in enumerate(paths, start=1))
    content = " ".join([text, *(image_reference(image.image_id) for image in images)])
    return Prompt(messages=(Message(role="user", content=content, images=images),))


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


def test_answers_depend_neither_on_batch_size_nor_on_order(
    make_responder: Callable[..., ModelResponder], prompts: list[Prompt]
) -> None:
    alone = [make_responder(batch_size=1).respond([prompt])[0].text for prompt in prompts]
    assert len(set(alone)) > 1, "a test of order needs answers that differ"
    together = make_responder(batch_size=3)
    assert [response.text for response in together.respond(prompts)] == alone
    assert [response.text for response in together.respond(prompts[::-1])] == alone[::-1]


def test_pixels_stand_in_the_order_of_the_batch(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], pictures: Path, prompts: list[Prompt]
) -> None:
    model = ScriptedModel(encoder, "ok###")
    responder = make_responder(model=model)
    responder.respond(prompts[:2])
    longest_first = ["green.png", "red.png", "red.png"]
    expected = [
        responder.transform(load_image(Image(image_id=1, path=pictures / name))) for name in longest_first
    ]
    assert torch.equal(model.batches[0]["pixel_values"], torch.stack(expected))


def test_blank_pictures_keep_their_slots_and_lose_their_pixels(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], prompts: list[Prompt]
) -> None:
    seen, blank = ScriptedModel(encoder, "ok###"), ScriptedModel(encoder, "ok###")
    make_responder(model=seen).respond(prompts)
    make_responder(model=blank, blank_images=True).respond(prompts)
    assert torch.equal(seen.batches[0]["input_ids"], blank.batches[0]["input_ids"])
    assert torch.equal(blank.batches[0]["pixel_values"], torch.zeros_like(seen.batches[0]["pixel_values"]))


def test_generation_stops_at_the_stop_string_of_each_row(
    encoder: Encoder, make_responder: Callable[..., ModelResponder], prompts: list[Prompt]
) -> None:
    full = make_responder().respond(prompts)
    stop = full[0].text[3:5]
    prompt_format = replace(MINIGPT4, end_of_answer=stop)
    stopping = Encoder(
        tokenizer=encoder.tokenizer, prompt_format=prompt_format, num_query_tokens=NUM_QUERIES, max_length=600
    )
    cut = make_responder(encoder=stopping).respond(prompts)
    assert [response.text for response in cut] == [
        response.text.partition(stop)[0].strip() for response in full
    ]
    assert [response.truncated for response in cut] == [stop not in response.text for response in full]
    assert not all(response.truncated for response in cut)


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
        num_query_tokens=NUM_QUERIES,
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
    model: SparklesChat, make_responder: Callable[..., ModelResponder]
) -> None:
    name = make_responder().name
    assert make_responder(batch_size=3).name == name
    assert make_responder(blank_images=True).name != name
    assert make_responder(transform=ImageTransform(image_size=IMAGE_SIZE, mean=(0.5, 0.5, 0.5))).name != name
    assert make_responder(generation=GREEDY | {"max_new_tokens": 9}).name != name
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
