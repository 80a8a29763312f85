import json
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from sparkles.eval.benchmark import BenchmarkError, Item, Prediction, Score, fill_prompt
from sparkles.prompt_format import PromptFormatError
from sparkles.types import Image, Message, Verdict


def item(path: Path, content: str = "See IMAGE#1<Img><ImageHere></Img>.") -> Item:
    message = Message(role="user", content=content, images=(Image(image_id=1, path=path),))
    return Item(item_id="a", questions=(message,), label="TRUE")


def prediction(score: Score, label: str | None) -> Prediction:
    return Prediction(
        item_id="a",
        kind="",
        prompt="Well?",
        image_ids=[1, "b"],
        dialogue=[
            {"role": "user", "content": "Well?", "images": []},
            {"role": "assistant", "content": "Ü", "images": []},
        ],
        tries=[{"turn": 1, "response": "Ü", "seconds": 0.5, "truncated": False}],
        key="0",
        label=label,
        score=score,
    )


def test_a_key_changes_with_all_that_a_score_depends_on(pictures: Path) -> None:
    original = item(pictures / "red.png")
    key = original.key("model")
    assert item(pictures / "red.png").key("model") == key
    others = [
        item(pictures / "green.png").key("model"),
        item(pictures / "red.png", "And IMAGE#1<Img><ImageHere></Img>?").key("model"),
        replace(original, label="FALSE").key("model"),
        original.key("another model"),
    ]
    assert len({key, *others}) == 5


def test_a_key_notices_other_pixels_at_the_same_place(pictures: Path) -> None:
    before = item(pictures / "red.png").key()
    PIL.Image.new("RGB", (64, 64), "blue").save(pictures / "red.png")
    assert item(pictures / "red.png").key() != before


def test_a_choice_survives_the_file_and_shows_no_verdict() -> None:
    choice = prediction(Score(answer=None, correct=False), label="TRUE")
    line = choice.to_json()
    assert Prediction.from_json(line) == choice
    assert json.loads(line)["answer"] is None
    assert "verdict" not in json.loads(line)
    assert "Ü" in line


def test_a_verdict_survives_the_file_and_shows_no_label() -> None:
    verdict = Verdict(scores={"A1": {"C1": 8.0}}, reasons={"A1": {"C1": "sees it"}}, judge="j")
    judged = prediction(Score(verdict=verdict), label=None)
    line = judged.to_json()
    assert Prediction.from_json(line) == judged
    assert not {"label", "answer", "correct"} & json.loads(line).keys()


def test_a_prompt_with_an_unknown_field_is_an_error(tmp_path: Path) -> None:
    prompt = tmp_path / "own.txt"
    prompt.write_text("Is $statement true?")
    with pytest.raises(BenchmarkError, match=r"own\.txt: cannot fill in 'statement'; it may use \$sentence"):
        fill_prompt(str(prompt), (), sentence="...")


def test_a_prompt_without_a_tag_for_each_image_is_an_error(tmp_path: Path, pictures: Path) -> None:
    prompt = tmp_path / "own.txt"
    prompt.write_text("Is $sentence true?")
    with pytest.raises(PromptFormatError, match=r"own\.txt: 0 image tags in the text but 1 images"):
        fill_prompt(str(prompt), (Image(image_id=1),), sentence="...")
