import json
from pathlib import Path

import pytest

from sparkles.data.annotations import (
    AnnotationError,
    read_dialogues,
    read_samples,
    samples_of,
    split_by_images,
    write_dialogues,
    write_samples,
)
from sparkles.data.images import ImageFolder
from sparkles.prompt_format import MINIGPT4
from sparkles.types import Dialogue

RECORD = {
    "instruction": "###Human: See <Img><ImageHere></Img>?###Assistant: ",
    "answer": "Yes.",
    "tgt_imgs": [{"image_id": 5, "caption": "a pier"}],
}


def write(folder: Path, content: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_dialogues_survive_writing_and_reading(tmp_path: Path, dialogue: Dialogue) -> None:
    dialogues = [
        dialogue,
        Dialogue(messages=dialogue.messages[:2], dialogue_id="cc-007"),
        Dialogue(messages=()),
    ]
    write_dialogues(tmp_path / "new" / "dialogues.json", dialogues)
    assert read_dialogues(tmp_path / "new" / "dialogues.json") == dialogues


def test_samples_survive_writing_and_reading(tmp_path: Path, dialogue: Dialogue) -> None:
    samples = samples_of(dialogue)
    write_samples(tmp_path / "samples.json", samples)
    assert read_samples(tmp_path / "samples.json") == samples


def test_a_numbered_dialogue_is_written_with_the_number_of_the_original(
    tmp_path: Path, dialogue: Dialogue
) -> None:
    write_dialogues(tmp_path / "dialogues.json", [dialogue])
    (record,) = json.loads((tmp_path / "dialogues.json").read_text())
    assert record["evaluation_id"] == 41
    assert [sorted(message) for message in record["dialogue"][:2]] == [
        ["content", "images", "role"],
        ["content", "role"],
    ]


def test_records_of_a_dict_are_named_by_their_keys(tmp_path: Path) -> None:
    (dialogue,) = read_dialogues(write(tmp_path, {"d7": {"dialogue": []}}))
    assert dialogue.dialogue_id == "d7"
    (sample,) = read_samples(write(tmp_path, {"s7": RECORD}))
    assert sample.prompt.item_id == "s7"


def test_each_turn_is_a_sample_whose_prompt_is_all_that_precedes_it(dialogue: Dialogue) -> None:
    first, second = samples_of(dialogue)
    assert first.prompt.messages == dialogue.messages[:1]
    assert first.answer == "IMAGE#7 is larger."
    assert second.prompt.messages == dialogue.messages[:3]
    assert [image.image_id for image in second.images] == [7, 12, 3]
    assert second.prompt.item_id == "41/turn2"


def test_an_unanswered_turn_gives_no_sample(dialogue: Dialogue) -> None:
    assert len(samples_of(Dialogue(messages=dialogue.messages[:3]))) == 1


@pytest.mark.parametrize(
    ("turns", "name"),
    [
        ((1, 2), "turn1=True,turn2=True"),
        ((1,), "turn1=True,turn2=False"),
        ((2,), "turn1=False,turn2=True"),
    ],
)
def test_splitting_dialogues_gives_the_training_files_of_the_original(
    golden_dir: Path, tmp_path: Path, turns: tuple[int, ...], name: str
) -> None:
    recorded = json.loads((golden_dir / "functions.json").read_text(encoding="utf-8"))[
        "format_SparklesDialogue"
    ]
    subsets = split_by_images(read_dialogues(write(tmp_path, recorded["input"])), turns)
    written = {}
    for num_images, samples in subsets.items():
        write_samples(tmp_path / "subset.json", samples)
        written[num_images] = json.loads((tmp_path / "subset.json").read_text(encoding="utf-8"))
    expected = {int(file.rsplit("_", 1)[1][0]): rows for file, rows in recorded["files"][name].items()}
    assert written == expected


def test_the_recorded_training_forms_are_read(golden_dir: Path) -> None:
    path = golden_dir / "annotations.json"
    samples = {
        sample.prompt.item_id: sample for sample in read_samples(path, ImageFolder(golden_dir / "images"))
    }
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert list(samples) == list(recorded)
    for name, record in recorded.items():
        sample = samples[name]
        prompt = MINIGPT4.render_prompt(sample.prompt.messages, system=False)
        instruction = record.get("instruction", f"###Human: {record['uniform_question']}###Assistant: ")
        assert prompt == instruction.rstrip()
        assert sample.answer == record.get("fix_answer", record["answer"])
        assert [image.image_id for image in sample.images] == [
            image["image_id"] for image in record["tgt_imgs"]
        ]
        assert all(image.path and image.path.is_file() for image in sample.images)


def test_a_fixed_answer_replaces_the_answer_and_a_question_stands_in_for_the_instruction(
    tmp_path: Path,
) -> None:
    record = {"question": "Why?", "answer": "old", "fix_answer": "new", "tgt_imgs": []}
    (sample,) = read_samples(write(tmp_path, [record]))
    assert sample.answer == "new"
    assert [message.content for message in sample.prompt.messages] == ["Why?"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tgt_imgs": []}, "record 1: prompt: 1 image tags in the text but 0 images"),
        ({"instruction": "Human: hello"}, "record 1: .*"),
        ({"instruction": None}, "record 1: 'instruction' is None, expected str"),
        ({"answer": 5}, "record 1: 'answer' is 5, expected str"),
        ({"tgt_imgs": [{"caption": "x"}]}, "record 1: no 'image_id'; the record has 'caption'"),
        ({"tgt_imgs": [{"image_id": 1.5}]}, "record 1: 'image_id' is 1.5, expected int or str"),
        ({"tgt_imgs": [5]}, "record 1: got 5, expected an object with 'image_id'"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path, [RECORD, RECORD | change])
    with pytest.raises(AnnotationError, match=message):
        read_samples(path)


def test_a_wrong_column_is_shown_beside_those_that_are_there(tmp_path: Path) -> None:
    record = {"instruction": RECORD["instruction"], "reply": "Yes.", "tgt_imgs": RECORD["tgt_imgs"]}
    expected = (
        "annotations.json, record 0: no 'fix_answer' or 'answer'; the record has 'instruction', 'reply'"
    )
    with pytest.raises(AnnotationError, match=expected):
        read_samples(write(tmp_path, [record]))


def test_all_bad_records_are_reported_at_once_up_to_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path, {f"r{index}": {} for index in range(13)})
    with pytest.raises(AnnotationError, match=r"(?s)record r0: .*record r9: .*and 3 more such records"):
        read_samples(path)


def test_missing_images_are_reported_with_their_record(tmp_path: Path) -> None:
    path = write(tmp_path, [RECORD])
    with pytest.raises(AnnotationError, match=r"record 0: image 5 not found in .*; tried 5.jpg, 5.png"):
        read_samples(path, ImageFolder(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": ', "not JSON in UTF-8"), ('"text"', "got a str, expected a list of records")],
)
def test_a_file_that_is_no_annotation_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(AnnotationError, match=message):
        read_samples(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"nowhere.json: no such file"):
        read_dialogues(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "assistant", "content": "x"}], "message 0 has role 'assistant', expected 'user'"),
        ([{"role": "user", "content": "<ImageHere>"}], "message 0: 1 image tags in the text but 0 images"),
        ([{"role": "user"}], "no 'content'"),
        ([{"role": "user", "content": "x", "images": None}], "'images' is None, expected list"),
    ],
)
def test_a_malformed_dialogue_is_named(tmp_path: Path, messages: list[object], message: str) -> None:
    with pytest.raises(AnnotationError, match=f"record 0: {message}"):
        read_dialogues(write(tmp_path, [{"dialogue": messages}]))
