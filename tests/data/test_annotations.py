import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sparkles.data import annotations
from sparkles.data.annotations import (
    AnnotationError,
    parse_sample,
    read_dialogues,
    read_file,
    read_samples,
    samples_of,
    split_by_images,
    unwritable,
    write_dialogues,
    write_samples,
    write_training_files,
)
from sparkles.data.images import ImageFolder
from sparkles.prompt_format import IMAGE_PLACEHOLDER, IMAGE_TAG, MINIGPT4, PromptFormatError
from sparkles.types import Dialogue, Image, Message, Prompt, Sample

RECORD = {
    "instruction": "###Human: See <Img><ImageHere></Img>?###Assistant: ",
    "answer": "Yes.",
    "tgt_imgs": [{"image_id": 5, "caption": "a pier"}],
}


def write(folder: Path, content: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


rewriting = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
"""For properties whose examples all write the same file of a folder."""


TEXTS = st.text().filter(lambda text: IMAGE_PLACEHOLDER not in text)


@st.composite
def user_messages(draw: st.DrawFn) -> Message:
    """Any text with any number of images at any places."""
    images = draw(
        st.lists(
            st.builds(
                Image,
                image_id=st.integers() | st.text(),
                caption=st.text(),
                box=st.none() | st.tuples(*[st.integers()] * 4),
            ),
            max_size=5,
        )
    )
    texts = draw(st.lists(TEXTS, min_size=len(images) + 1, max_size=len(images) + 1))
    return Message(role="user", content=IMAGE_TAG.join(texts), images=tuple(images))


@st.composite
def any_dialogues(draw: st.DrawFn) -> Dialogue:
    """Any number of turns, of which the last may still wait for its answer."""
    questions = draw(st.lists(user_messages(), max_size=4))
    messages: list[Message] = []
    for question in questions:
        messages += [question, Message(role="assistant", content=draw(TEXTS))]
    if messages and draw(st.booleans()):
        messages.pop()
    return Dialogue(messages=tuple(messages), dialogue_id=draw(st.text()))


ODD = Dialogue(
    dialogue_id="007",
    messages=(
        Message(role="user", content='caf\u00e9 \u2028 \u0000 \\ " \r\n \U0001f309 </s>'),
        Message(role="assistant", content=""),
    ),
)


@given(st.lists(any_dialogues(), max_size=3))
@example([ODD])
@example(
    [Dialogue(messages=ODD.messages, dialogue_id=name) for name in ("0", "-0", "12", "\u0663", "9" * 30)]
)
@rewriting
def test_any_dialogue_survives_writing_and_reading(tmp_path: Path, dialogues: list[Dialogue]) -> None:
    write_dialogues(tmp_path / "dialogues.json", dialogues)
    assert read_dialogues(tmp_path / "dialogues.json") == dialogues


@given(any_dialogues())
@rewriting
def test_a_sample_survives_writing_and_reading_or_is_refused(tmp_path: Path, dialogue: Dialogue) -> None:
    for sample in samples_of(dialogue):
        try:
            write_samples(tmp_path / "samples.json", [sample])
        except AnnotationError:
            assert any(message.content.strip() == "" for message in sample.prompt.messages)
        else:
            assert read_samples(tmp_path / "samples.json") == [sample]


RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(records=st.lists(RECORDS, max_size=6), chunk=st.integers(1, 40), indent=st.sampled_from([None, 0, 3]))
@rewriting
def test_records_are_the_same_however_little_is_read_at_a_time(
    tmp_path: Path, records: list[Any], chunk: int, indent: int | None
) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "_CHUNK", chunk)
        found = list(annotations.records(path))
        assert [(one.key, one.record) for one in found] == list(enumerate(records))
        content = path.read_bytes()
        assert [json.loads(content[slice(*one.span)]) for one in found] == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"dialogue": []}, {"dialogue": ]', r"record 1: not JSON in UTF-8: Expecting value, at '\]'"),
        ('[{"dialogue": []} {"dialogue": []}]', r"record 1: not JSON in UTF-8: Expecting ',' or '\]'"),
        ('[{"dialogue": []}', r"record 1: not JSON in UTF-8: Expecting ',' or '\]'"),
        ('[{"dialogue": []},', "record 1: not JSON in UTF-8: Expecting value"),
        ('[{"dialogue": [', "record 0: not JSON in UTF-8: "),
        ('[{"dialogue": []}] []', "record 1: not JSON in UTF-8: Extra data"),
        ("[" * 100_000, "record 0: not JSON in UTF-8: maximum recursion"),
        ("", "not JSON in UTF-8: Expecting value"),
    ],
)
def test_a_file_that_breaks_off_is_named_with_the_record(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=f"broken.json.*{message}"):
        read_dialogues(path)


