"""Each published format, as a tiny file laid out like the released one, read through the data set's own config."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.data.annotations import AnnotationError, read_dialogues, read_file, read_samples
from sparkles.data.mixture import SubsetSpec
from sparkles.data.sources import (
    MENTIONS,
    CaptionFile,
    DialogueFile,
    LlavaFile,
    Reader,
    SvitFile,
    TrainingFile,
    mention,
    read_captions,
)
from sparkles.prompt_format import IMAGE_TAG, check_tags, image_reference
from sparkles.types import Image, InputError, Sample


def llava(*values: str, **fields: object) -> dict[str, Any]:
    speakers = ("human", "gpt")
    parts = [{"from": speakers[index % 2], "value": value} for index, value in enumerate(values)]
    return {"id": "000000000042", "image": "000000000042.jpg", "conversations": parts} | fields


def svit(*conversations: tuple[str, ...], **fields: object) -> dict[str, Any]:
    speakers = ("user", "gpt")
    return {
        "image_id": 2400,
        "conversations": [
            {
                "content": [
                    {"from": speakers[index % 2], "value": value} for index, value in enumerate(conversation)
                ]
            }
            for conversation in conversations
        ],
    } | fields


def training_record(*image_ids: int | str, question: str = "What?") -> dict[str, Any]:
    question += "".join(f" {image_reference(image_id)}" for image_id in image_ids)
    return {
        "uniform_question": question,
        "instruction": f"###Human: {question}###Assistant: ",
        "answer": "This.",
        "tgt_imgs": [{"image_id": image_id, "caption": "c"} for image_id in image_ids],
    }


def filtered(image_id: int | str) -> dict[str, Any]:
    """As the original's conversion of LLaVA and SVIT leaves a record."""
    return {
        "question": "What is this?",
        "answer": "A pier.",
        "uniform_question": f"What is this {image_reference(image_id)}?",
        "tgt_imgs": [{"image_id": image_id, "caption": "A pier."}],
    }


def dialogue_record(*turns: tuple[int, ...], **fields: object) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for image_ids in turns:
        record = training_record(*image_ids)
        user = {"role": "user", "content": record["uniform_question"], "images": record["tgt_imgs"]}
        messages += [user, {"role": "assistant", "content": "This."}]
    return {"dialogue": messages} | fields


def parse(reader: Reader, record: dict[str, Any], key: int | str = 0) -> list[Sample]:
    return reader.parse(key, record)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The folder of the original's README, with one record in each file; VG's pictures lie in two folders."""
    annotations = {
        f"data/SparklesDialogue{source}/annotations/SparklesDialogue{source}_turn{turn}_{num}img.json": [
            training_record(*range(1, num + 1))
        ]
        for source, turn, nums in [
            ("CC", 1, (1, 2, 3)),
            ("CC", 2, (2, 3, 4)),
            ("VG", 1, (2, 3)),
            ("VG", 2, (3, 4)),
        ]
        for num in nums
    }
    annotations |= {
        "data/cc_sbu_align/filter_cap.json": {
            "annotations": [{"image_id": "2", "caption": "A pier at dusk."}]
        },
        "data/LLaVA/detail_23k.json": [llava("Describe it.\n<image>", "A man.")],
        "data/LLaVA/complex_reasoning_77k.json": [llava("<image>\nWhy does he smile?", "He won.")],
        "data/LLaVA/LLaVA_detail_23k_filtered_for_Sparkles.json": [filtered("000000000042")],
        "data/LLaVA/LLaVA_complex_reasoning_77k_filtered_for_Sparkles.json": [filtered("000000000042")],
        "data/SVIT/detail_description.json": [svit(("Describe the image.", "A dog."), image_id=2)],
        "data/SVIT/SVIT_detail_description_filtered_for_Sparkles.json": [filtered(2400)],
        "evaluation/SparklesEval/annotations/sparkles_evaluation_sparkleseval_annotations.json": [
            dialogue_record((1, 2), (3,), evaluation_id=1)
        ],
    }
    for name, content in annotations.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    pictures = {
        "data/SparklesDialogueCC/images": [1, 2, 3, 4],
        "data/SparklesDialogueVG/images": [1, 2, 3, 4],
        "data/cc_sbu_align/image": [2],
        "data/coco/train2017": ["000000000042"],
        "data/VisualGenome/VG_100K": [2],
        "data/VisualGenome/VG_100K_2": [2400],
        "evaluation/SparklesEval/images": [1, 2, 3],
    }
    for folder, names in pictures.items():
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            PIL.Image.new("RGB", (2, 2)).save(tmp_path / folder / f"{name}.jpg")
    return tmp_path


@pytest.fixture
def subsets(released: Path) -> Iterator[Callable[..., dict[str, SubsetSpec]]]:
    """subsets("cc_sbu_align"): those of data=sparkles_dialogue, or the ones named."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):

        def build(*names: str, group: str = "subsets") -> dict[str, SubsetSpec]:
            chosen = [f"data/subset@data.subsets=[{','.join(names)}]"] if names else []
            cfg = compose("train", ["data=sparkles_dialogue", f"data_root={released}", *chosen])
            return dict(instantiate(cfg.data[group], _convert_="all"))

        yield build


