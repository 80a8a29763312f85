import base64
import io
from pathlib import Path

import PIL.Image
import pytest

from sparkles.serve.pictures import PictureError
from sparkles.serve.terminal.typed_pictures import parse_question, spell


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """cat.png, my dog.png and what?.png in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "my dog.png", "what?.png"):
        PIL.Image.new("RGB", (4, 4)).save(tmp_path / name)
    return tmp_path


def written(text: str) -> str:
    """The question with [] where pictures stand."""
    return "".join(part.get("text", "[]") for part in parse_question(text)[0])


def content(part: dict[str, str]) -> bytes:
    return base64.b64decode(part["picture"].partition(",")[2])


@pytest.mark.parametrize(
    ("text", "expected", "paths"),
    [
        ("Describe @cat.png", "Describe []", ["cat.png"]),
        ("Describe @cat.png.", "Describe [].", ["cat.png"]),
        ("Is @cat.png, well, a cat?", "Is [], well, a cat?", ["cat.png"]),
        ("What is in (@cat.png)?!", "What is in ([])?!", ["cat.png"]),
        ("He said '@cat.png'.", "He said '[]'.", ["cat.png"]),
        ('See @"my dog.png".', "See [].", ["my dog.png"]),
        ('See @"what?.png"?', "See []?", ["what?.png"]),
        ("See @what?.png?", "See []?", ["what?.png"]),
        ("@cat.png", "[]", ["cat.png"]),
        ("比较@cat.png", "比较[]", ["cat.png"]),
        ("@./cat.png and\n@cat.png", "[] and\n[]", ["./cat.png", "cat.png"]),
        ("Write to me@example.org @ home.", "Write to me@example.org @ home.", []),
    ],
)
def test_paths_become_pictures_where_they_stand(text: str, expected: str, paths: list[str]) -> None:
    assert written(text) == expected
    assert parse_question(text)[1] == paths


@pytest.mark.parametrize("path", ["cat.png", "my dog.png", "what?.png", "it is.", "end.", "a'b", "(1).png"])
def test_what_is_spelled_is_read_as_it_was(path: str, pictures: Path) -> None:
    PIL.Image.new("RGB", (4, 4)).save(pictures / path, "PNG")
    assert parse_question(f"Is {spell(path)}, well, red?")[1] == [path]


def test_a_path_may_begin_at_home_or_at_the_root(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures))
    parts, paths = parse_question(f"@~/cat.png and @{pictures}/cat.png")
    assert paths == ["~/cat.png", f"{pictures}/cat.png"]
    assert content(parts[0]) == content(parts[2]) == (pictures / "cat.png").read_bytes()


def test_what_browsers_do_not_show_is_read_all_the_same(pictures: Path) -> None:
    PIL.Image.new("RGB", (4, 6), "red").save(pictures / "scan.tiff")
    ([part], _) = parse_question("@scan.tiff")
    with PIL.Image.open(io.BytesIO(content(part))) as picture:
        assert (picture.format, picture.size, picture.getpixel((0, 0))) == ("PNG", (4, 6), (255, 0, 0))


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("@dog.png", "cannot read dog.png: No such file or directory; expected a picture behind @"),
        ('@"no such.png"', "cannot read no such.png: No such file"),
        ("@~nobody-of-this-name/cat.png", "cannot read ~nobody-of-this-name/cat.png"),
        ("@.", "cannot read .: Is a directory"),
        ("@notes.txt", "cannot read notes.txt: cannot identify image file"),
        ("@half.png", "cannot read half.png: "),
    ],
)
def test_a_path_that_is_no_picture_is_refused_with_its_name(pictures: Path, typed: str, reason: str) -> None:
    (pictures / "notes.txt").write_text("no pixels")
    PIL.Image.effect_noise((64, 64), 90).save(pictures / "whole.png")
    (pictures / "half.png").write_bytes((pictures / "whole.png").read_bytes()[:900])
    with pytest.raises(PictureError) as refused:
        parse_question(f"Describe {typed}")
    assert str(refused.value).startswith(reason)
