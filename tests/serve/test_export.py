import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.data.annotations import read_dialogues
from sparkles.data.images import ImageFolder
from sparkles.prompt_format import IMAGE_PLACEHOLDER, IMAGE_TAG
from sparkles.serve.conversation import ChatError, Conversation, Turn
from sparkles.serve.export import file_stem, html_page, training_zip
from sparkles.serve.question import Sampling
from sparkles.types import Dialogue
from tests.browser import HOSTILE, Page


@pytest.fixture
def unpacked(conversation: Conversation, tmp_path: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(training_zip(conversation))) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_the_archive_is_a_training_dialogue(
    unpacked: Path, conversation: Conversation, scenes: Callable[[int], list[Path]]
) -> None:
    (file,) = (unpacked / "annotations").iterdir()
    (dialogue,) = read_dialogues(file)
    answer = conversation.messages[-1]
    expected = Dialogue(messages=(*conversation.prompt.messages, answer), dialogue_id=file_stem(conversation))
    assert dialogue == expected
    assert [image.image_id for image in dialogue.images] == ["1", "2", "3"]
    (located,) = read_dialogues(file, ImageFolder(unpacked / "images"))
    assert [image.path.read_bytes() for image in located.images if image.path] == [
        path.read_bytes() for path in scenes(3)
    ]


def test_a_last_question_without_an_answer_is_left_out(conversation: Conversation, tmp_path: Path) -> None:
    conversation.turns.append(Turn(("Stop ", *conversation.turns[0].uploads), conversation.turns[0].sampling))
    conversation.turns[-1].ending = "stopped"
    with zipfile.ZipFile(io.BytesIO(training_zip(conversation))) as archive:
        archive.extractall(tmp_path)
    (dialogue,) = read_dialogues(next((tmp_path / "annotations").iterdir()))
    assert dialogue.messages[-1].content == "IMAGE#3 has a red star, as IMAGE#1"
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_the_page_shows_all_turns_with_their_pictures_and_needs_no_network(
    conversation: Conversation,
) -> None:
    page = html_page(conversation, name="nano")
    assert page.count('class="picture"') == 3
    assert page.count("data:image/webp;base64,") == 3
    assert "picture not found" not in page
    assert "Conversation with nano" in page
    assert page.count('class="mention"') == 3, "IMAGE#2, IMAGE#3 and IMAGE#1 in the answers"
    assert "stopped" in page
    assert "ended after 40 tokens" in page
    assert not [link for link in Page(page).all("a") if not str(link["href"]).startswith("#")]
    assert "http:" not in page
    assert "https:" not in page


def test_hostile_text_is_text(conversation: Conversation, tmp_path: Path) -> None:
    words = (HOSTILE + IMAGE_TAG + IMAGE_PLACEHOLDER).encode(errors="replace").decode()
    turn = conversation.turns[1]
    turn.question, turn.answer = (words, *turn.question), words
    page = Page(html_page(conversation, name=words))
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.shown.count("<script>document.documentElement.dataset.owned") == 3
    assert "{{ 7 * 7 }}" in page.shown
    with zipfile.ZipFile(io.BytesIO(training_zip(conversation))) as archive:
        archive.extractall(tmp_path)
    (dialogue,) = read_dialogues(next((tmp_path / "annotations").iterdir()))
    assert len(dialogue.images) == 3


def test_there_is_something_to_export_once_there_is_an_answer() -> None:
    empty = Conversation(turns=[Turn(("Hello?",), Sampling(max_tokens=1), ending="stopped")])
    for conversation in (Conversation(), empty):
        with pytest.raises(ChatError, match="nothing to export"):
            training_zip(conversation)
        with pytest.raises(ChatError, match="nothing to export"):
            html_page(conversation, name="nano")
