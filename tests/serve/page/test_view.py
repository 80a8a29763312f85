import json

from sparkles.serve.conversation import Conversation, Turn, Upload
from sparkles.serve.page.view import view
from sparkles.serve.question import Sampling

PICTURE = Upload(b"pixels")


def turn(*question: str | Upload, answer: str = "", **fields: object) -> Turn:
    return Turn(question, Sampling(max_tokens=8), answer=answer, **fields)  # type: ignore[arg-type]


def test_pictures_stand_at_their_words_and_words_that_mean_one_say_which() -> None:
    conversation = Conversation(
        [turn("Is ", PICTURE, " like ", PICTURE, "?", answer="IMAGE#2 is. The First Image is not.")]
    )
    shown = view(conversation)
    [only] = shown["turns"]
    assert only["question"] == [
        {"text": "Is "},
        {"picture": "1"},
        {"text": " like "},
        {"picture": "2"},
        {"text": "?"},
    ]
    assert only["answer"] == [
        {"picture": "2", "text": "IMAGE#2"},
        {"text": " is. "},
        {"picture": "1", "text": "The First Image"},
        {"text": " is not."},
    ]
    assert shown["pictures"] == dict.fromkeys("12", PICTURE.data_url)
    assert shown["next"] == 3


def test_words_for_pictures_that_there_are_not_stay_words() -> None:
    [only] = view(Conversation([turn("Is the third picture IMAGE#3?")]))["turns"]
    assert only["question"] == [{"text": "Is the third picture IMAGE#3?"}]


def test_how_an_answer_came_about_is_told() -> None:
    conversation = Conversation(
        [turn("a", answer="b", ending="stopped", tries=2, verdict="bad"), turn("c")], forgotten=1
    )
    shown = view(conversation, notice="not now")
    assert [one["ending"] for one in shown["turns"]] == ["stopped", ""]
    assert (shown["turns"][0]["tries"], shown["turns"][0]["verdict"]) == (2, "bad")
    assert (shown["forgotten"], shown["notice"], shown["answering"]) == (1, "not now", False)
    assert json.loads(json.dumps(shown)) == shown
