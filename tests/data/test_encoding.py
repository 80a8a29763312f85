import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from sparkles.data.annotations import samples_of
from sparkles.data.encoding import Encoder, EncodingError
from sparkles.prompt_format import MINIGPT4, PromptFormatError
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID, Dialogue, Message, Prompt, Sample

SLOTS = [IMAGE_TOKEN_ID] * 3


def codes(text: str) -> list[int]:
    return [ord(character) for character in text]


def loss_text(encoder: Encoder, sample: Sample) -> str:
    labels = encoder.encode_sample(sample).labels or []
    return encoder.tokenizer.decode([label for label in labels if label != IGNORE_INDEX])


def test_images_become_slots_and_loss_is_on_the_answer(
    make_encoder: Callable[..., Encoder], user: Callable[..., Message]
) -> None:
    encoder = make_encoder()
    encoded = encoder.encode_sample(Sample(prompt=Prompt(messages=(user("what is", 7),)), answer="A cat."))
    prompt = [1, *codes("###Human: what is IMAGE#7<Img>"), *SLOTS, *codes("</Img>###Assistant:")]
    assert encoded.input_ids == prompt + codes(" A cat.###")
    assert encoded.labels == [IGNORE_INDEX] * len(prompt) + codes(" A cat.###")
    assert [image.image_id for image in encoded.images] == [7]


def test_earlier_answers_carry_no_loss(make_encoder: Callable[..., Encoder], dialogue: Dialogue) -> None:
    assert [loss_text(make_encoder(), sample) for sample in samples_of(dialogue)] == [
        " IMAGE#7 is larger.###",
        " It is small.###",
    ]


