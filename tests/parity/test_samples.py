"""From the original's training files to the tensors that go into the language model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkles.data.annotations import read_samples
from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoded, Encoder, EncodingError, Tokenizer
from sparkles.data.images import ImageFolder, ImageTransform, load_image
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import MINIGPT4
from sparkles.types import IGNORE_INDEX, IMAGE_TOKEN_ID, Sample

AS_THE_ORIGINAL = {"cut_anywhere": True, "unmask_prompt_end": True}
AssertWithin = Callable[[float, Tensor, Tensor], None]
AsSlots = Callable[[Tensor], Tensor]
Encode = Callable[..., Encoded]


@pytest.fixture(scope="module")
def samples(records: Callable[[str], Any]) -> dict[str, Any]:
    return records("samples")


@pytest.fixture(scope="module")
def recorded(tensors: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    return tensors("samples")


@pytest.fixture(scope="module")
def annotated(golden: Path) -> dict[str, Sample]:
    read = read_samples(golden / "annotations.json", ImageFolder(golden / "images"))
    return {sample.prompt.item_id: sample for sample in read}


@pytest.fixture(scope="module")
def encode(
    records: Callable[[str], Any],
    samples: dict[str, Any],
    annotated: dict[str, Sample],
    make_encoder: Callable[..., Encoder],
) -> Encode:
    """encode("cut_in_answer", cut_anywhere=True): the record of that name, at the limit that it was cut to.

    An instruction without the space in front of the answer is another prompt format, which the original takes from
    the file; reading the file here brings it into the format of all others.
    """
    annotations = records("annotations")

    def encode_record(name: str, **settings: Any) -> Encoded:
        case = samples[name].get("case", name)
        if "max_length" in samples[name]:
            settings = {"max_length": samples[name]["max_length"], **settings}
        if not annotations[case].get("instruction", " ").endswith(" "):
            settings = {"prompt_format": replace(MINIGPT4, answer_prefix=""), **settings}
        return make_encoder(**settings).encode_sample(annotated[case])

    return encode_record


@pytest.fixture(scope="module")
def collate(meta: dict[str, Any]) -> Callable[..., dict[str, Tensor]]:
    """A batch of encoded samples with the pixels of their files."""
    transform = ImageTransform(image_size=meta["dims"]["img"])

    def make(*encoded: Encoded) -> dict[str, Tensor]:
        pixels = [transform(load_image(image)) for one in encoded for image in one.images]
        return pad_batch(encoded, pixels, pad_token_id=meta["pad_token_id"], side="right")

    return make


def names_of(samples: dict[str, Any], *kinds: str) -> list[str]:
    names = [name for name, record in samples.items() if record["kind"] in kinds]
    assert names, f"no record of kind {kinds}"
    return names


def test_ids_and_labels_are_those_of_the_original(
    samples: dict[str, Any],
    recorded: dict[str, Tensor],
    as_slots: AsSlots,
    encode: Encode,
    subtests: pytest.Subtests,
) -> None:
    for name in names_of(samples, "sample", "truncated"):
        with subtests.test(name):
            encoded = encode(name, **AS_THE_ORIGINAL)
            assert encoded.input_ids[encoded.visible] == as_slots(recorded[f"{name}/input_ids"])[0].tolist()
            assert encoded.labels is not None
            assert encoded.labels[encoded.visible] == as_slots(recorded[f"{name}/labels"])[0].tolist()
            assert recorded[f"{name}/attention_mask"].all()


def test_what_fits_needs_no_switch(
    samples: dict[str, Any], encode: Encode, subtests: pytest.Subtests
) -> None:
    for name in names_of(samples, "sample"):
        with subtests.test(name):
            assert encode(name) == encode(name, **AS_THE_ORIGINAL)


def test_an_answer_always_follows_a_space_by_default(
    records: Callable[[str], Any], encode: Encode, tokenizer: Tokenizer
) -> None:
    annotations = records("annotations")
    names = [name for name, record in annotations.items() if record.get("instruction", " ")[-1] != " "]
    assert names
    for name in names:
        first_label = next(
            label for label in encode(name, prompt_format=MINIGPT4).labels or [] if label != IGNORE_INDEX
        )
        assert (
            first_label
            == tokenizer([annotations[name]["answer"]], add_special_tokens=False)["input_ids"][0][0]
        )


def test_batches_are_those_of_the_original(
    samples: dict[str, Any],
    recorded: dict[str, Tensor],
    as_slots: AsSlots,
    encode: Encode,
    collate: Callable[..., dict[str, Tensor]],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for name in names_of(samples, "batch"):
        with subtests.test(name):
            batch = collate(*(encode(member, **AS_THE_ORIGINAL) for member in samples[name]["members"]))
            visible = batch["attention_mask"]
            assert torch.equal(visible, recorded[f"{name}/attention_mask"])
            assert torch.equal(batch["labels"], recorded[f"{name}/labels"])
            # What is left of an image behind the cut has slots here and padding there, invisible both.
            ids = as_slots(recorded[f"{name}/input_ids"])
            assert torch.equal(batch["input_ids"] * visible, ids * visible)
            if f"{name}/pixel_values" in recorded:
                pixels = recorded[f"{name}/pixel_values"].flatten(0, 1)
                assert_within(1e-6, batch["pixel_values"], pixels)


def test_different_numbers_of_images_make_a_batch(
    meta: dict[str, Any],
    samples: dict[str, Any],
    encode: Encode,
    collate: Callable[..., dict[str, Tensor]],
) -> None:
    assert "Error" in meta["collater_with_different_image_counts"], "the original cannot"
    encoded = [encode(name) for name in names_of(samples, "sample")]
    counts = [len(one.images) for one in encoded]
    assert len(set(counts)) > 1
    batch = collate(*encoded)
    assert len(batch["pixel_values"]) == sum(counts)
    slots = (batch["input_ids"] == IMAGE_TOKEN_ID).sum(dim=1)
    assert slots.tolist() == [count * meta["dims"]["num_query"] for count in counts]


@torch.no_grad()
def test_embeddings_from_files_are_those_of_the_original(
    original: SparklesChat,
    samples: dict[str, Any],
    recorded: dict[str, Tensor],
    encode: Encode,
    collate: Callable[..., dict[str, Tensor]],
    assert_within: AssertWithin,
    subtests: pytest.Subtests,
) -> None:
    for name in names_of(samples, "sample", "truncated"):
        if f"{name}/inputs_embeds" in recorded:
            with subtests.test(name):
                # Labels do not matter here, and those inside an image are refused.
                batch = collate(replace(encode(name, **AS_THE_ORIGINAL), labels=None))
                embeds = original.embed(batch["input_ids"], batch["pixel_values"])
                seen = embeds[batch["attention_mask"] == 1]
                assert_within(1e-5, seen[None], recorded[f"{name}/inputs_embeds"])


def test_a_label_inside_an_image_is_refused_where_the_original_fails_later(
    samples: dict[str, Any], encode: Encode, collate: Callable[..., dict[str, Tensor]]
) -> None:
    names = [name for name, record in samples.items() if "out of bounds" in (record["error"] or "")]
    assert names
    for name in names:
        with pytest.raises(EncodingError, match="a label is part of an image"):
            collate(encode(name, **AS_THE_ORIGINAL))


def test_masked_altogether_is_an_error_where_the_original_has_no_number(
    original: SparklesChat,
    samples: dict[str, Any],
    encode: Encode,
    collate: Callable[..., dict[str, Tensor]],
) -> None:
    names = [name for name, record in samples.items() if record["loss"] != record["loss"]]  # not a number
    assert names
    for name in names:
        with pytest.raises(ValueError, match="no labelled token in the batch"):
            original(collate(encode(name, **AS_THE_ORIGINAL)))


def test_by_default_labels_are_the_answers_and_images_stay_whole(
    samples: dict[str, Any],
    meta: dict[str, Any],
    encode: Encode,
    subtests: pytest.Subtests,
) -> None:
    kept, refused = [], []
    for name in names_of(samples, "truncated"):
        with subtests.test(name):
            try:
                encoded = encode(name)
            except EncodingError:
                refused.append(name)
                continue
            kept.append(name)
            assert len(encoded.input_ids) <= samples[name]["max_length"]
            assert encoded.input_ids.count(IMAGE_TOKEN_ID) == len(encoded.images) * meta["dims"]["num_query"]
            assert encoded.visible == slice(0, len(encoded.input_ids))
            labelled = [label for label in encoded.labels or [] if label != IGNORE_INDEX]
            whole = [label for label in encode(samples[name]["case"]).labels or [] if label != IGNORE_INDEX]
            assert labelled
            assert labelled == whole[: len(labelled)]
    assert kept
    assert refused


def test_annotations_are_written_and_read_alike(golden: Path, annotated: dict[str, Sample]) -> None:
    written = json.loads((golden / "annotations.json").read_text(encoding="utf-8"))
    for name, record in written.items():
        assert [image.image_id for image in annotated[name].images] == [
            i["image_id"] for i in record["tgt_imgs"]
        ]
        assert annotated[name].answer == record.get("fix_answer", record["answer"])
        assert annotated[name].prompt.messages[-1].content == record["uniform_question"]
