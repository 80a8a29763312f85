"""Figures are drawn for one set and for two, small and the same each time; the page needs no network."""

import re
from pathlib import Path

import PIL.Image
import pytest

from sparkles.gen.figures import FIGURES, draw, write_page
from sparkles.gen.statistics import Statistics, summarize
from sparkles.gen.verbs import RULES
from sparkles.prompt_format import image_reference
from sparkles.types import Dialogue, Image, Message


def statistics(name: str, *questions: str) -> Statistics:
    dialogues = [
        Dialogue(
            messages=(
                Message(
                    role="user",
                    content=question.replace("{}", image_reference(7)),
                    images=(Image(image_id=7),) if "{}" in question else (),
                ),
                Message(role="assistant", content="A windmill beside the harbour turns slowly."),
            )
        )
        for question in questions
    ]
    return summarize(name, dialogues, RULES)


@pytest.fixture
def two_sets() -> list[Statistics]:
    return [
        statistics("A$B$", "Compare the birds.", "Tell a story of {}.", "Tell a joke about {}."),
        statistics("<b>B</b>", "Where is {}?"),
    ]


def test_every_figure_is_drawn_with_a_column_or_row_for_each_set(
    two_sets: list[Statistics], tmp_path: Path
) -> None:
    written = draw(two_sets, tmp_path, ["png"])
    assert [path.name for path in written] == [f"{name}.png" for name in FIGURES]
    for path in written:
        with PIL.Image.open(path) as picture:
            assert min(picture.size) > 300
            assert picture.convert("L").getextrema() != (255, 255)
        assert path.stat().st_size < 150_000


def test_svg_keeps_its_texts_and_is_the_same_again(two_sets: list[Statistics], tmp_path: Path) -> None:
    first, again = (
        (draw(two_sets[:1], tmp_path / folder, ["svg"])[0]).read_text(encoding="utf-8") for folder in "ab"
    )
    assert first == again
    shown = set(re.findall(r"<text[^>]*>([^<]*)</text>", first))
    assert {"compare", "bird", "tell", "story", "joke"} <= shown
    assert "A$B$" in first


def test_the_page_holds_all_and_loads_nothing(two_sets: list[Statistics], tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_page(two_sets, path)
    page = path.read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "&lt;b&gt;B&lt;/b&gt;" in markup
    assert "<b>B</b>" not in markup
    assert "<td>with verb and object</td><td>3</td><td>0</td>" in markup
    assert "No question with a verb and an object." in markup
    assert not re.search(r"""(?:src|href)=["']https?:""", markup)
    assert "default-src 'none'" in markup
    assert page.count("Plotly.newPlot(") >= 3