def samples_in(spec: SubsetSpec) -> list[Sample]:
    (file,) = spec.annotation_files
    reading = read_file(file, spec.reader.parse, spec.folder)
    assert reading.problems == []
    return reading.values


def test_the_ten_released_files_are_read_with_their_images(
    subsets: Callable[..., dict[str, SubsetSpec]],
) -> None:
    specs = subsets()
    assert len(specs) == 10
    for name, spec in specs.items():
        (sample,) = samples_in(spec)
        assert name.endswith(f"_{len(sample.images)}img")
        assert all(image.path and image.path.is_file() for image in sample.images)


def test_sources_are_drawn_equally_and_first_turns_twice_as_often(
    subsets: Callable[..., dict[str, SubsetSpec]],
) -> None:
    ratios = {name: spec.ratio for name, spec in subsets().items()}

    def share(part: str) -> float:
        return sum(ratio for name, ratio in ratios.items() if part in name)

    assert share("CC") == share("VG")
    for source in ("CC", "VG"):
        assert share(f"{source}_turn1") == 2 * share(f"{source}_turn2")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("cc_sbu_align", "image/2.jpg"),
        ("LLaVA_description", "train2017/000000000042.jpg"),
        ("LLaVA_reasoning", "train2017/000000000042.jpg"),
        ("LLaVA_detail_23k", "train2017/000000000042.jpg"),
        ("LLaVA_complex_reasoning_77k", "train2017/000000000042.jpg"),
        ("SVIT_description", "VG_100K_2/2400.jpg"),
        ("SVIT_detail_description", "VG_100K/2.jpg"),
    ],
)
def test_single_image_sets_are_read_with_their_image(
    subsets: Callable[..., dict[str, SubsetSpec]], name: str, image: str
) -> None:
    (sample,) = samples_in(subsets(name)[name])
    (picture,) = sample.images
    assert str(picture.path).endswith(f"/{image}")
    assert sample.prompt.messages[0].content.count(IMAGE_TAG) == 1


def test_validation_is_on_both_turns_of_the_dialogues_that_are_never_trained_on(
    subsets: Callable[..., dict[str, SubsetSpec]],
) -> None:
    samples = samples_in(subsets(group="val_subsets")["SparklesEval"])
    assert [len(sample.images) for sample in samples] == [2, 3]


def test_the_default_reader_is_that_of_training_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([training_record(1, 2)]))
    spec = SubsetSpec(name="a", annotations=path, images=tmp_path)
    assert read_file(path, spec.reader.parse).values == read_samples(path)
    assert parse(TrainingFile(), training_record(1)) == parse(spec.reader, training_record(1))


def test_a_dialogue_file_gives_the_turns_that_are_asked_for(tmp_path: Path) -> None:
    record = dialogue_record((1, 2), (), (3,))
    assert [len(sample.images) for sample in parse(DialogueFile(), record)] == [2, 2, 3]
    (second,) = parse(DialogueFile(turns=[2]), record)
    assert len(second.prompt.messages) == 3
    path = tmp_path / "dialogues.json"
    path.write_text(json.dumps([record]))
    assert read_dialogues(path)[0].num_turns == 3


def test_a_caption_is_asked_for_by_one_of_the_questions() -> None:
    reader = CaptionFile(questions=["{image} What?", "Describe {image}."], seed=3)
    records = [{"image_id": str(number), "caption": f"caption {number}"} for number in range(40)]
    samples = [sample for key, record in enumerate(records) for sample in reader.parse(key, record)]
    asked = {sample.prompt.messages[0].content for sample in samples}
    assert asked == {f"{IMAGE_TAG} What?", f"Describe {IMAGE_TAG}."}
    assert [sample.answer for sample in samples] == [record["caption"] for record in records]


def test_what_is_drawn_for_a_record_depends_on_seed_and_place_alone() -> None:
    record = llava("Why?\n<image>", "So.")

    def questions(seed: int, keys: range) -> list[str]:
        reader = LlavaFile(seed=seed)
        return [reader.parse(key, record)[0].prompt.messages[0].content for key in keys]

    assert questions(0, range(30))[10:] == questions(0, range(10, 30))
    assert questions(0, range(30)) != questions(1, range(30))
    assert len(set(questions(0, range(200)))) == len(MENTIONS)


def test_the_turns_of_a_llava_conversation_are_samples_and_only_the_first_shows_the_image() -> None:
    record = llava("<image>\nWho is in the picture?", "A man.", "What does he hold?", "A cup.", "Thanks")
    first, second = parse(LlavaFile(), record)
    assert first.prompt.messages[0].content == f"Who is in {image_reference('000000000042')}?"
    assert [len(message.images) for message in second.prompt.messages] == [1, 0, 0]
    assert second.answer == "A cup."
    assert second.prompt.item_id == "000000000042/turn2"


