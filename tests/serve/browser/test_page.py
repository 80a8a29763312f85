"""What users do on the chat's page, and what of it reaches the model."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sparkles.data.annotations import read_dialogues, read_samples
from tests.browser import HOSTILE, Page
from tests.serve.browser.conftest import RecordingEngine, serving

if TYPE_CHECKING:
    from tests.serve.browser.chat_page import ChatPage


# --- pictures between the words


def test_pictures_between_words_reach_the_model_at_these_words(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    answer = chat.ask("Compare ", pictures[0], " with ", pictures[1], ".")
    assert recording.question() == "Compare IMAGE#1[scene 0] with IMAGE#2[scene 1]."
    assert chat.asked(0).split() == ["Compare", "IMAGE#1", "with", "IMAGE#2."]
    assert answer

    chat.ask("And ", pictures[2], "?")
    assert "Human: Compare IMAGE#1[scene 0] with IMAGE#2[scene 1].###" in recording.prompt()
    assert f"Assistant: {answer}" in recording.prompt()
    assert recording.question() == "And IMAGE#3[scene 2]?"

    chat.page.reload()
    chat.expect(chat.turns).to_have_count(2)
    assert chat.asked(1).split() == ["And", "IMAGE#3?"]
    chat.ask("Are you sure about IMAGE#2?")
    assert recording.prompt().count("[scene") == 3


def test_pictures_are_pasted_at_the_cursor_and_dropped_at_a_word(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    chat.write("Is red in or in this?")
    chat.drop("or", pictures[2])
    chat.expect(chat.chips).to_have_count(1)
    chat.page.keyboard.press("Home")
    chat.copy(pictures[1])
    chat.page.keyboard.press("Control+v")
    chat.expect(chat.chips).to_have_count(2)
    chat.ask(": ")
    assert recording.question() == "IMAGE#1[scene 1]: Is red in IMAGE#2[scene 2] or in this?"


def test_chips_are_removed_by_keys_and_button_and_numbered_again(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    keyboard = chat.page.keyboard
    chat.write("a ", pictures[0], pictures[1], pictures[2], pictures[3])
    assert chat.numbers() == ["1", "2", "3", "4"]
    keyboard.press("Backspace")  # beside the cursor
    assert chat.numbers() == ["1", "2", "3"]
    chat.chips.first.focus()
    keyboard.press("Delete")
    assert chat.numbers() == ["1", "2"]
    chat.page.get_by_role("button", name="Remove IMAGE#2").click()
    chat.expect(chat.page.get_by_role("tooltip")).to_be_hidden()
    chat.ask("b")
    assert recording.question() == "a IMAGE#1[scene 1] b"


def test_a_picture_is_dragged_to_other_words_and_all_are_numbered_again(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    chat.write("Compare ", pictures[0], " with ", pictures[1], " or this.")
    chat.drag("IMAGE#1", chat.point("this"), drop=False)
    mark = chat.page.locator(".mark")
    chat.expect(mark).to_be_visible()
    box = mark.bounding_box()
    assert box is not None
    assert abs(box["x"] - chat.point("this")[0]) < 4
    chat.page.mouse.up()
    chat.expect(mark).to_be_hidden()
    chat.expect(chat.chips).to_have_count(2)
    assert chat.numbers() == ["1", "2"]
    chat.expect(chat.said).to_have_text("IMAGE#2 stands behind or now.")
    chat.page.keyboard.type(" and")  # behind it
    chat.ask()
    assert recording.question() == "Compare with IMAGE#1[scene 1] or IMAGE#2[scene 0] and this."


def test_a_picture_is_dragged_beside_another_and_to_either_end(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    chat.write(pictures[0], " or ", pictures[1], pictures[2], "?")
    box = chat.chip("IMAGE#1").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    chat.drag("IMAGE#3", (box["x"] + 4, middle))
    chat.expect(chat.said).to_have_text("IMAGE#1 stands at the beginning now.")
    chat.drag("IMAGE#2", (box["x"] + 700, middle))
    chat.expect(chat.said).to_have_text("IMAGE#3 stands at the end now.")
    chat.page.keyboard.press("Enter")
    chat.answer()
    assert recording.question() == "IMAGE#1[scene 2] or IMAGE#2[scene 1]? IMAGE#3[scene 0]"


def test_a_picture_that_is_dropped_elsewhere_stays_where_it_was(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    chat.write("Compare ", pictures[0], " with ", pictures[1], ".")
    chat.drag("IMAGE#2", chat.point("with"), (640, 200))
    chat.expect(chat.page.locator(".mark")).to_be_hidden()
    chat.drag("IMAGE#2", chat.point("with"), drop=False)
    chat.page.keyboard.press("Escape")
    chat.page.mouse.up()
    chat.drag("IMAGE#1", chat.point("with"))  # where it is
    chat.expect(chat.chips).to_have_count(2)
    assert chat.numbers() == ["1", "2"]
    chat.editor.focus()
    chat.page.keyboard.press("Enter")
    chat.answer()
    assert recording.question() == "Compare IMAGE#1[scene 0] with IMAGE#2[scene 1]."


def test_a_picture_is_moved_by_keys_which_says_where_it_stands(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    keyboard, said = chat.page.keyboard, chat.said
    chat.write("Compare ", pictures[0], " with ", pictures[1], ".")
    chat.tab_to("IMAGE#1; Delete removes it, Shift with an arrow key moves it")
    for place in ("behind with", "behind IMAGE#1", "at the end"):
        keyboard.press("Shift+ArrowRight")
        chat.expect(said).to_contain_text(place)
    keyboard.press("Shift+ArrowRight")
    chat.expect(said).to_have_text("IMAGE#2 stands at the end already.")
    chat.expect(chat.chip("IMAGE#2")).to_be_focused()
    assert chat.numbers() == ["1", "2"]
    for place in ("behind IMAGE#1", "behind with", "behind Compare", "at the beginning"):
        keyboard.press("Shift+ArrowLeft")
        chat.expect(said).to_contain_text(place)
    chat.expect(chat.chip("IMAGE#1")).to_be_focused()
    keyboard.press("Shift+ArrowRight")
    keyboard.press("Shift+ArrowRight")
    keyboard.press("Enter")
    chat.answer()
    assert recording.question() == "Compare with IMAGE#1[scene 0] IMAGE#2[scene 1]."


def test_writing_goes_on_beside_a_picture_that_has_the_focus(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    keyboard = chat.page.keyboard
    chat.write(pictures[0])
    chat.chip("IMAGE#1").focus()
    keyboard.type(" and")
    chat.chip("IMAGE#1").focus()
    keyboard.press("ArrowLeft")
    keyboard.type("Is it ")
    for _ in range(2):  # over the picture and the space behind it, one key for each
        keyboard.press("ArrowRight")
    keyboard.type("this ")
    keyboard.press("Home")
    chat.add(pictures[1])
    chat.chip("IMAGE#2").click()
    chat.add(pictures[2])
    keyboard.press("Enter")
    chat.answer()
    assert recording.question() == "IMAGE#1[scene 1] Is it IMAGE#2[scene 0] IMAGE#3[scene 2] this and"


def test_undo_brings_pictures_back_and_takes_them_away_in_order(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    keyboard = chat.page.keyboard

    def shows(text: str) -> None:
        chat.expect(chat.editor).to_have_text(re.compile(rf"^\W*{text}\W*$"))

    chat.write("one ", pictures[0], "two ", pictures[1])
    keyboard.press("Backspace")
    shows("one .*1.*two")
    chat.chip("IMAGE#1").focus()
    keyboard.press("Shift+ArrowLeft")
    shows("IMAGE#1.*one two")
    for text in ("one .*1.*two", "one .*1.*two .*2", "one .*1.*two", "one .*1", "one", ""):
        keyboard.press("Control+z")
        shows(text)
    for text in ("one", "one .*1", "one .*1.*two", "one .*1.*two .*2"):
        keyboard.press("Control+Shift+z")
        shows(text)
    keyboard.press("Control+a")
    keyboard.press("Delete")
    shows("")
    keyboard.press("Control+z")
    chat.ask("!")
    assert recording.question() == "one IMAGE#1[scene 0] two IMAGE#2[scene 1]!"
    keyboard.press("Control+z")  # what was sent is not undone
    shows("")


def test_pictures_are_cut_and_pasted_with_the_words_around_them(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    keyboard = chat.page.keyboard
    chat.write("like ", pictures[0], "Is this ")
    keyboard.press("Home")
    for _ in range(7):
        keyboard.press("Shift+ArrowRight")
    keyboard.press("Control+x")
    chat.expect(chat.chips).to_have_count(0)
    keyboard.press("End")
    keyboard.press("Control+v")
    chat.expect(chat.chips).to_have_count(1)
    chat.page.keyboard.press("Enter")
    chat.answer()
    assert recording.question() == "Is this like IMAGE#1[scene 0]"


def test_what_is_no_picture_is_refused_in_words(chat: "ChatPage", tmp_path: Path) -> None:
    for name, words in (("notes.txt", "Only pictures"), ("broken.png", "Cannot be read")):
        (tmp_path / name).write_text("no picture")
        with chat.page.expect_file_chooser() as chooser:
            chat.button("Add pictures at the cursor").click()
        chooser.value.set_files(tmp_path / name)
        chat.expect(chat.page.get_by_role("alert")).to_contain_text(words)


def test_a_question_that_is_sent_before_the_server_has_said_anything_waits_for_it(
    page: Any, address: str, pictures: list[Path], recording: RecordingEngine
) -> None:
    from tests.serve.browser.chat_page import ChatPage

    page.route("**/gradio_api/queue/join*", lambda route: None)  # held back
    chat = ChatPage(page).open(address)
    chat.write("What is in ", pictures[0], "?")
    assert chat.numbers() == ["1"]
    page.keyboard.press("Enter")
    told = page.get_by_role("alert")
    chat.expect(told).to_contain_text("The question waits for the server to answer")
    chat.write("Are you sure?")
    page.keyboard.press("Enter")
    chat.expect(told).to_contain_text("The last question is still on its way")
    page.unroute("**/gradio_api/queue/join*")  # on they go
    chat.expect(chat.turns).to_have_count(1)
    chat.answer()
    assert recording.question() == "What is in IMAGE#1[scene 0]?"
    chat.expect(chat.editor).to_have_text("Are you sure?")
    page.keyboard.press("Enter")
    chat.expect(chat.turns).to_have_count(2)
    chat.ended()
    assert "What is in" in recording.prompt()


def test_a_question_is_part_of_the_conversation_that_was_seen_when_it_was_sent(
    chat: "ChatPage", recording: RecordingEngine
) -> None:
    chat.ask("First words")
    chat.button("New conversation").click()
    chat.expect(chat.turns).to_have_count(0)
    chat.ask("Other words")
    chat.page.route("**/gradio_api/queue/join*", lambda route: None)  # held back
    chat.page.get_by_role("radio", name="First words").check()
    chat.write("Are you sure?")
    chat.page.keyboard.press("Enter")
    asked = len(recording.asked)
    chat.page.unroute("**/gradio_api/queue/join*")
    while len(recording.asked) == asked:
        chat.page.wait_for_timeout(50)
    chat.page.get_by_role("radio", name="Other words").check()
    chat.expect(chat.turns).to_have_count(2)
    chat.ended()
    assert "Other words" in recording.prompt()


def test_of_several_files_those_that_are_no_pictures_are_named(
    chat: "ChatPage", pictures: list[Path], tmp_path: Path
) -> None:
    others = [tmp_path / "broken.png", tmp_path / "notes.txt"]
    for file in others:
        file.write_text("no picture")
    with chat.page.expect_file_chooser() as chooser:
        chat.button("Add pictures at the cursor").click()
    chooser.value.set_files([pictures[0], *others])
    chat.expect(chat.page.get_by_role("alert")).to_contain_text("Cannot be read: broken.png, notes.txt")
    assert chat.numbers() == ["1"]


def test_what_is_not_sent_yet_is_said_to_be_and_why(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    told = chat.page.get_by_role("alert")
    chat.write(" ")
    chat.button("Send").click()
    chat.expect(told).to_contain_text("The question is empty")
    chat.page.evaluate(
        """() => {
            const read = createImageBitmap;
            window.createImageBitmap = async (file) => {
                await new Promise((resolve) => setTimeout(resolve, 1500));
                return read(file);
            };
        }"""
    )
    with chat.page.expect_file_chooser() as chooser:
        chat.button("Add pictures at the cursor").click()
    chooser.value.set_files(pictures[0])
    chat.editor.focus()
    chat.page.keyboard.type("Here: ")
    chat.page.keyboard.press("Home")
    chat.page.keyboard.press("Enter")
    chat.expect(told).to_contain_text("still being read")
    chat.expect(chat.chips).to_have_count(1)  # where the cursor was
    recording.pause = 0.1
    chat.page.keyboard.press("Enter")
    chat.expect(chat.button("Stop")).to_be_visible()
    chat.page.keyboard.type("And?")
    chat.page.keyboard.press("Enter")
    chat.expect(told).to_contain_text("An answer is still being written")
    chat.expect(chat.editor).to_have_text("And?")
    chat.button("Stop").click()
    chat.answer()
    chat.expect(told).to_be_hidden()


def test_a_question_that_does_not_reach_the_server_is_there_again(
    page: Any, pictures: list[Path], recording: RecordingEngine
) -> None:
    from tests.serve.browser.chat_page import ChatPage

    with serving(recording) as server:
        chat = ChatPage(page).open(f"http://127.0.0.1:{server.port}/")
        chat.write("Is it ", pictures[0], "?")
    page.keyboard.press("Enter")
    chat.expect(page.get_by_text("The server cannot be reached; the question is here again.")).to_be_visible()
    chat.expect(chat.editor).to_contain_text(re.compile(r"Is it.*IMAGE#1.*\?"))


def test_a_page_that_is_loaded_again_has_what_was_being_written(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    chat.write("Is it ", pictures[0], "?")
    chat.page.reload()
    chat.expect(chat.chips).to_have_count(1)
    chat.editor.focus()
    chat.page.keyboard.press("Enter")
    chat.answer()
    assert recording.question() == "Is it IMAGE#1[scene 0]?"
    chat.page.reload()
    chat.expect(chat.turns).to_have_count(1)
    assert chat.numbers() == []


def test_a_conversation_that_the_server_has_forgotten_is_not_gone_on_with(
    page: Any, recording: RecordingEngine
) -> None:
    from tests.serve.browser.chat_page import ChatPage

    with serving(recording) as server:
        port = server.port
        chat = ChatPage(page).open(f"http://127.0.0.1:{port}/")
        chat.ask("First words")
    with serving(recording, port=port):
        chat.write("Are you sure?")
        page.keyboard.press("Enter")
        chat.expect(page.get_by_role("alert")).to_contain_text("The server has forgotten this conversation")
        chat.expect(chat.turns).to_have_count(0)
        chat.expect(chat.editor).to_have_text("Are you sure?")
        page.keyboard.press("Enter")
        chat.answer()
        assert "First words" not in recording.prompt()


def test_a_page_finds_the_server_again(page: Any, recording: RecordingEngine) -> None:
    from tests.serve.browser.chat_page import ChatPage

    with serving(recording) as server:
        port = server.port
        chat = ChatPage(page).open(f"http://127.0.0.1:{port}/")
        chat.ask("First words")
    chat.write("Are you sure?")
    page.keyboard.press("Enter")
    chat.expect(page.get_by_text("The server cannot be reached")).to_be_visible()
    with serving(recording, port=port):
        chat.expect(chat.turns).to_have_count(0)  # it was loaded again
        chat.expect(chat.editor).to_have_text("Are you sure?")
        chat.editor.focus()
        page.keyboard.press("Enter")
        chat.answer()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            413,
            '{"error": {"message": "the request has more than 20 bytes"}}',
            "the request has more than 20 bytes;",
        ),
        (401, '{"detail": "Not authenticated"}', "You are no longer logged in"),
        (502, "<html>", "The server refused it with status 502;"),
    ],
)
def test_a_question_that_is_refused_on_its_way_is_there_again(
    chat: "ChatPage", pictures: list[Path], status: int, body: str, told: str
) -> None:
    held: list[Any] = []
    chat.page.route("**/gradio_api/queue/join*", lambda route: held.append(route))
    chat.write("Is it ", pictures[0], "?")
    chat.page.keyboard.press("Enter")
    chat.write("And?")
    while not held:
        chat.page.wait_for_timeout(50)
    held[0].fulfill(status=status, body=body)
    alert = chat.page.get_by_role("alert").filter(has_text="here again")
    chat.expect(alert).to_contain_text(re.compile(re.escape(told), re.IGNORECASE))
    assert chat.numbers() == ["1"]
    chat.expect(chat.editor).to_have_text(re.compile(r"Is it.*\?\s*And\?"))
    chat.page.unroute("**/gradio_api/queue/join*")
    chat.page.keyboard.press("Enter")
    chat.answer()


def test_a_question_on_a_slow_way_is_said_to_be_sent(chat: "ChatPage") -> None:
    chat.page.route("**/gradio_api/queue/join*", lambda route: None)  # held back
    chat.write("Hi")
    chat.page.keyboard.press("Enter")
    chat.expect(chat.button("Sending…")).to_be_visible()
    chat.page.unroute("**/gradio_api/queue/join*")
    chat.expect(chat.turns).to_have_count(1)
    chat.ended()


def test_a_page_whose_server_goes_in_the_middle_of_an_answer_finds_the_next(
    page: Any, recording: RecordingEngine
) -> None:
    from tests.serve.browser.chat_page import ChatPage

    recording.pause = 1.0
    with serving(recording, patience=1) as server:
        port = server.port
        chat = ChatPage(page).open(f"http://127.0.0.1:{port}/")
        chat.write("First words")
        page.keyboard.press("Enter")
        chat.expect(chat.turns).to_have_count(1)
    recording.pause = 0.0
    with serving(recording, port=port):
        chat.expect(chat.turns).to_have_count(0)
        chat.ask("Other words")


def test_large_pictures_are_scaled_down_before_they_are_sent(
    chat: "ChatPage", recording: RecordingEngine, tmp_path: Path
) -> None:
    import PIL.Image

    PIL.Image.effect_noise((2000, 1000), 60).convert("RGB").save(tmp_path / "large.jpg")
    sent: list[int] = []
    chat.page.on("request", lambda request: sent.append(len(request.post_data or "")))
    chat.ask("What is ", tmp_path / "large.jpg", "?")
    size = chat.turns.last.locator("img").first.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size == [1024, 512]
    assert max(sent) < 1_000_000


def test_words_that_mean_a_picture_show_it(chat: "ChatPage", pictures: list[Path]) -> None:
    chat.ask(pictures[0], " and ", pictures[1], ": is the second picture like IMAGE#1?")
    shown = chat.page.get_by_role("tooltip")
    chat.expect(shown).to_be_hidden()
    chat.page.get_by_role("button", name="the second picture, shows IMAGE#2").first.hover()
    chat.expect(shown).to_contain_text("IMAGE#2")
    chat.page.mouse.move(0, 0)
    chat.expect(shown).to_be_hidden()
    chat.page.get_by_role("button", name="IMAGE#1", exact=True).first.focus()
    chat.expect(shown).to_contain_text("IMAGE#1")
    chat.page.keyboard.press("Escape")
    chat.expect(shown).to_be_hidden()


def test_a_draft_with_pictures_that_are_too_large_to_keep_keeps_its_words(
    chat: "ChatPage", tmp_path: Path
) -> None:
    import PIL.Image

    PIL.Image.effect_noise((1000, 1000), 90).convert("RGB").save(tmp_path / "large.png")
    chat.write("These words ", *[tmp_path / "large.png"] * 3, "stay")
    chat.page.reload()
    chat.expect(chat.editor).to_have_text("These words stay")
    assert chat.numbers() == []


def test_what_office_programs_copy_is_pasted_as_words(chat: "ChatPage", pictures: list[Path]) -> None:
    chat.editor.focus()
    chat.editor.evaluate(
        """(editor) => {
            const data = new DataTransfer();
            data.setData("text/plain", "one cell");
            data.items.add(new File(["picture"], "cell.png", { type: "image/png" }));
            const event = new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
            editor.dispatchEvent(event);
        }"""
    )
    chat.expect(chat.editor).to_have_text("one cell")
    assert chat.numbers() == []


def test_enter_that_ends_a_composition_sends_nothing(chat: "ChatPage") -> None:
    chat.write("kanji")
    chat.editor.evaluate(  # as Safari does
        "(editor) => editor.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', keyCode: 229, bubbles: true }))"
    )
    chat.expect(chat.editor).to_have_text("kanji")
    chat.expect(chat.button("Send")).to_be_visible()


# --- several tabs, and what has changed meanwhile


@pytest.fixture
def second(chat: "ChatPage", context: Any, address: str) -> Iterator["ChatPage"]:
    """Another tab of the same visitor."""
    from tests.serve.browser.chat_page import ChatPage

    with chat.page.expect_popup() as opened:
        chat.page.evaluate("() => { window.open('about:blank') }")
    tab = opened.value
    tab.add_init_script("sessionStorage.known = 1")
    yield ChatPage(tab).open(address)
    tab.close()


def test_tabs_show_the_same_conversations(chat: "ChatPage", second: "ChatPage") -> None:
    chat.ask("Asked in the first tab")
    second.button("New conversation").click()
    second.expect(second.page.get_by_role("radio", name="Asked in the first tab")).to_be_visible()


def test_an_answer_is_followed_where_it_was_not_asked_for(
    chat: "ChatPage", second: "ChatPage", recording: RecordingEngine
) -> None:
    recording.pause = 0.15
    chat.write("Hi")
    chat.page.keyboard.press("Enter")
    chat.expect(chat.turns).to_have_count(1)
    second.page.reload()
    second.expect(second.button("Stop")).to_be_visible()
    second.ended()
    assert second.answer() == chat.answer() != ""


def test_a_page_that_is_loaded_again_before_the_first_word_is_not_left_waiting(
    chat: "ChatPage", recording: RecordingEngine
) -> None:
    recording.pause = 2.5
    chat.write("Hi")
    chat.page.keyboard.press("Enter")
    chat.expect(chat.turns).to_have_count(1)
    chat.page.reload()
    chat.expect(chat.button("Stop")).to_be_visible()
    chat.ended()
    chat.expect(chat.turns.last).to_contain_text("Stopped.")


def test_of_a_question_without_an_answer_it_is_said_what_becomes_of_it(
    chat: "ChatPage", recording: RecordingEngine
) -> None:
    recording.pause = 2.5
    chat.write("Hi")
    chat.page.keyboard.press("Enter")
    chat.button("Stop").click()
    chat.ended()
    chat.expect(chat.turns.last).to_contain_text("Stopped. The model reads this question with the next one")


def test_what_has_changed_elsewhere_is_shown_before_anything_is_done_to_it(
    chat: "ChatPage", second: "ChatPage"
) -> None:
    chat.ask("Hi")
    second.page.reload()
    second.expect(second.turns).to_have_count(1)
    chat.ask("And?")
    changed = second.page.get_by_role("alert").filter(has_text="The conversation has changed meanwhile")
    second.button("Edit the question").click()
    second.expect(changed).to_be_visible()
    second.expect(second.turns).to_have_count(2)
    chat.button("Retry").click()
    chat.expect(chat.turns.last).to_contain_text("Try 2.")
    chat.ended()
    second.write("A draft")
    second.page.keyboard.press("Enter")
    second.expect(changed).to_be_visible()
    second.expect(second.editor).to_have_text("A draft")
    second.expect(second.turns.last).to_contain_text("Try 2.")


def test_two_clicks_on_edit_take_back_one_question(chat: "ChatPage") -> None:
    chat.ask("First words")
    chat.ask("Other words")
    chat.button("Edit the question").dblclick()
    chat.expect(chat.turns).to_have_count(1)
    chat.expect(chat.editor).to_have_text("Other words")
    chat.page.wait_for_timeout(500)
    chat.expect(chat.turns).to_have_count(1)


def test_a_question_that_is_edited_stands_before_the_draft(chat: "ChatPage") -> None:
    chat.ask("First words")
    chat.write("A draft")
    chat.button("Edit the question").click()
    chat.expect(chat.editor).to_have_text(re.compile(r"First words\s*A draft"))


def test_nothing_takes_the_page_away_from_where_the_user_has_gone(
    chat: "ChatPage", recording: RecordingEngine
) -> None:
    recording.pause = 0.05
    chat.page.get_by_role("button", name="One scene").click()
    chat.expect(chat.turns).to_have_count(1)
    asked = len(recording.asked)
    chat.button("New conversation").click()
    chat.expect(chat.turns).to_have_count(0)
    chat.write("A draft")
    while len(recording.asked) == asked:  # the example's second question
        chat.page.wait_for_timeout(50)
    chat.page.wait_for_timeout(500)
    chat.expect(chat.turns).to_have_count(0)
    chat.expect(chat.editor).to_have_text("A draft")


def test_a_question_that_is_refused_where_nobody_looks_waits_there(
    chat: "ChatPage", pictures: list[Path]
) -> None:
    chat.ask("First words")
    chat.page.route(
        "**/gradio_api/queue/join*",
        lambda route: None if '"parts"' in route.request.post_data else route.continue_(),  # questions wait
    )
    chat.write(*pictures, pictures[0], " are too many")
    chat.page.keyboard.press("Enter")
    chat.button("New conversation").click()
    chat.expect(chat.turns).to_have_count(0)
    chat.write("A draft")
    chat.page.unroute("**/gradio_api/queue/join*")
    chat.page.wait_for_timeout(500)
    chat.expect(chat.editor).to_have_text("A draft")
    chat.page.get_by_role("radio", name="First words").check()
    chat.expect(chat.page.get_by_role("alert")).to_contain_text("at most 4 are seen")
    chat.expect(chat.chips).to_have_count(5)


# --- answers


def test_an_answer_streams_and_can_be_stopped_retried_and_edited(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    recording.pause = 0.1
    chat.write("Describe ", pictures[0], " briefly.")
    chat.page.keyboard.press("Enter")
    answer = chat.turns.last.get_by_role("group", name="Answer")
    chat.expect(answer).to_have_text(re.compile(r"\w+ \w+"))
    assert answer.get_attribute("aria-busy") == "true"
    chat.button("Stop").click()
    partial = chat.answer()
    chat.expect(chat.turns.last).to_contain_text("Stopped.")

    recording.pause = 0.0
    chat.button("Retry").click()
    chat.expect(chat.turns.last).to_contain_text("Try 2.")
    whole = chat.answer()
    assert whole.startswith(partial)
    assert len(whole) > len(partial)
    assert recording.question() == recording.question(-2)

    chat.button("Edit the question").click()
    chat.expect(chat.turns).to_have_count(0)
    assert chat.numbers() == ["1"]
    chat.ask(" Now")
    assert recording.question() == "Describe IMAGE#1[scene 0] briefly. Now"


def test_a_page_that_is_left_while_an_answer_is_written_finds_what_there_was(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    recording.pause = 0.1
    chat.write("Describe ", pictures[0], " briefly.")
    chat.page.keyboard.press("Enter")
    chat.expect(chat.turns.last.get_by_role("group", name="Answer")).to_have_text(re.compile(r"\w+ \w+"))
    chat.page.reload()
    chat.expect(chat.turns).to_have_count(1)
    recording.pause = 0.0
    chat.ask("Are you sure?")
    assert "Describe IMAGE#1[scene 0] briefly." in recording.prompt()


def test_an_answer_does_not_follow_to_another_conversation(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    recording.pause = 0.1
    chat.write("Describe ", pictures[0], " briefly.")
    chat.page.keyboard.press("Enter")
    chat.expect(chat.button("Stop")).to_be_visible()
    chat.button("New conversation").click()
    chat.expect(chat.turns).to_have_count(0)
    chat.page.wait_for_timeout(500)
    chat.expect(chat.turns).to_have_count(0)
    chat.page.get_by_role("radio", name="Describe").check()
    chat.expect(chat.turns).to_have_count(1)
    recording.pause = 0.0
    assert chat.answer().endswith(".")


def test_settings_reach_the_model(chat: "ChatPage", recording: RecordingEngine) -> None:
    chat.unfold("Settings")
    for label, value in (("Temperature", "0.5"), ("Longest answer", "3"), ("Seed", "7")):
        chat.page.get_by_role("spinbutton", name=label).fill(value)
        chat.page.keyboard.press("Tab")
    chat.ask("Hello")
    sampling = recording.asked[-1].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.5, 3, 7)
    chat.expect(chat.turns.last).to_contain_text("Cut off")
    chat.page.get_by_role("spinbutton", name="Seed").fill("")
    chat.page.keyboard.press("Tab")
    chat.ask("Hello")
    assert recording.asked[-1].sampling.seed is None


def test_a_question_that_cannot_be_asked_goes_back_into_the_editor(chat: "ChatPage") -> None:
    chat.unfold("Settings")
    for label, value in (("Temperature", "1"), ("Beams", "3")):
        chat.page.get_by_role("spinbutton", name=label).fill(value)
        chat.page.keyboard.press("Tab")
    chat.write("Hello")
    chat.page.keyboard.press("Enter")
    chat.expect(chat.page.get_by_role("alert")).to_contain_text("ore than one beam needs temperature 0")
    chat.expect(chat.editor).to_have_text("Hello")
    chat.expect(chat.turns).to_have_count(0)


def test_what_users_and_models_write_stays_text(chat: "ChatPage") -> None:
    words = HOSTILE.replace("\ud800", "").replace("\x00", "") + " ${document.title = 'owned'} {{value}} `"
    chat.editor.focus()
    chat.page.keyboard.insert_text(words)
    chat.page.keyboard.press("Enter")
    chat.answer()
    assert "<script>" in chat.asked(0)
    assert "${document.title" in chat.asked(0)
    chat.page.reload()
    chat.expect(chat.turns).to_have_count(1)
    assert chat.page.evaluate("document.documentElement.dataset.owned") is None
    assert chat.page.title() == "Nano"


def test_what_no_longer_fits_is_left_out_whole_and_said_to_be(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    told = chat.page.get_by_text("no longer sees the first question")
    chat.ask("Compare ", pictures[0], " with ", pictures[1], ".")
    chat.expect(told).to_be_hidden()
    chat.ask("Compare ", *pictures[1:], ".")
    assert recording.prompt().count("[scene") == 3
    assert "IMAGE#3[scene 1]" in recording.question()
    chat.expect(told).to_be_visible()
    chat.expect(chat.turns.first).to_contain_text("No longer seen by the model.")
    chat.expect(chat.turns.last).not_to_contain_text("No longer seen by the model.")


# --- conversations


def test_conversations_are_listed_opened_and_forgotten(chat: "ChatPage", recording: RecordingEngine) -> None:
    chat.ask("First words")
    chat.button("New conversation").click()
    chat.expect(chat.turns).to_have_count(0)
    chat.ask("Other words")
    assert "First" not in recording.prompt()
    chat.page.get_by_role("radio", name="First words").check()
    chat.expect(chat.turns.first).to_contain_text("First words")
    chat.page.once("dialog", lambda dialog: dialog.dismiss())
    chat.button("Delete this one").click()
    chat.expect(chat.turns.first).to_contain_text("First words")
    chat.page.on("dialog", lambda dialog: dialog.accept())
    chat.button("Delete this one").click()
    chat.expect(chat.turns.first).to_contain_text("Other words")
    chat.button("Delete all").click()
    chat.expect(chat.turns).to_have_count(0)
    chat.page.reload()
    chat.expect(chat.turns).to_have_count(0)


def test_visitors_do_not_see_each_other(
    chat: "ChatPage", browser: Any, address: str, recording: RecordingEngine
) -> None:
    from tests.serve.browser.chat_page import ChatPage

    chat.ask("My own words")
    other = ChatPage(browser.new_page()).open(address)
    chat.expect(other.turns).to_have_count(0)
    other.ask("Whose?")
    assert "own words" not in recording.prompt()
    other.page.close()


def test_an_example_is_asked_with_a_click(chat: "ChatPage", recording: RecordingEngine) -> None:
    chat.page.get_by_role("button", name="One scene").click()
    chat.expect(chat.turns).to_have_count(2)
    chat.answer()
    assert "Describe IMAGE#1[scene 3] briefly." in recording.prompt()
    assert recording.question() == "Are you sure?"


def test_answers_are_rated_once_and_become_training_data(
    chat: "ChatPage", pictures: list[Path], kept: Path
) -> None:
    answer = chat.ask("Describe ", pictures[0], " briefly.")
    chat.button("Good answer").click()
    chat.expect(chat.button("Good answer")).to_have_attribute("aria-pressed", "true")
    chat.expect(chat.button("Bad answer")).to_be_disabled()
    (sample,) = read_samples(kept / "good.jsonl")
    assert sample.answer == answer
    chat.ask("Are you sure?")
    chat.button("Flag the answer as harmful or broken").last.click()
    chat.expect(chat.button("Flag the answer as harmful or broken").last).to_be_disabled()
    (sample,) = read_samples(kept / "flagged.jsonl")
    assert len(sample.prompt.messages) == 3


def test_a_conversation_is_saved_as_a_training_dialogue_and_as_a_page(
    chat: "ChatPage", pictures: list[Path], tmp_path: Path
) -> None:
    answer = chat.ask("Compare ", pictures[0], " with ", pictures[1], ".")
    chat.unfold("Save this conversation")
    files = {}
    for name in ("As a training dialogue (.zip)", "As a web page (.html)"):
        with chat.page.expect_download() as download:
            chat.button(name).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        files[path.suffix] = path
    with zipfile.ZipFile(files[".zip"]) as archive:
        archive.extractall(tmp_path)
    (dialogue,) = read_dialogues(next((tmp_path / "annotations").iterdir()))
    assert dialogue.messages[1].content == answer
    assert [image.image_id for image in dialogue.images] == ["1", "2"]
    assert "Compare" in Page(files[".html"].read_text()).shown


# --- everyone


def test_all_of_it_goes_by_keyboard_alone(
    chat: "ChatPage", pictures: list[Path], recording: RecordingEngine
) -> None:
    keyboard = chat.page.keyboard
    chat.copy(pictures[0])
    chat.tab_to("Question with pictures between the words")
    keyboard.type("Describe ")
    keyboard.press("Control+v")
    chat.expect(chat.chips).to_have_count(1)
    keyboard.press("Shift+Enter")
    keyboard.type("briefly.")
    chat.tab_to("Send")
    keyboard.press("Enter")
    chat.answer()
    assert recording.question() == "Describe IMAGE#1[scene 0]\nbriefly."
    chat.tab_to("Retry")
    keyboard.press("Space")
    chat.expect(chat.turns.last).to_contain_text("Try 2.")
    chat.ended()
    chat.tab_to("IMAGE#1, shows the picture")
    chat.expect(chat.page.get_by_role("tooltip")).to_be_visible()
    chat.tab_to("New conversation")
    keyboard.press("Enter")
    chat.expect(chat.turns).to_have_count(0)


def test_a_page_begins_at_its_top_and_a_conversation_at_its_end(chat: "ChatPage") -> None:
    chat.page.set_viewport_size({"width": 390, "height": 300})
    chat.page.reload()
    chat.expect(chat.button("One scene")).to_be_attached()
    chat.settled()
    assert chat.page.evaluate("scrollY") == 0
    chat.ask("Describe it.")
    chat.page.reload()
    chat.expect(chat.turns).to_have_count(1)
    chat.expect(chat.turns.last.get_by_role("button", name="Good answer")).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(chat: "ChatPage", pictures: list[Path], scheme: Any) -> None:
    chat.page.emulate_media(color_scheme=scheme)
    chat.page.set_viewport_size({"width": 390, "height": 800})
    chat.page.reload()
    chat.ask("Compare ", pictures[0], " with ", pictures[1], ". " + "Reallyquitelongwords" * 5)
    width = chat.page.evaluate("document.documentElement.scrollWidth")
    assert width == 390
    for name in ("Send", "Add pictures at the cursor"):
        box = chat.button(name).bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= 390 - box["width"]
        assert box["height"] >= 30


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_nothing_to_object_to(
    chat: "ChatPage", pictures: list[Path], width: int, scheme: Any
) -> None:
    """Labels, roles, contrast: what a program can find of what keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    def objections() -> list[str]:
        for _ in range(20):  # colours change gradually
            found = Axe().run(chat.page).response["violations"]
            if not found:
                return []
            chat.page.wait_for_timeout(200)
        return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]

    chat.page.emulate_media(color_scheme=scheme)
    chat.page.set_viewport_size({"width": width, "height": 900})
    chat.page.reload()
    chat.expect(chat.page.get_by_role("heading", name="Nano")).to_be_visible()
    assert objections() == [], "of the welcome"
    chat.ask("Compare ", pictures[0], " with ", pictures[1], ".")
    chat.write("And ", pictures[2], "?")
    if width > 800:  # else the sidebar covers the page
        for name in ("Settings", "Save this conversation"):
            chat.unfold(name)
    assert objections() == [], "of a conversation"
