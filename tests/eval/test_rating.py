import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sparkles.eval.benchmark import Prediction
from sparkles.eval.matching import dialogue_key
from sparkles.eval.rating import COLUMNS, RatingError, read_ratings, write_sheet

Make = Callable[..., Prediction]
HEADER = ",".join(COLUMNS)


class Tags(HTMLParser):
    """The start tags of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [attrs[attribute] for name, attrs in self.found if name == tag and attribute in attrs]


def sheet(tmp_path: Path, *runs: list[Prediction], num: int | None = None, seed: int = 0) -> str:
    write_sheet(runs, tmp_path / "rating.html", num=num, seed=seed)
    return (tmp_path / "rating.html").read_text()


def test_the_page_holds_every_dialogue_with_its_pictures(
    make_prediction: Make, pictures: Path, tmp_path: Path
) -> None:
    rated = make_prediction(
        answers=["first", "second"], pictures=[f"{pictures}/red.png", "/gone.png"], rating=3.0
    )
    page = sheet(tmp_path, [rated, make_prediction()])
    tags = Tags(page)
    assert tags.values("article", "data-dialogue") == [dialogue_key(rated)]
    assert page.count("url(data:image/webp;base64,") == 1
    assert set(tags.values("span", "data-caption")) == {""}  # a caption would tell what to see
    assert "picture not found" in page
    assert len(tags.values("input", "data-cell")) == 6 * 10


def test_neither_the_model_nor_the_judge_nor_its_rating_is_on_the_page(
    make_prediction: Make, tmp_path: Path
) -> None:
    rating = {name: dict.fromkeys(("C1", "C2", "C3"), 7.125) for name in ("A1", "A2")}
    rated = make_prediction(
        "item-of-sparkleschat", answers=["a", "b"], rating=rating, judge="gpt-4", question="Why?"
    )
    page = sheet(tmp_path, [rated])
    for secret in ("sparkleschat", "gpt-4", "7.125"):
        assert secret not in page


def test_hostile_text_is_shown_and_not_run(make_prediction: Make, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)></article>\"'"
    page = sheet(tmp_path, [make_prediction(answers=[hostile, "b"], question=hostile, rating=1.0)])
    tags = Tags(page)
    assert [tag for tag, _ in tags.found].count("script") == 1
    assert tags.values("img", "src") == []
    assert page.count("&lt;script&gt;alert(1)") == 3


def test_dialogues_of_all_runs_are_shuffled_by_the_seed(make_prediction: Make, tmp_path: Path) -> None:
    runs = [[make_prediction(str(n), answers=[run, "x"], rating=1.0) for n in range(10)] for run in "ab"]
    both = {dialogue_key(one) for run in runs for one in run}
    orders = [
        Tags(sheet(tmp_path, *runs, seed=seed)).values("article", "data-dialogue") for seed in (0, 0, 1)
    ]
    assert all(set(order) == both for order in orders)
    assert orders[0] == orders[1] != orders[2]
    assert Tags(sheet(tmp_path, *runs, num=7)).values("article", "data-dialogue") == orders[0][:7]


def test_what_two_runs_said_alike_is_rated_once(make_prediction: Make, tmp_path: Path) -> None:
    runs = [[make_prediction(answers=["a", "b"], rating=rating)] for rating in (1.0, 2.0)]
    assert write_sheet(runs, tmp_path / "rating.html") == 1


@pytest.mark.parametrize("num", [None, 0, 2])
def test_too_few_dialogues_are_refused(make_prediction: Make, tmp_path: Path, num: int | None) -> None:
    runs = [[make_prediction(answers=["a", "b"], rating=1.0)]] if num is not None else [[make_prediction()]]
    with pytest.raises(RatingError, match=f"num={num}: the runs have [01] dialogues of two turns to rate"):
        write_sheet(runs, tmp_path / "rating.html", num=num)


def test_ratings_are_read_with_empty_cells_and_foreign_columns(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(
        f'\ufeff{HEADER},comment\r\n"Ann, B.",abc,7,8,,9.5,1,10,"two\nlines"\r\n', encoding="utf-8"
    )
    [found] = read_ratings(path)
    assert (found.rater, found.dialogue) == ("Ann, B.", "abc")
    assert found.scores == {"A1/C1": 7.0, "A1/C2": 8.0, "A2/C1": 9.5, "A2/C2": 1.0, "A2/C3": 10.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rater,dialogue\n", r"no column A1/C1, A1/C2, .*expected rater,dialogue,A1/C1"),
        (f"{HEADER}\nann,abc,11,,,,,\n", r"line 2, A1/C1: '11'; expected a number from 1 to 10, or nothing"),
        (f"{HEADER}\nann,abc,good,,,,,\n", r"line 2, A1/C1: 'good'"),
        (f"{HEADER}\nann,abc,nan,,,,,\n", r"line 2, A1/C1: 'nan'"),
        (f"{HEADER}\n,abc,1,,,,,\n", r"line 2: no rater or no dialogue"),
        (f"{HEADER}\nann,abc,1,,,,,\nann,abc,2,,,,,\n", r"'ann' rates dialogue abc twice"),
    ],
)
def test_a_cell_that_is_no_rating_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(text)
    with pytest.raises(RatingError, match=message):
        read_ratings(path)


def test_a_missing_file_of_ratings_is_named(tmp_path: Path) -> None:
    with pytest.raises(RatingError, match=r"none\.csv: no such file; expected the CSV"):
        read_ratings(tmp_path / "none.csv")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the chromium command")
def test_what_is_rated_in_a_browser_comes_back(make_prediction: Make, tmp_path: Path) -> None:
    hostile = "<script>document.title = 'run'</script>"
    page = sheet(tmp_path, [make_prediction(answers=[hostile, "b"], rating=1.0)])
    [nonce] = Tags(page).values("script", "nonce")
    clicks = """
        document.querySelectorAll('input[value="7"]').forEach(input => input.click());
        find("rater").value = 'Ann "A"';
        find("rater").dispatchEvent(new Event("input"));
        document.body.replaceChildren(csv());
    """
    path = tmp_path / "rating.html"
    path.write_text(f'{page}<script nonce="{nonce}">{clicks}</script>')
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "<title>Rate dialogues</title>" in done.stdout
    (tmp_path / "ratings.csv").write_text(done.stdout.split("<body>")[1].split("</body>")[0])
    [found] = read_ratings(tmp_path / "ratings.csv")
    assert found.rater == 'Ann "A"'
    assert set(found.scores.values()) == {7.0}
    assert len(found.scores) == 6
