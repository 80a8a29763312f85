import json
from pathlib import Path

import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.sparkles_eval import SparklesEval


def test_an_item_holds_the_two_questions_with_captions(dialogue_file: Path, pictures: Path) -> None:
    items = SparklesEval(annotations=dialogue_file, images=pictures).items()
    assert [item.item_id for item in items] == ["7", "9"]
    assert [question.content for question in items[0].questions] == [
        "See IMAGE#804<Img><ImageHere></Img>?",
        "And IMAGE#33<Img><ImageHere></Img>, for 7?",
    ]
    assert [image.caption for image in items[0].images] == ["a blue field", "snow"]
    assert [image.path for image in items[0].images] == [pictures / "804.png", pictures / "33.jpg"]


def test_a_sample_keeps_the_order_of_the_file(dialogue_file: Path, pictures: Path) -> None:
    both = SparklesEval(annotations=dialogue_file, images=pictures, num=2, seed=5).items()
    assert [item.item_id for item in both] == ["7", "9"]


def test_a_dialogue_of_one_turn_is_refused(dialogue_file: Path, pictures: Path) -> None:
    records = json.loads(dialogue_file.read_text())
    records[1]["dialogue"] = records[1]["dialogue"][:2]
    dialogue_file.write_text(json.dumps(records))
    with pytest.raises(AnnotationError, match=r"sparkles_eval\.json, record 1: 1 questions, expected two"):
        SparklesEval(annotations=dialogue_file, images=pictures).items()


def test_ratings_are_read_at_the_length_of_the_answers_in_the_file(
    dialogue_file: Path, pictures: Path
) -> None:
    benchmark = SparklesEval(annotations=dialogue_file, images=pictures)
    assert benchmark.scorer.reference_words == 4  # "The reference answer." and "Another."


def test_without_answers_there_is_no_length_to_read_ratings_at(dialogue_file: Path, pictures: Path) -> None:
    records = json.loads(dialogue_file.read_text())
    for record in records:
        for message in record["dialogue"][1::2]:
            message["content"] = ""
    dialogue_file.write_text(json.dumps(records))
    assert SparklesEval(annotations=dialogue_file, images=pictures).scorer.reference_words is None