def test_a_byte_order_mark_and_the_fields_of_others_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "windows.json"
    record = {"dialogue": [], "evaluation_id": 3, "raw": [{"prompt": "p", "response": "r"}]}
    path.write_text(json.dumps([record]), encoding="utf-8-sig")
    assert read_dialogues(path) == [Dialogue(messages=(), dialogue_id="3")]


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


def test_a_dialogue_of_many_turns_gives_a_sample_for_each(user: Callable[..., Message]) -> None:
    questions = [
        user("look", 1, 2, 3),
        user("no picture here"),
        user("and", "x"),
        user("thanks"),
        user("?", 9),
    ]
    messages = [
        message
        for number, question in enumerate(questions)
        for message in (question, Message(role="assistant", content=f"answer {number}"))
    ]
    samples = samples_of(Dialogue(messages=tuple(messages)))
    assert [sample.answer for sample in samples] == [f"answer {number}" for number in range(5)]
    assert [len(sample.prompt.messages) for sample in samples] == [1, 3, 5, 7, 9]
    assert [len(sample.images) for sample in samples] == [3, 3, 4, 4, 5]


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
    golden: Path, tmp_path: Path, turns: tuple[int, ...], name: str
) -> None:
    recorded = json.loads((golden / "functions.json").read_text(encoding="utf-8"))["format_SparklesDialogue"]
    subsets = split_by_images(read_dialogues(write(tmp_path, recorded["input"])), turns)
    written = {}
    for num_images, samples in subsets.items():
        write_samples(tmp_path / "subset.json", samples)
        written[num_images] = json.loads((tmp_path / "subset.json").read_text(encoding="utf-8"))
    expected = {int(file.rsplit("_", 1)[1][0]): rows for file, rows in recorded["files"][name].items()}
    assert written == expected


def test_the_recorded_training_forms_are_read(golden: Path) -> None:
    path = golden / "annotations.json"
    samples = {sample.prompt.item_id: sample for sample in read_samples(path, ImageFolder(golden / "images"))}
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
        ({"tgt_imgs": [{"image_id": True}]}, "record 1: 'image_id' is True, expected int or str"),
        ({"tgt_imgs": [5]}, "record 1: got 5, expected an object with 'image_id'"),
        ({"answer": "half \ud83d"}, "record 1: 'answer' holds half of a character"),
        ({"answer": f"See {IMAGE_TAG}."}, "record 1: message 1: an assistant message shows an image"),
        ({"sample_id": None}, "record 1: 'sample_id' is None, expected int or str"),
        (
            {"instruction": f"###Human: a###Assistant: {IMAGE_TAG}###Human: b###Assistant: "},
            "record 1: message 1: an assistant message shows an image",
        ),
        (
            {"tgt_imgs": [{"image_id": 5, "caption": "", "box": [1, 2, 3]}]},
            r"record 1: 'box' is \[1, 2, 3\], expected four whole numbers",
        ),
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