def test_a_llava_record_without_an_image_is_text_only() -> None:
    record = llava("Tell a joke.", "No.")
    del record["image"]
    (sample,) = parse(LlavaFile(), record)
    assert sample.images == ()
    assert sample.prompt.messages[0].content == "Tell a joke."


def test_the_conversations_of_a_svit_record_do_not_see_each_other() -> None:
    record = svit(("What is in the image?", "A dog."), ("Is it wet?", "Yes.", "Why?", "Rain."))
    samples = parse(SvitFile(), record)
    assert [sample.answer for sample in samples] == ["A dog.", "Yes.", "Rain."]
    assert [len(sample.prompt.messages) for sample in samples] == [1, 1, 3]
    assert [len(sample.images) for sample in samples] == [1, 1, 1]


WITHOUT_TAGS = st.text(st.characters(exclude_characters="<"))
"""Nor does a tag come about where such texts meet one."""


@given(question=WITHOUT_TAGS, image_id=st.integers() | WITHOUT_TAGS, seed=st.integers())
def test_any_question_gets_its_image_once(question: str, image_id: int | str, seed: int) -> None:
    image = Image(image_id=image_id)
    mentioned = mention(question, image, MENTIONS, random.Random(seed))
    check_tags(mentioned, (image,), "question")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What do you see in the image?", "What do you see in {}?"),
        ("Describe this photo, please.", "Describe {}, please."),
        ("The picture shows the image of whom?", "{} shows the image of whom?"),
        ("Do the images differ from an image?", "Do the images differ from an image in {}?"),
        ("", " in {}"),
        ("I wonder: who won?!", "I wonder: who won in {}?!"),
    ],
)
def test_the_image_takes_the_place_of_the_first_words_for_it(question: str, expected: str) -> None:
    mentioned = mention(question, Image(image_id=7), ["{stem} in {image}{end}"], random.Random(0))
    assert mentioned == expected.format(image_reference(7))


@pytest.mark.parametrize(
    ("reader", "record", "message"),
    [
        (LlavaFile(), llava(), "no messages"),
        (LlavaFile(), llava("Why?"), "no turn with an answer"),
        (
            LlavaFile(),
            llava("Why?", "So.", conversations=[{"from": "gpt", "value": "x"}]),
            "message 0 is from 'gpt'",
        ),
        (LlavaFile(), llava("Why?", "So.", conversations=[{"from": "human"}]), "no 'value'"),
        (LlavaFile(), llava("Why?", "So.", id=None), "'id' is None, expected int or str"),
        (LlavaFile(), svit(("Why?", "So.")), "no 'from'; the record has 'content'"),
        (SvitFile(), llava("Why?", "So."), "no 'image_id'"),
        (
            SvitFile(),
            svit(("Why?", f"Because {IMAGE_TAG}")),
            "message 1: an assistant message shows an image",
        ),
        (CaptionFile(questions=["{image}"]), {"image_id": "2"}, "no 'caption'; the record has 'image_id'"),
        (DialogueFile(), {"dialogue": []}, "no turn with an answer"),
        (TrainingFile(), llava("Why?", "So."), "no 'tgt_imgs'"),
    ],
)
def test_a_record_of_another_form_is_refused(reader: Reader, record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reader.parse(0, record)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CaptionFile(questions=[]), "reader.questions is empty"),
        (
            lambda: CaptionFile(questions=["What?"]),
            r"reader.questions: 'What\?', expected a text with {image}",
        ),
        (lambda: LlavaFile(mentions=["{image} {image} {question}"]), "each of them once"),
        (lambda: SvitFile(mentions=["{question} {image"]), "reader.mentions: .* write {{ for a brace"),
    ],
)
def test_a_text_without_a_place_for_the_image_is_refused(build: Callable[[], Reader], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.json", [{"image_id": 7, "caption": "A cat."}]),
        ("filter_cap.json", {"annotations": [{"image_id": 7, "caption": "A cat."}]}),
        ("svit.json", [svit(("Why?", "A cat."), ("Who?", "A dog."), image_id=7)]),
        ("llava.json", [llava("Why?", "A cat.", id=7)]),
    ],
)
def test_captions_are_read_from_each_source(tmp_path: Path, name: str, content: object) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    assert read_captions(tmp_path / name) == [Image(image_id=7, caption="A cat.")]


def test_captions_of_a_table_find_their_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_id,caption\n7,A cat.\n8,A dog.\n")
    (tmp_path / "7.jpg").touch()
    with pytest.raises(AnnotationError, match=r"a\.csv, record 1: image 8 not found"):
        read_captions(tmp_path / "a.csv", tmp_path)
    (tmp_path / "8.jpg").touch()
    assert [image.path for image in read_captions(tmp_path / "a.csv", tmp_path)] == [
        tmp_path / "7.jpg",
        tmp_path / "8.jpg",
    ]


def test_a_table_without_captions_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image_id,text\n7,A cat.\n")
    with pytest.raises(AnnotationError, match=r"record 0: no 'caption'; the record has 'image_id', 'text'"):
        read_captions(tmp_path / "a.csv")
