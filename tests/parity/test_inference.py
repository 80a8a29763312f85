"""The original's chat: prompts, what the language model is shown, and what it generates from that."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoder, EncodingError, Tokenizer
from sparkles.data.images import ImageTransform, load_image
from sparkles.eval.choosing import StopStrings
from sparkles.eval.responders import ModelResponder
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import IMAGE_PLACEHOLDER, IMAGE_TAG, MINIGPT4, PromptFormatError
from sparkles.types import IMAGE_TOKEN_ID, Image, Message, Prompt

AssertWithin = Callable[[float, Tensor, Tensor], None]
Batch = dict[str, Tensor]
Turn = dict[str, Any]
SPECIALS = ("<s>", "</s>", "<unk>")
ROLES = {"Human": "user", "Assistant": "assistant"}


@pytest.fixture(scope="module")
def inference(records: Callable[[str], Any]) -> dict[str, Any]:
    return records("inference")


@pytest.fixture(scope="module")
def expected(tensors: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return tensors("inference")


def messages_of(pairs: Sequence[tuple[str, str | None]], images: Sequence[Image] = ()) -> tuple[Message, ...]:
    """The messages of a recorded chat up to the answer that it waits for."""
    remaining = iter(images)
    return tuple(
        Message(
            role=ROLES[role],  # type: ignore[arg-type]
            content=content,
            images=tuple(itertools.islice(remaining, content.count(IMAGE_PLACEHOLDER))),
        )
        for role, content in pairs[:-1]
        if content is not None
    )


@pytest.fixture(scope="module")
def turns(inference: dict[str, Any], golden: Path) -> dict[str, tuple[Turn, Prompt, dict[str, Any]]]:
    """Every recorded turn by the name of its tensors, with its prompt and the settings of its chat."""
    found = {}
    for name, chat in inference["chats"].items():
        images: list[Image] = []
        for number, turn in enumerate(chat["turns"]):
            images += [Image(image_id=file, path=golden / "images" / file) for file in turn["images"]]
            prompt = Prompt(messages=messages_of(turn["messages_after"], images), item_id=name)
            found[f"{name}/turn{number}"] = (turn, prompt, chat)
    return found


@pytest.fixture(scope="module")
def first_turn(turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]]) -> Callable[[str], Prompt]:
    return lambda chat: turns[f"{chat}/turn0"][1]


@pytest.fixture(scope="module")
def transform(meta: dict[str, Any]) -> ImageTransform:
    return ImageTransform(image_size=meta["dims"]["img"])


@pytest.fixture(scope="module")
def make_batch(
    make_encoder: Callable[..., Encoder], transform: ImageTransform, meta: dict[str, Any]
) -> Callable[..., Batch]:
    """make_batch(prompt, max_length=70): what the model generates from, as the original cuts it to the limit."""

    def make(prompt: Prompt, **settings: Any) -> Batch:
        encoded = make_encoder(**{"max_length": 2000, "cut_anywhere": True} | settings).encode_prompt(prompt)
        pixels = [transform(load_image(image)) for image in encoded.images]
        return pad_batch([encoded], pixels, pad_token_id=meta["pad_token_id"], side="left")

    return make


def room_of(chat: dict[str, Any]) -> dict[str, int]:
    """What the original leaves to the prompt."""
    return {"max_length": chat["max_length"] - chat["max_new_tokens"]}


def seen_embeddings(model: SparklesChat, batch: Batch) -> Tensor:
    """float[1, T, D_lm] of the visible tokens."""
    with torch.no_grad():
        embeds = model.embed(batch["input_ids"], batch["pixel_values"])
    return embeds[batch["attention_mask"] == 1][None]


def test_the_prompt_format_is_that_of_the_original(inference: dict[str, Any]) -> None:
    (human, assistant), separator = inference["roles"], inference["sep"]
    assert MINIGPT4.system_message == inference["system_message"]
    assert MINIGPT4.user_prefix == f"{separator}{human}: "
    assert MINIGPT4.assistant_prefix == f"{separator}{assistant}:"
    assert MINIGPT4.stop_strings == (separator,)


def test_prompts_are_those_of_the_original(
    turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]], inference: dict[str, Any]
) -> None:
    for turn, prompt, _ in turns.values():
        assert MINIGPT4.render_prompt(prompt.messages, system=True) == turn["prompt"]
    spoken = [
        case for case in inference["get_prompt"] if all(content != "" for _, content in case["messages"])
    ]
    assert spoken
    for case in spoken:
        assert MINIGPT4.render_prompt(messages_of(case["messages"]), system=True) == case["prompt"]


def test_an_empty_message_keeps_its_place_where_the_original_loses_the_separator(
    inference: dict[str, Any],
) -> None:
    for case in inference["get_prompt"]:
        if any(content == "" for _, content in case["messages"]):
            ours = MINIGPT4.render_prompt(messages_of(case["messages"]), system=True)
            assert (
                ours
                == MINIGPT4.system_message + MINIGPT4.user_prefix + MINIGPT4.assistant_prefix
                != case["prompt"]
            )


def test_unmatched_images_are_refused_as_by_the_original(inference: dict[str, Any]) -> None:
    for case in inference["mismatch"]:
        assert "Unmatched numbers" in case["error"]
        content = case["text"].replace("⭐", IMAGE_TAG)
        images = tuple(Image(image_id=place) for place in range(case["images"]))
        with pytest.raises(PromptFormatError, match=rf"1 image tags in the text but {case['images']} images"):
            MINIGPT4.render_prompt([Message(role="user", content=content, images=images)], system=True)


def test_segments_between_images_have_the_ids_of_the_original(
    turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]],
    make_encoder: Callable[..., Encoder],
    meta: dict[str, Any],
    subtests: pytest.Subtests,
) -> None:
    slots = [IMAGE_TOKEN_ID] * meta["dims"]["num_query"]
    for name, (turn, prompt, _) in turns.items():
        with subtests.test(name):
            ids = list(turn["segment_ids"][0])
            for segment in turn["segment_ids"][1:]:
                ids += slots + segment
            assert make_encoder().encode_prompt(prompt).input_ids == ids


def test_what_the_language_model_is_shown_is_that_of_the_original(
    original: SparklesChat,
    turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]],
    expected: dict[str, Tensor],
    make_batch: Callable[..., Batch],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for name, (_, prompt, chat) in turns.items():
        with subtests.test(name):
            context = expected[f"{name}/context_emb"]
            assert_within(1e-5, seen_embeddings(original, make_batch(prompt)), context)
            cut = expected.get(f"{name}/generate_inputs_embeds", context)
            assert_within(1e-5, seen_embeddings(original, make_batch(prompt, **room_of(chat))), cut)


def test_a_prompt_over_the_limit_loses_its_front_as_in_the_original(
    turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]], make_encoder: Callable[..., Encoder]
) -> None:
    warned = [name for name, (turn, _, _) in turns.items() if turn["warning_label"]]
    assert warned
    for name, (_, prompt, chat) in turns.items():
        encoded = make_encoder(**room_of(chat), cut_anywhere=True).encode_prompt(prompt)
        assert bool(encoded.dropped_tokens) == (name in warned)


def test_by_default_a_turn_over_the_limit_is_refused_rather_than_beheaded(
    turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]], make_encoder: Callable[..., Encoder]
) -> None:
    for turn, prompt, chat in turns.values():
        if turn["warning_label"]:
            with pytest.raises(EncodingError, match="the last turn alone needs"):
                make_encoder(**room_of(chat)).encode_prompt(prompt)


def test_greedy_ids_and_logits_of_every_step_are_those_of_the_original(
    original: SparklesChat,
    turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]],
    expected: dict[str, Tensor],
    make_batch: Callable[..., Batch],
    meta: dict[str, Any],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for name, (turn, prompt, chat) in turns.items():
        with subtests.test(name):
            output: Any = original.generate(
                make_batch(prompt, **room_of(chat)),
                max_new_tokens=chat["max_new_tokens"],
                do_sample=False,
                pad_token_id=meta["pad_token_id"],
                output_logits=True,
                return_dict_in_generate=True,
            )
            # The recorded ids begin with a BOS that the original's library puts there.
            assert output.sequences[0].tolist() == turn["raw_generated_ids"][1:] == turn["output_token"]
            logits = torch.cat(output.logits)  # [S, V]
            assert_within(1e-5, logits[0], expected[f"{name}/first_step_logits"])
            if f"{name}/all_step_logits" in expected:
                assert_within(1e-5, logits, expected[f"{name}/all_step_logits"])
            first, second = logits.topk(2).values.unbind(dim=1)
            tolerance = 2e-5 * float(logits.abs().max()) + 1e-5  # the records are rounded to five places
            assert (first - second).tolist() == pytest.approx(turn["step_top1_top2_margin"], abs=tolerance)
            assert float((first - second).min()) == pytest.approx(turn["min_top1_top2_margin"], abs=tolerance)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("original_answer_text", [False, True])
def test_greedy_answers_are_those_of_the_original(
    batch_size: int,
    original_answer_text: bool,
    original: SparklesChat,
    turns: dict[str, tuple[Turn, Prompt, dict[str, Any]]],
    make_encoder: Callable[..., Encoder],
    image_tokenizer: Tokenizer,
    transform: ImageTransform,
) -> None:
    for (limit, new), chosen in itertools.groupby(
        turns.values(), key=lambda found: (found[2]["max_length"], found[2]["max_new_tokens"])
    ):
        group = list(chosen)
        responder = ModelResponder(
            model=original,
            encoder=make_encoder(tokenizer=image_tokenizer, max_length=limit - new, cut_anywhere=True),
            transform=transform,
            generation={"max_new_tokens": new, "do_sample": False},
            batch_size=batch_size,
            original_answer_text=original_answer_text,
        )
        responses = responder.respond([prompt for _, prompt, _ in group])
        for response, (turn, _, _) in zip(responses, group, strict=True):
            spells_specials = any(special in turn["output_text"] for special in SPECIALS)
            if original_answer_text or not spells_specials:
                assert response.text == turn["output_text"]


class OneCharacterPerToken:
    """Spells every id as one character, so that stopping at a string is stopping at ids, as the original does."""

    bos_token_id = eos_token_id = pad_token_id = None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) - 0x4E00 for character in one] for one in text]}

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(chr(0x4E00 + token_id) for token_id in token_ids)


def test_generation_stops_where_the_original_stops(
    original: SparklesChat,
    inference: dict[str, Any],
    first_turn: Callable[[str], Prompt],
    make_batch: Callable[..., Batch],
    tokenizer: Tokenizer,
    meta: dict[str, Any],
    subtests: pytest.Subtests,
) -> None:
    spelling = OneCharacterPerToken()
    for case in inference["stop"]:
        with subtests.test(chat=case["chat"], stops=case["stops"]):
            new_ids = original.generate(
                make_batch(first_turn(case["chat"])),
                max_new_tokens=inference["chats"][case["chat"]]["max_new_tokens"],
                do_sample=False,
                pad_token_id=meta["pad_token_id"],
                stopping_criteria=[StopStrings([spelling.decode(ids) for ids in case["stops"]], spelling)],
            )
            assert new_ids[0].tolist() == case["raw_generated_ids"][1:] == case["output_token"]
            assert tokenizer.decode(new_ids[0].tolist()).strip() == case["output_text"]


def test_beam_search_finds_what_the_original_finds(
    original: SparklesChat,
    inference: dict[str, Any],
    first_turn: Callable[[str], Prompt],
    make_batch: Callable[..., Batch],
    tokenizer: Tokenizer,
    meta: dict[str, Any],
) -> None:
    beam = inference["beam"]
    new_ids = original.generate(
        make_batch(first_turn(beam["chat"])),
        pad_token_id=meta["pad_token_id"],
        **{key: beam[key] for key in ("num_beams", "do_sample", "max_new_tokens")},
    )
    assert new_ids[0].tolist() == beam["raw_generated_ids"][1:]
    assert tokenizer.decode(new_ids[0].tolist()).strip() == beam["output_text"]


def test_samples_are_drawn_from_the_probabilities_of_the_original(
    original: SparklesChat,
    inference: dict[str, Any],
    expected: dict[str, Tensor],
    first_turn: Callable[[str], Prompt],
    make_batch: Callable[..., Batch],
    meta: dict[str, Any],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for case in inference["sampling"]:
        with subtests.test(case["args"]):
            settings = {
                key: case["args"][key] for key in ("do_sample", "max_new_tokens", "temperature", "top_p")
            }
            # Hidden in the original: its library cuts to 50 tokens unless told not to.
            settings["top_k"] = dict(case["warpers_in_order"])["TopKLogitsWarper"]["top_k"]
            output: Any = original.generate(
                make_batch(first_turn(case["chat"])),
                pad_token_id=meta["pad_token_id"],
                output_scores=True,
                return_dict_in_generate=True,
                **settings,
            )
            probabilities = output.scores[0][0].softmax(dim=-1)
            assert int((probabilities > 0).sum()) == case["nonzero"]
            assert_within(1e-5, probabilities, expected[case["tensor"]])


class Canned(nn.Module):
    """Says the same ids to everyone."""

    def __init__(self, token_ids: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.new_ids = torch.tensor([token_ids])

    def generate(self, batch: Mapping[str, Tensor], **generation: Any) -> Tensor:
        return self.new_ids


@pytest.fixture(scope="module")
def answer_text(
    make_encoder: Callable[..., Encoder], image_tokenizer: Tokenizer, transform: ImageTransform
) -> Callable[..., str]:
    """answer_text([1, 2], original_answer_text=True): the answer that is read from generated ids."""
    hello = Prompt(messages=(Message(role="user", content="Hello"),))

    def read(token_ids: list[int], **switches: bool) -> str:
        responder = ModelResponder(
            model=Canned(token_ids),
            encoder=make_encoder(tokenizer=image_tokenizer),
            transform=transform,
            generation={"max_new_tokens": 1},
            **switches,  # type: ignore[arg-type]
        )
        return responder.respond([hello])[0].text

    return read


def test_answers_are_taken_out_of_generated_ids_as_by_the_original(
    inference: dict[str, Any], answer_text: Callable[..., str]
) -> None:
    texts = [
        answer_text(case["output_token"], original_answer_text=True)
        for case in inference["answer_postprocess"]
    ]
    assert texts == [case["output_text"] for case in inference["answer_postprocess"]]


def test_by_default_no_special_token_is_spelled_in_an_answer(
    inference: dict[str, Any], answer_text: Callable[..., str]
) -> None:
    spelled = [
        case for case in inference["answer_postprocess"] if any(s in case["output_text"] for s in SPECIALS)
    ]
    assert spelled
    for case in spelled:
        expected = case["output_text"]
        for special in SPECIALS:
            expected = expected.replace(special, "")
        assert answer_text(case["output_token"]) == expected.strip()
