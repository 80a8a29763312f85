"""A data card tells what is known, and says of the rest that it is not."""

from pathlib import Path

import pytest

from sparkles.gen.card import write_card
from sparkles.types import InputError


def test_a_card_tells_what_a_data_set_is_and_what_was_left_out(tmp_path: Path) -> None:
    facts = {
        "name": "SparklesDialogueVG",
        "model": {"asked": "gpt-4", "answered": {"gpt-4-0613": 12}},
        "rejects": {"no dialogue in the reply": 3, "a | b": 1},
        "filters": {},
        "cost": {"dollars": 1.25},
        "leakage": {
            "images": 1200,
            "hashed_images": 0,
            "evaluation_sets": {"BISON": {"compared": "id", "images": 1}},
            "found": {"10": {"BISON": "coco id 500"}},
        },
    }
    text = write_card(tmp_path / "new" / "folder" / "README.md", facts).read_text(encoding="utf-8")
    for line in (
        "# SparklesDialogueVG",
        "| asked | gpt-4 |",
        "| answered | gpt-4-0613: 12 |",
        "| no dialogue in the reply | 3 |",
        r"| a \| b | 1 |",
        "| dollars | 1.25 |",
        "| BISON | id | 1 |",
        "| 10 | BISON: coco id 500 |",
        "None.",
    ):
        assert line in text.splitlines(), line
    assert "1,200 pictures were compared, 0 of them by perceptual hash" in text
    assert text.startswith("---\nlicense: other\n")
    assert "\n\n\n" not in text


def test_what_is_not_known_is_said_to_be_so(tmp_path: Path) -> None:
    text = write_card(tmp_path / "README.md", {}).read_text(encoding="utf-8")
    assert f"# {tmp_path.name}" in text
    assert text.count("Not recorded.") == 9
    assert "Not compared: the data may hold pictures of BISON, NLVR2 or SparklesEval" in text
    assert "under the terms of its provider" in text


def test_a_fact_that_no_card_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no place for colour; it takes name, description"):
        write_card(tmp_path / "README.md", {"colour": "blue"})
