import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

from sparkles.pages import page
from sparkles.pages.page import Album, Item, Mention, Picture, Speech, Turn, draw, tally
from sparkles.prompt_format import IMAGE_TAG, image_reference
from sparkles.types import Image, Message


def stored(album: Album) -> list[PIL.Image.Image]:
    """The pictures that an album holds, decoded."""
    data = re.findall(r"url\(data:image/webp;base64,([^)]+)\)", album.style)
    return [PIL.Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB") for one in data]


def user(text: str, *images: Image) -> Message:
    return Message(role="user", content=text, images=images)


def shown(text: page.Text) -> list[object]:
    return [part.mention if isinstance(part, Picture) else part for part in text]


def test_a_picture_is_stored_once_however_often_it_is_shown(pictures: Path) -> None:
    images = [Image(image_id=number, path=pictures / f"{number}.png") for number in (1, 2, 3)]
    album = Album([*images, *images])
    assert len(stored(album)) == 2
    assert album.find(images[1]) == album.find(images[2]) != album.find(images[0])
    assert album.find(replace(images[0], image_id="other")) == album.find(images[0])


def test_pictures_are_scaled_down_and_cropped_to_their_box(pictures: Path) -> None:
    whole = Image(image_id=1, path=pictures / "1.png")
    album = Album([whole, replace(whole, box=(600, 0, 900, 600))])
    large, crop = stored(album)
    assert large.size == (page.LONGEST_SIDE, page.LONGEST_SIDE // 2)
    assert crop.size == (page.LONGEST_SIDE // 2, page.LONGEST_SIDE)
    assert "--ratio:2.000" in album.style
    assert "--ratio:0.500" in album.style


def test_many_pictures_are_smaller_each(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PAGE_PIXELS", 2 * 300**2)
    images = [Image(image_id=number, path=pictures / f"{number}.png") for number in (1, 2)]
    assert stored(Album(images))[0].size == (300, 150)


def test_a_picture_that_is_gone_does_not_cost_the_page(tmp_path: Path) -> None:
    image = Image(image_id=1, path=tmp_path / "gone.png")
    album = Album([image, Image(image_id=2)])
    assert (album.find(image), album.find(Image(image_id=2)), album.style) == ("", "", "")


def test_each_picture_takes_the_place_of_its_mention_in_the_sentence() -> None:
    images = Image(image_id=7), Image(image_id=12)
    text = f"Compare {image_reference(7)} with {image_reference(12)}, not IMAGE#120."
    [turn] = Speech([user(text, *images)], Album([])).turns()
    assert shown(turn.question) == ["Compare ", "IMAGE#7", " with ", "IMAGE#12", ", not IMAGE#120."]
    assert turn.answer is None


def test_what_is_said_of_a_picture_later_leads_back_to_it() -> None:
    messages = [
        user(f"Look at {image_reference(7)}.", Image(image_id=7)),
        Message(role="assistant", content="IMAGE#7 is red, IMAGE#71 is unknown."),
        user(f"IMAGE#7 or {image_reference('a.b')}?", Image(image_id="a.b")),
    ]
    first, second = Speech(messages, Album([])).turns()
    assert first.answer == (Mention("IMAGE#7"), " is red, IMAGE#71 is unknown.")
    assert shown(second.question) == [Mention("IMAGE#7"), " or ", "IMAGE#a.b", "?"]


def test_the_text_names_a_picture_whose_file_has_another_name() -> None:
    messages = [
        user(f"Look at {image_reference(1)}.", Image(image_id="4f3a")),
        Message(role="assistant", content="IMAGE#1 is red."),
    ]
    [turn] = Speech(messages, Album([])).turns()
    assert shown(turn.question) == ["Look at ", "IMAGE#1", "."]
    assert turn.answer == (Mention("IMAGE#1"), " is red.")


def test_a_tag_without_its_image_stays_in_the_text() -> None:
    [turn] = Speech([user(f"IMAGE#7{IMAGE_TAG}?")], Album([])).turns()
    assert "".join(map(str, turn.question)) == f"IMAGE#7{IMAGE_TAG}?"


def test_a_sample_is_drawn_evenly_by_its_seed_and_keeps_the_order() -> None:
    drawn = draw(range(100), 10, seed=1)
    assert drawn == sorted(drawn) == draw(range(100), 10, seed=1) != draw(range(100), 10, seed=2)
    assert draw(range(3), 10) == draw(range(3), None) == [0, 1, 2]


def test_items_are_counted_by_what_they_have() -> None:
    turns = (Turn(question=("?",), answer=None),)
    items = [Item(item_id="", turns=turns, kind=kind) for kind in ("b", "a", "b", "")]
    assert tally(items, "kind") == {"a": 1, "b": 2}