def test_weights_put_the_loss_of_an_earlier_answer_where_its_own_sample_has_it(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    first, last = samples_of(dialogue)
    encoder = make_encoder()
    own, alone, joint = (
        encoder.encode_sample(first),
        encoder.encode_sample(last),
        encoder.encode_sample(last, [2]),
    )
    assert joint.input_ids == alone.input_ids
    assert own.labels
    assert alone.labels
    assert joint.labels
    assert joint.loss_weights
    split = len(own.labels)
    assert joint.labels[:split] == own.labels
    assert joint.labels[split:] == alone.labels[split:]
    weight_of = {
        (label != IGNORE_INDEX, place < split): w
        for place, (label, w) in enumerate(zip(joint.labels, joint.loss_weights, strict=True))
    }
    assert (weight_of[True, True], weight_of[True, False]) == (2, 1)


def test_an_earlier_answer_of_weight_0_is_not_learnt(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    last = samples_of(dialogue)[-1]
    assert make_encoder().encode_sample(last, [0]).labels == make_encoder().encode_sample(last).labels


def test_the_weight_of_a_turn_that_is_dropped_goes_with_it(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    last = samples_of(dialogue)[-1]
    prompt_length = len(make_encoder().encode_prompt(last.prompt, system=False).input_ids)
    cut = make_encoder(max_length=prompt_length).encode_sample(last, [2])
    assert cut.dropped_turns == 1
    assert cut.loss_weights is not None
    assert set(cut.loss_weights) == {1.0}


def test_weights_must_be_as_many_as_the_earlier_answers(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    with pytest.raises(EncodingError, match=r"loss weights \(2, 2\) .* a prompt that has 1; earlier_turns"):
        make_encoder().encode_sample(samples_of(dialogue)[-1], [2, 2])


def test_white_space_is_dropped_beside_an_image_only(
    make_encoder: Callable[..., Encoder], user: Callable[..., Message]
) -> None:
    message = dataclasses.replace(user("", 1, 2), content=" a \n<ImageHere>\n\n b <ImageHere>  ")
    encoded = make_encoder().encode_prompt(Prompt(messages=(message,)), system=False)
    expected = [1, *codes("###Human:  a"), *SLOTS, *codes("b"), *SLOTS, *codes("###Assistant:")]
    assert encoded.input_ids == expected


def test_a_prompt_begins_with_the_system_message_and_has_no_labels(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    encoder = make_encoder()
    prompt = Prompt(messages=dialogue.messages[:1])
    encoded = encoder.encode_prompt(prompt)
    assert encoded.labels is None
    plain = encoder.encode_prompt(prompt, system=False).input_ids
    assert encoded.input_ids == [1, *codes(MINIGPT4.system_message), *plain[1:]]


def test_a_text_without_images_has_no_slots(
    make_encoder: Callable[..., Encoder], user: Callable[..., Message]
) -> None:
    encoded = make_encoder().encode_prompt(Prompt(messages=(user("hello"),)))
    assert IMAGE_TOKEN_ID not in encoded.input_ids
    assert encoded.images == ()


def test_a_format_without_bos_starts_with_text(
    make_encoder: Callable[..., Encoder], user: Callable[..., Message]
) -> None:
    encoder = make_encoder(prompt_format=dataclasses.replace(MINIGPT4, add_bos=False))
    assert encoder.encode_prompt(Prompt(messages=(user("hello"),))).input_ids[0] == ord("G")


def test_a_token_across_the_seam_of_prompt_and_answer_belongs_to_the_answer(
    make_encoder: Callable[..., Encoder], tokenizer: Any, user: Callable[..., Message]
) -> None:
    class Merging(type(tokenizer)):  # type: ignore[misc]
        def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [codes(segment.replace(": A", "\u2603")) for segment in text]}

    encoded = make_encoder(tokenizer=Merging()).encode_sample(
        Sample(prompt=Prompt(messages=(user("q"),)), answer="Ah.")
    )
    assert encoded.labels is not None
    first = next(label for label in encoded.labels if label != IGNORE_INDEX)
    assert first == ord("\u2603")


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_long_sample_loses_the_end_of_its_answer(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue, cut: int
) -> None:
    sample = samples_of(dialogue)[0]
    whole = make_encoder().encode_sample(sample)
    encoded = make_encoder(max_length=len(whole.input_ids) - cut).encode_sample(sample)
    assert encoded.input_ids == whole.input_ids[:-cut]
    assert whole.labels
    assert encoded.labels == whole.labels[:-cut]
    assert encoded.dropped_tokens == cut


def test_a_long_prompt_loses_its_oldest_turns_with_their_images(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    sample = samples_of(dialogue)[1]
    last_turn = Sample(prompt=Prompt(messages=dialogue.messages[2:3]), answer=sample.answer)
    expected = make_encoder().encode_sample(last_turn)
    encoded = make_encoder(max_length=len(expected.input_ids)).encode_sample(sample)
    assert encoded.input_ids == expected.input_ids
    assert encoded.labels == expected.labels
    assert [image.image_id for image in encoded.images] == [3]
    assert encoded.dropped_turns == 1


def test_no_length_limit_cuts_an_image_block(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    sample = samples_of(dialogue)[1]
    whole = len(make_encoder().encode_sample(sample).input_ids)
    results = []
    for max_length in range(1, whole + 1):
        try:
            encoded = make_encoder(max_length=max_length).encode_sample(sample)
        except EncodingError:
            continue
        results.append(encoded)
        assert len(encoded.input_ids) <= max_length
        assert encoded.input_ids.count(IMAGE_TOKEN_ID) == 3 * len(encoded.images)
        assert encoded.labels is not None
        assert encoded.labels[-1] != IGNORE_INDEX
    assert {encoded.dropped_turns for encoded in results} == {0, 1}


def test_a_long_prompt_at_inference_keeps_the_system_message_and_the_last_turn(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    expected = make_encoder().encode_prompt(Prompt(messages=dialogue.messages[2:3]))
    encoder = make_encoder(max_length=len(expected.input_ids))
    encoded = encoder.encode_prompt(Prompt(messages=dialogue.messages[:3]))
    assert encoded.input_ids == expected.input_ids
    assert encoded.dropped_turns == 1


def test_a_turn_that_cannot_fit_says_by_how_much(
    make_encoder: Callable[..., Encoder], user: Callable[..., Message]
) -> None:
    sample = Sample(prompt=Prompt(messages=(user("x", 1, 2),)), answer="y")
    needed = len(make_encoder().encode_prompt(sample.prompt, system=False).input_ids)
    message = rf"needs {needed} tokens \(2 images of 3 .* set max_length to at least {needed + 1}"
    with pytest.raises(EncodingError, match=message):
        make_encoder(max_length=needed).encode_sample(sample)
    assert make_encoder(max_length=needed + 1).encode_sample(sample).dropped_tokens > 0


def test_an_image_tag_in_an_answer_is_refused(
    make_encoder: Callable[..., Encoder], user: Callable[..., Message]
) -> None:
    sample = Sample(prompt=Prompt(messages=(user("x"),)), answer="see <Img><ImageHere></Img>")
    with pytest.raises(PromptFormatError, match="answer: 1 image tags in the text but 0 images"):
        make_encoder().encode_sample(sample)


def test_a_tokenizer_without_the_needed_tokens_is_refused(
    make_encoder: Callable[..., Encoder], tokenizer: Any
) -> None:
    assert make_encoder().pad_token_id == 2  # EOS stands in
    tokenizer.eos_token_id = None
    with pytest.raises(EncodingError, match="neither pad_token nor eos_token"):
        _ = make_encoder().pad_token_id
    tokenizer.bos_token_id = None
    with pytest.raises(EncodingError, match="starts with BOS but the tokenizer has none"):
        make_encoder()


def test_a_description_marks_the_loss_and_counts_image_slots(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    encoder = make_encoder()
    description = encoder.describe(encoder.encode_sample(samples_of(dialogue)[0]))
    assert description.plain == (
        "^###Human: compare IMAGE#7<Img>[3 image slots]</Img> and IMAGE#12<Img>[3 image slots]</Img>"
        "###Assistant: IMAGE#7 is larger.###"
    )
    marked = [
        description.plain[span.start : span.end] for span in description.spans if "bold" in str(span.style)
    ]
    assert marked == [" IMAGE#7 is larger.###"]


def test_with_cut_anywhere_a_long_sample_loses_its_end_wherever_that_is(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    sample = samples_of(dialogue)[0]
    whole = make_encoder().encode_sample(sample)
    for max_length in range(1, len(whole.input_ids) + 1):
        encoded = make_encoder(max_length=max_length, cut_anywhere=True).encode_sample(sample)
        assert whole.labels is not None
        assert encoded.labels is not None
        assert encoded.input_ids[encoded.visible] == whole.input_ids[:max_length]
        assert encoded.labels[encoded.visible] == whole.labels[:max_length]
        assert encoded.dropped_tokens == len(whole.input_ids) - max_length
        # An image that is cut keeps its slots, out of sight and without loss.
        assert encoded.input_ids.count(IMAGE_TOKEN_ID) == 3 * len(encoded.images)
        assert set(encoded.labels[encoded.visible.stop :]) <= {IGNORE_INDEX}


def test_with_cut_anywhere_a_long_prompt_loses_its_front(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    prompt = Prompt(messages=dialogue.messages[:3])
    whole = make_encoder().encode_prompt(prompt)
    seen = set()
    for limit in range(1, len(whole.input_ids) + 1):
        encoded = make_encoder(max_prompt_length=limit, cut_anywhere=True).encode_prompt(prompt)
        assert encoded.input_ids[encoded.visible] == whole.input_ids[-limit:]
        assert encoded.input_ids.count(IMAGE_TOKEN_ID) == 3 * len(encoded.images)
        assert encoded.images == whole.images[len(whole.images) - len(encoded.images) :]
        seen.add(len(encoded.images))
    assert seen == {0, 1, 2, 3}


def test_the_limit_of_prompts_is_that_of_samples_unless_it_is_set(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    prompt = Prompt(messages=dialogue.messages[:3])
    needed = len(make_encoder().encode_prompt(prompt).input_ids)
    assert make_encoder(max_length=needed - 1).encode_prompt(prompt).dropped_turns == 1
    assert make_encoder(max_length=1, max_prompt_length=needed).encode_prompt(prompt).dropped_turns == 0
    with pytest.raises(EncodingError, match="max_prompt_length=20 leaves 20 for the prompt"):
        make_encoder(max_prompt_length=20).encode_prompt(prompt)


def test_with_unmask_prompt_end_the_last_token_of_a_cut_prompt_is_a_label(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    sample = samples_of(dialogue)[0]
    whole = make_encoder().encode_sample(sample)
    assert make_encoder(unmask_prompt_end=True).encode_sample(sample) == whole
    encoder = make_encoder(max_length=12, cut_anywhere=True, unmask_prompt_end=True)
    assert encoder.encode_sample(sample).labels == [IGNORE_INDEX] * 11 + [whole.input_ids[11]]


def test_a_training_text_can_begin_with_the_system_message(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    sample = samples_of(dialogue)[0]
    encoded = make_encoder(system_in_training=True).encode_sample(sample)
    prompt = make_encoder().encode_prompt(sample.prompt).input_ids
    assert encoded.input_ids == [*prompt, *codes(" IMAGE#7 is larger.###")]
    assert encoded.labels == [IGNORE_INDEX] * len(prompt) + codes(" IMAGE#7 is larger.###")


@pytest.mark.parametrize("num_turns", [1, 3, 6])
def test_dialogues_of_any_length_and_turns_without_images(
    make_encoder: Callable[..., Encoder], user: Callable[..., Message], num_turns: int
) -> None:
    messages: list[Message] = []
    for turn in range(num_turns):
        images = range(turn * 10, turn * 10 + turn % 3)  # none, one, two, none, ...
        messages += [user(f"q{turn}", *images), Message(role="assistant", content=f"a{turn}")]
    samples = samples_of(Dialogue(messages=tuple(messages)))
    assert [loss_text(make_encoder(), sample) for sample in samples] == [
        f" a{t}###" for t in range(num_turns)
    ]
    encoded = make_encoder().encode_sample(samples[-1])
    assert encoded.input_ids.count(IMAGE_TOKEN_ID) == 3 * sum(turn % 3 for turn in range(num_turns))


def test_sentence_level_images_stand_in_front_of_their_message(
    make_encoder: Callable[..., Encoder], dialogue: Dialogue
) -> None:
    encoder = make_encoder(image_placement="sentence")
    encoded = encoder.encode_sample(samples_of(dialogue)[-1])
    prompt = [
        1,
        *codes("###Human: IMAGE#7<Img>"),
        *SLOTS,
        *codes("</Img> IMAGE#12<Img>"),
        *SLOTS,
        *codes("</Img> "),
    ]
    assert encoded.input_ids[: len(prompt)] == prompt
    assert [image.image_id for image in encoded.images] == [7, 12, 3]
    assert (
        encoder.encode_prompt(Prompt(messages=dialogue.messages[:3]), system=False).images == encoded.images
    )
    assert loss_text(encoder, samples_of(dialogue)[-1]) == " It is small.###"


def test_an_unknown_placement_is_refused(make_encoder: Callable[..., Encoder]) -> None:
    with pytest.raises(EncodingError, match="image_placement='front', expected 'word' or 'sentence'"):
        make_encoder(image_placement="front")