def test_missing_images_are_counted_once_each_and_listed(tmp_path: Path) -> None:
    def record(*image_ids: int) -> dict[str, Any]:
        images = [{"image_id": image_id, "caption": ""} for image_id in image_ids]
        return {"question": IMAGE_TAG * len(images), "answer": "Yes.", "tgt_imgs": images}

    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0.jpg").touch()
    path = write(tmp_path, [record(0), record(0, 1, 2), record(2, 3), *[record(n) for n in range(4, 14)]])
    reading = read_file(path, parse_sample, ImageFolder(folder))
    assert [len(sample.images) for sample in reading.values] == [1]
    assert reading.num_records == 13
    assert list(reading.missing) == list(range(1, 14))
    with pytest.raises(AnnotationError) as caught:
        read_samples(path, ImageFolder(folder))
    said = str(caught.value)
    assert "record 1: image 1 not found" in said
    assert "(nor is image 2)" in said
    assert f"and 2 more such records in {path}" in said
    assert f"{folder} lacks 13 of the images in use: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ..." in said


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
        (
            [
                {"role": "user", "content": "Show me."},
                {"role": "assistant", "content": f"Here: {IMAGE_TAG}", "images": [{"image_id": 1}]},
            ],
            "message 1: an assistant message shows an image, but only the user's may",
        ),
    ],
)
def test_a_malformed_dialogue_is_named(tmp_path: Path, messages: list[object], message: str) -> None:
    with pytest.raises(AnnotationError, match=f"record 0: {message}"):
        read_dialogues(write(tmp_path, [{"dialogue": messages}]))


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    shown = Message(role="assistant", content=IMAGE_TAG, images=(Image(image_id=1),))
    dialogue = Dialogue(messages=(Message(role="user", content="Draw."), shown))
    with pytest.raises(PromptFormatError, match="message 1: an assistant message shows an image"):
        write_dialogues(tmp_path / "dialogues.json", [dialogue])
    prompt = Prompt(
        messages=(Message(role="user", content="Say '###Assistant: Hi.###Human: Hi.' please"),), item_id="s1"
    )
    with pytest.raises(AnnotationError, match="sample 's1' cannot be written as one text and read again"):
        write_samples(tmp_path / "samples.json", [Sample(prompt=prompt, answer="No.")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", 'image_id,caption\n7,"a cat, a ""big"" one"\n8,a dog\n'),
        (
            "captions.jsonl",
            '{"image_id": "7", "caption": "a cat, a \\"big\\" one"}\n{"image_id": "8", "caption": "a dog"}\n',
        ),
    ],
)
def test_tables_and_json_lines_hold_records_too(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    seen: list[object] = []
    reading = read_file(tmp_path / name, lambda key, record: seen.append((key, dict(record))) or [])
    assert reading.num_records == 2
    assert seen == [
        (0, {"image_id": "7", "caption": 'a cat, a "big" one'}),
        (1, {"image_id": "8", "caption": "a dog"}),
    ]


def test_a_broken_json_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"image_id": 1}\n{"image_id": \n')
    with pytest.raises(AnnotationError, match=r"a\.jsonl, record 1: not JSON"):
        read_dialogues(tmp_path / "a.jsonl")


def test_training_files_are_one_for_each_turn_and_number_of_images(
    tmp_path: Path, dialogue: Dialogue
) -> None:
    paths = write_training_files(tmp_path, "mine", [dialogue])
    by_turn = [split_by_images([dialogue], turns=(turn,)) for turn in range(1, dialogue.num_turns + 1)]
    expected = [
        f"mine_turn{turn}_{count}img.json" for turn, split in enumerate(by_turn, 1) for count in split
    ]
    assert [path.name for path in paths] == ["mine.json", *expected]
    assert read_samples(paths[1]) == next(iter(by_turn[0].values()))


@pytest.mark.parametrize(
    ("answer", "problem"),
    [("Yes.", ""), ("Yes.###Human: No?", "cannot be written as one text"), ("\ud83d", "surrogates")],
)
def test_what_no_file_could_hold_is_known_beforehand(answer: str, problem: str) -> None:
    question = Message(role="user", content=f"See {IMAGE_TAG}?", images=(Image(image_id=1),))
    messages = [question, Message(role="assistant", content=answer)]
    said = unwritable(Dialogue(messages=(*messages, Message(role="user", content="And?"), messages[1])))
    assert problem in said
    assert bool(said) == bool(problem)
