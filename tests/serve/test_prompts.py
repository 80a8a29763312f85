import pytest

from sparkles.llm_client import chat_messages
from sparkles.prompt_format import IMAGE_PLACEHOLDER, IMAGE_TAG, MINIGPT4, image_reference
from sparkles.serve.prompts import ConversationError, Said, to_messages
from sparkles.types import Image, Message

A, B = image_reference(1), image_reference(2)


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        (["Compare ", None, " with ", None, "."], f"Compare {A} with {B}."),
        (["Compare", None, "with", None, "."], f"Compare {A} with {B}."),
        ([None, None, "Which is red?"], f"{A} {B} Which is red?"),
        (["Which is red?", None], f"Which is red? {A}"),
        (["Is it (", None, ")?"], f"Is it ({A})?"),
        (["first line\n", None, "\nlast line"], f"first line\n{A}\nlast line"),
        (["one", "two"], "one two"),
        (["", None, "", "yes"], f"{A} yes"),
        ([], ""),
    ],
)
def test_pictures_stand_where_their_parts_stand(parts: list[str | None], content: str) -> None:
    (message,) = to_messages([Said("user", parts)])
    assert message.content == content
    assert len(message.images) == parts.count(None)
    MINIGPT4.render_prompt([message], system=True)


def test_a_name_in_front_of_a_picture_becomes_its_name() -> None:
    (message,) = to_messages([Said("user", ["Is IMAGE#7", None, " like ", None, " or IMAGE#2", None, "?"])])
    assert message.content == f"Is IMAGE#7{IMAGE_TAG} like {B} or IMAGE#2 {image_reference(3)}?"
    assert [image.image_id for image in message.images] == ["7", "2", "3"]


def test_numbers_go_on_over_the_turns() -> None:
    messages = to_messages(
        [Said("user", ["See ", None]), Said("assistant", ["I do."]), Said("user", ["And ", None, "?"])]
    )
    assert [message.content for message in messages] == [f"See {A}", "I do.", f"And {B}?"]


def test_what_our_client_sends_comes_back_as_it_was() -> None:
    images = tuple(Image(image_id=name) for name in ("3", "12"))
    content = f"Is {image_reference(3)}, left of {image_reference(12)}, red?"
    (sent,) = chat_messages([Message(role="user", content=content, images=images)])
    (message,) = to_messages(
        [Said("user", [part if isinstance(part, str) else None for part in sent.content])]
    )
    assert (message.content, message.images) == (content, images)


@pytest.mark.parametrize("typed", [IMAGE_PLACEHOLDER, IMAGE_TAG, f"<Image{IMAGE_PLACEHOLDER}Here>"])
def test_placeholders_in_the_text_show_nothing(typed: str) -> None:
    messages = to_messages(
        [Said("user", [typed, None]), Said("assistant", [f"I see {typed}"]), Said("user", [typed])]
    )
    MINIGPT4.render_prompt(messages, system=True)
    assert [len(message.images) for message in messages] == [1, 0, 0]


def test_messages_of_one_side_in_a_row_are_one() -> None:
    messages = to_messages([Said("user", [None]), Said("user", ["And ", None])])
    assert [(message.content, len(message.images)) for message in messages] == [(f"{A}\nAnd {B}", 2)]


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "assistant"], ["assistant", "user"]])
def test_a_conversation_begins_and_ends_with_the_user(roles: list[str]) -> None:
    with pytest.raises(ConversationError, match="begins and ends with a user message"):
        to_messages([Said(role, ["x"]) for role in roles])  # type: ignore[arg-type]


def test_the_assistant_shows_no_pictures() -> None:
    with pytest.raises(ConversationError, match="only the user's may"):
        to_messages([Said("user", ["x"]), Said("assistant", [None]), Said("user", ["y"])])
