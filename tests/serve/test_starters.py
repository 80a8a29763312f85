"""The examples that ship, and what nano makes of them."""

import asyncio
import io
import json
from pathlib import Path

import PIL.Image
import PIL.ImageChops
import pytest

from sparkles.nano.dialogues import answer, parse_request
from sparkles.nano.language import parse_caption
from sparkles.nano.world import render
from sparkles.prompt_format import strip_tags
from sparkles.serve.conversation import Chat, Conversation
from sparkles.serve.engine import Engine
from sparkles.serve.pictures import read_data_url
from sparkles.serve.question import Sampling
from sparkles.serve.starters import Example, read_examples
from sparkles.types import InputError
from tests.serve.test_conversation import last

FOLDER = Path(__file__).resolve().parents[2] / "sparkles/serve/examples"
CAPTIONS = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))["pictures"]
EXAMPLES = read_examples(FOLDER)


@pytest.mark.parametrize("name", CAPTIONS)
def test_each_picture_is_a_scene_that_training_never_shows(name: str) -> None:
    scene = parse_caption(CAPTIONS[name])
    with PIL.Image.open(FOLDER / name) as picture:
        assert PIL.ImageChops.difference(picture, render(scene)).getbbox() is None
    assert scene.split == "eval"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.title)
def test_nano_answers_each_question_rightly(engine: Engine, example: Example) -> None:
    conversation = Conversation()
    truths = {(FOLDER / name).read_bytes(): parse_caption(text) for name, text in CAPTIONS.items()}
    shown = {}
    for question in example.questions:
        turn = asyncio.run(last(Chat(engine).ask(conversation, question, Sampling(max_tokens=220))))
        number = len(shown)
        pictures = [read_data_url(part["picture"]) for part in question if "picture" in part]
        shown |= {str(number + place): truths[picture] for place, picture in enumerate(pictures, start=1)}
        request = parse_request(strip_tags(conversation.messages[-2].content), list(shown))
        assert request is not None, "a question as nano has learnt it"
        assert turn.answer == answer(request, shown)


def test_a_folder_that_holds_none_is_named(tmp_path: Path) -> None:
    for content in ("[]", "{}", '{"conversations": [{"title": "x"}]}', "no json"):
        (tmp_path / "examples.json").write_text(content)
        with pytest.raises(InputError, match=r"examples\.json: .*expected 'conversations'"):
            read_examples(tmp_path)
    with pytest.raises(InputError, match="set examples=null"):
        read_examples(tmp_path / "none")


def test_a_picture_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "examples"
    folder.mkdir()
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (1, 1)).save(buffer, "PNG")
    (folder / "secret.png").write_bytes(buffer.getvalue())
    question = ["What is ", {"picture": "../secret.png"}, "?"]
    (folder / "examples.json").write_text(
        json.dumps({"conversations": [{"title": "x", "questions": [question]}]})
    )
    ((parts,),) = (example.questions for example in read_examples(folder))
    assert [list(part) for part in parts] == [["text"], ["picture"], ["text"]]
    assert read_data_url(parts[1]["picture"]) == buffer.getvalue()
