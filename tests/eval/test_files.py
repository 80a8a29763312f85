from pathlib import Path

import pytest

from sparkles.data.annotations import AnnotationError
from sparkles.eval.files import file_hash, read_rows, write_text


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": "\u2028"}]', '{"a": 1}\r\n\n{"a": "\u2028"}\n'])
def test_lists_and_lines_read_alike(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert read_rows(path, ["a"]) == [{"a": 1}, {"a": "\u2028"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"b": 2}', "record 1: no a; expected a, got b"),
        ('[{"a": 1}, 5]', "record 1: no a; expected a, got int"),
        ('{"a": 1}\n{"a": ', "line 2: not JSON"),
        ("[]", "no records; expected some with a"),
    ],
)
def test_a_bad_file_is_named_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=rf"rows\.json.*{message}"):
        read_rows(path, ["a"])


def test_a_missing_file_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"none\.json: no such file; expected records with a, b"):
        read_rows(tmp_path / "none.json", ["a", "b"])


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "a long first text")
    before = file_hash(path)
    write_text(path, "short")
    assert path.read_text() == "short"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]
    assert file_hash(path) != before
