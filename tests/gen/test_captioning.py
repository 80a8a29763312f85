import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sparkles.gen.captioning import caption_folder
from sparkles.types import InputError, Prompt, Response


@dataclass
class Describing:
    """Says what file it sees; of those in `blind` it says nothing."""

    blind: Sequence[str] = ()
    name: str = "describing"
    asked: list[Prompt] = field(default_factory=list)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [
            Response(text="", failure="timeout: no reply in time")
            if prompt.item_id in self.blind
            else Response(text=f"A picture\nof {prompt.images[0].path.name}.")  # type: ignore[union-attr]
            for prompt in prompts
        ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("7.jpg", "b.PNG", "notes.txt"):
        (pictures / name).touch()
    return pictures


def read(path: Path) -> dict[str, str]:
    records = map(json.loads, path.read_text().splitlines())
    return {record["image_id"]: record["caption"] for record in records}


def test_each_picture_gets_a_caption(folder: Path, tmp_path: Path) -> None:
    out, responder = tmp_path / "run" / "captions.jsonl", Describing()
    assert caption_folder(folder, responder, out, question="Describe {image}.") == 2
    assert read(out) == {"7": "A picture of 7.jpg.", "b": "A picture of b.PNG."}
    assert responder.asked[0].messages[0].content == "Describe IMAGE#7<Img><ImageHere></Img>."


def test_what_failed_is_named_and_asked_for_alone_next_time(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    with pytest.raises(InputError, match=r"1 of 2 pictures got no caption, such as 7\.jpg: timeout"):
        caption_folder(folder, Describing(blind=["7"]), out, question="{image}")
    responder = Describing()
    assert caption_folder(folder, responder, out, question="{image}") == 2
    assert [prompt.item_id for prompt in responder.asked] == ["7"]


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (Response(text="I cannot\nhelp.", refused=True), "refused, in these words: 'I cannot help.'"),
        (Response(text="", refused=True), "refused, or filtered by the provider"),
        (
            Response(text="A boat on a", truncated=True),
            "cut off at the limit on new tokens, ... 'A boat on a'",
        ),
        (Response(text=" "), "an empty answer"),
    ],
)
def test_what_is_no_whole_answer_is_no_caption(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, response: Response, words: str
) -> None:
    out, responder = tmp_path / "captions.jsonl", Describing()
    monkeypatch.setattr(responder, "respond", lambda prompts: [response, Response(text="A boat.")])
    with pytest.raises(InputError, match=re.escape(f"such as 7.jpg: {words};")):
        caption_folder(folder, responder, out, question="{image}")
    assert read(out) == {"b": "A boat."}


def test_a_folder_without_pictures_or_a_question_without_one_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    with pytest.raises(InputError, match=r"expected a text with \{image\}"):
        caption_folder(folder, Describing(), out, question="Describe.")
    with pytest.raises(InputError, match="no pictures in it"):
        caption_folder(tmp_path, Describing(), out, question="{image}")
