import os
from pathlib import Path

import pytest

from sparkles.tables.page import read_curves, write_page
from sparkles.tables.results import read_results
from sparkles.tables.splits import find_splits
from tests.tables.answered import answered

ROWS = {
    "ref": [{"bison": [True, True, False, False]}, {"bison": [True, True, False, True]}],
    "b": [{"bison": [True, False, True, False]}, "failed"],
}
CURVE = "epoch,lr,step,train/loss,val/loss\n0,0.1,0,4.0,\n0,0.1,50,2.0,\n0,,100,,1.5\n"
"""With one point of the validation, which makes no curve."""


@pytest.fixture
def page(tmp_path: Path) -> str:
    spec, runs = answered(tmp_path, ROWS, pictures=True)
    logs = runs[0].run_dir / "logs/version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text(CURVE)
    return write_page(read_results(spec, runs), tmp_path / "out").read_text()


def test_the_page_has_table_intervals_curves_costs_and_links(page: str) -> None:
    assert "<h1><bdi>Table 9: &lt;b&gt;rows&lt;/b&gt;</bdi></h1>" in page
    assert page.count('<svg class="forest"') == 2
    assert page.count("<polyline") == 1
    assert 'href="../ref_seed0/report.html"' in page
    assert 'href="../b_seed1/train.log"' in page
    assert "121 s" in page
    assert "b, seed 1: failed; see" in page


def test_items_that_rows_answer_differently_are_shown_with_both_answers(page: str) -> None:
    assert "Of 4 items, 2 are right in some rows and not in others" in page
    assert page.count("<article") == 2
    assert "ref says &lt;i&gt;True&lt;/i&gt;" in page
    assert "b says &lt;i&gt;False&lt;/i&gt;" in page
    assert page.count("image/webp") == 1  # the picture of both items, once


def test_the_page_needs_nothing_else_and_runs_its_own_script_alone(page: str) -> None:
    assert "default-src 'none'" in page
    assert page.count("<script") == 1
    assert "http" not in page.partition("<main>")[2].partition("</main>")[0]


def test_rows_are_counted_against_each_other(tmp_path: Path) -> None:
    [split] = find_splits(read_results(*answered(tmp_path, ROWS)))
    assert (split.num, split.num_split) == (4, 2)
    assert split.alone_right == {"Row ref": [0, 1], "Row b": [1, 0]}


def test_a_table_without_any_run_has_a_page(tmp_path: Path) -> None:
    results = read_results(*answered(tmp_path, {"a": ["missing"], "b": ["failed"]}))
    page = write_page(results, tmp_path).read_text()
    assert "Not complete: 2 things are missing" in page
    assert "data-pair" not in page.partition("<main>")[2].partition("</main>")[0]


def test_curves_of_a_continued_run_are_whole_and_thin(tmp_path: Path) -> None:
    for version, steps, loss in ((0, range(20), 9.0), (1, range(10, 200), 1.0), (2, range(0), 0.0)):
        folder = tmp_path / f"logs/version_{version}"
        folder.mkdir(parents=True)
        lines = [f"0,0.1,{step},{loss}," for step in steps]
        path = folder / "metrics.csv"
        path.write_text("\n".join([CURVE.splitlines()[0], *lines]) + "\n")
        os.utime(path, (version, version))
    curves = read_curves(tmp_path)
    assert list(curves) == ["train/loss"]
    assert len(curves["train/loss"]) == 50
    assert [loss for _, loss in curves["train/loss"][:4]] == [9.0, 9.0, 5.0, 1.0]
    assert read_curves(tmp_path / "nowhere") == {}
