import json
from pathlib import Path
from typing import Any

import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.pages.dialogues import dialogue_page, figures_of
from sparkles.prompt_format import image_reference
from sparkles.types import Dialogue, Image, Message
from tests.browser import HOSTILE, Page


def dialogue(*image_ids: int | str, answer: str = "IMAGE#1 is red.", **fields: Any) -> dict[str, Any]:
    images = [{"image_id": image_id, "caption": f"caption {image_id}"} for image_id in image_ids]
    question = " and ".join(map(image_reference, image_ids))
    return {
        "dialogue": [
            {"role": "user", "content": f"What do {question} show?", "images": images},
            {"role": "assistant", "content": answer},
        ],
        **fields,
    }


def write(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(records))
    return path


def test_dialogues_are_shown_with_their_pictures_between_the_words(tmp_path: Path, pictures: Path) -> None:
    page = Page(dialogue_page(write(tmp_path, dialogue(1, 2)), pictures))
    assert [found["data-mention"] for found in page.all("span", class_="picture")] == ["IMAGE#1", "IMAGE#2"]
    assert all(found["data-name"] for found in page.all("span", class_="picture"))
    assert "What do IMAGE#1 and IMAGE#2 show?" in page.shown
    assert len(page.all("span", class_="mention")) == 1
    assert "caption 2" in page.shown


def test_an_evaluation_file_is_shown_by_its_ids(tmp_path: Path) -> None:
    page = Page(dialogue_page(write(tmp_path, dialogue(1, evaluation_id=1234), dialogue(2))))
    assert "1234" in page.shown
    assert "record 1" in page.shown


def test_a_training_file_is_shown_with_what_precedes_its_answer(tmp_path: Path, pictures: Path) -> None:
    first, second = image_reference(1), image_reference(2)
    record = {
        "instruction": f"###Human: {first}?###Assistant: red###Human: And {second}?###Assistant: ",
        "answer": "blue, not as IMAGE#1",
        "tgt_imgs": [{"image_id": 1, "caption": ""}, {"image_id": 2, "caption": ""}],
    }
    page = Page(dialogue_page(write(tmp_path, record), pictures))
    assert len(page.all("div", class_="turn")) == 2
    assert [found["data-kind"] for found in page.all("article")] == ["1 + 1 images"]
    assert "blue, not as " in page.shown


def test_a_missing_picture_is_said_to_be_missing(tmp_path: Path, pictures: Path) -> None:
    assert dialogue_page(write(tmp_path, dialogue(1, 9)), pictures).count("picture not found") == 1
    assert dialogue_page(write(tmp_path, dialogue(1, 9))).count("picture not found") == 2
    assert dialogue_page(write(tmp_path, dialogue("../1")), pictures).count("picture not found") == 1


def test_a_sample_is_shown_and_the_figures_are_of_all(tmp_path: Path) -> None:
    path = write(tmp_path, *(dialogue(number) for number in range(1, 31)))
    page = Page(dialogue_page(path, num=10, seed=3))
    assert len(page.all("article")) == 10
    assert "10 of 30, drawn evenly" in page.shown
    assert "30dialogues" in page.shown
    assert page.text == dialogue_page(path, num=10, seed=3) != dialogue_page(path, num=10, seed=4)


def test_figures() -> None:
    images = [Image(image_id=number) for number in (1, 2, 1)]
    one = Dialogue(
        messages=(
            Message(role="user", content="one two three", images=tuple(images[:2])),
            Message(role="assistant", content="a b c d"),
            Message(role="user", content="one", images=(images[2],)),
            Message(role="assistant", content="a b"),
        )
    )
    figures = figures_of([one])
    assert figures.counts == {
        "dialogues": "1",
        "turns": "2",
        "images": "3",
        "different images": "2",
        "images per turn": "1.50",
        "words per question": "2.0",
        "words per answer": "3.0",
        "in the median answer": "3",
    }
    kinds, words = figures.distributions.values()
    assert [(line.title, line.count) for line in kinds] == [("2 + 1 images", 1)]
    assert [line.count for line in words] == [0, 0, 1, 0, 1]


def test_records_that_cannot_be_read_are_told_and_cost_nothing_else(tmp_path: Path) -> None:
    page = Page(dialogue_page(write(tmp_path, dialogue(1), {"dialogue": [{"role": "system"}]}, 7)))
    assert "2 records could not be read" in page.shown
    assert "record 1: no 'content'; the record has 'role'" in page.shown
    assert len(page.all("article")) == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        AnnotationError,
        match=r"set\.json: no dialogue in 1 records; expected .*'tgt_imgs'.*record 0: no 'tgt_imgs'",
    ):
        dialogue_page(write(tmp_path, {"caption": "a cat", "true_image_id": 3}))


def test_hostile_words_are_text(tmp_path: Path) -> None:
    spoken = HOSTILE.replace("\ud800", "")
    record = dialogue("x", answer=spoken, evaluation_id=spoken)
    record["dialogue"][0]["content"] = f"{spoken} {image_reference(spoken)}"
    record["dialogue"][0]["images"][0] = {"image_id": spoken, "caption": spoken}
    page = Page(dialogue_page(write(tmp_path, record)))
    assert len(page.all("script")) == len(page.all("h1")) == 1
    assert not {"img", "b", "i", "textarea"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.shown.count("<script>document") == 6  # question, name and caption of the picture, answer, id
