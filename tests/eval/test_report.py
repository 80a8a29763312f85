import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.report import Thumbnail, interleave, outcome_of, pick_examples, render_report
from sparkles.eval.table import RunFolderError
from sparkles.prompt_format import IMAGE_TAG
from sparkles.types import Verdict

ATTACK = "<script>alert('x')</script>"
METRICS = {
    "bison/accuracy": 0.75,
    "bison/accuracy_low": 0.6,
    "bison/accuracy_high": 0.85,
    "bison/num": 40,
    "bison/unscored": 1,
    "bison/kind/place/accuracy": 0.7,
    "bison/kind/colour/accuracy": 0.8,
    "sparkles_eval/overall": 6.5,
    "sparkles_eval/A1/C1": 7.25,
    "sparkles_eval/judge": "rubric-1",
}


def choice(picture: Path | None = None, **changes: Any) -> Prediction:
    images = [
        {"image_id": number, "path": picture and str(picture), "box": None, "caption": f"caption {number}"}
        for number in (1, 2)
    ]
    question = f"Is it IMAGE#1{IMAGE_TAG} or IMAGE#2{IMAGE_TAG}?"
    prediction = Prediction(
        item_id="bison-0",
        kind="place",
        prompt=question,
        image_ids=[1, 2],
        dialogue=[
            {"role": "user", "content": question, "images": images},
            {"role": "assistant", "content": "Therefore, the answer is IMAGE#1.", "images": []},
        ],
        tries=[
            {"turn": 1, "response": "Therefore, the answer is IMAGE#1.", "seconds": 0.1, "truncated": False}
        ],
        key="",
        label="IMAGE#1",
        score=Score(answer="IMAGE#1", correct=True),
    )
    return replace(prediction, **changes)


def dialogue(scores: dict[str, dict[str, float]] | None, **verdict: Any) -> Prediction:
    reasons = {"A1": {"C1": "names the red circle"}, "A2": {}} if scores else {}
    messages = [
        {"role": role, "content": text, "images": []}
        for role, text in [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    ]
    score = Score(verdict=Verdict(scores=scores, reasons=reasons, judge="rubric-1", **verdict))
    return choice(item_id="se-0", dialogue=messages, tries=[], label=None, score=score)


def both_turns(rating: float) -> dict[str, dict[str, float]]:
    return {turn: dict.fromkeys(("C1", "C2", "C3"), rating) for turn in ("A1", "A2")}


def write_run(run_dir: Path, *predictions: Prediction, rated: tuple[Prediction, ...] = ()) -> Path:
    folder = run_dir / "predictions"
    folder.mkdir(parents=True)
    (run_dir / "metrics.json").write_text(json.dumps(METRICS))
    for name, lines in {"bison": predictions, "sparkles_eval": rated}.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(line.to_json() + "\n" for line in lines), encoding="utf-8"
        )
    return run_dir


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "wide.png"
    left, right = PIL.Image.new("RGB", (300, 300), "red"), PIL.Image.new("RGB", (300, 300), "blue")
    both = PIL.Image.new("RGB", (600, 300))
    both.paste(left, (0, 0))
    both.paste(right, (300, 0))
    both.save(path)
    return path


class Balance(HTMLParser):
    """Fails on an end tag that does not close the last open element."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(run_dir: Path) -> str:
    page = render_report(run_dir).read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(page)
    assert not balance.open
    return page


def test_headline_numbers_carry_interval_denominator_and_chance(tmp_path: Path) -> None:
    other = choice(item_id="bison-1", label="IMAGE#2")
    page = page_of(write_run(tmp_path / "my-run", choice(), other))
    assert "my-run" in page
    assert "95 % interval [60.0, 85.0], above chance" in page
    assert "n=40, 1 unscored" in page
    assert "chance 50.0" in page


def test_no_chance_is_claimed_where_the_labels_do_not_show_it(tmp_path: Path) -> None:
    assert "chance 1" not in page_of(write_run(tmp_path / "run", choice()))


def test_kinds_and_criteria_become_bars_best_kind_first(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", choice(), rated=(dialogue(both_turns(8)),)))
    assert page.index('aria-label="colour 80.0') < page.index('aria-label="place 70.0')
    assert 'aria-label="Image understanding and reasoning 7.25' in page


def test_pictures_are_inlined_scaled_down_and_cropped_to_their_box(tmp_path: Path, picture: Path) -> None:
    prediction = choice(picture)
    prediction.dialogue[0]["images"][1]["box"] = [300, 0, 600, 300]
    page = page_of(write_run(tmp_path / "run", prediction))
    pixels = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    whole, crop = (PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in pixels)
    assert whole.size == (224, 112)
    assert crop.size == (224, 224)
    red, _, blue = crop.getpixel((112, 112))
    assert blue > 200 > 50 > red


def test_each_picture_takes_the_place_of_its_mention_in_the_sentence() -> None:
    images = [{"image_id": i, "path": None, "box": None, "caption": ""} for i in (7, 12)]
    parts = interleave(f"Compare IMAGE#7{IMAGE_TAG} with IMAGE#12{IMAGE_TAG}, not IMAGE#7.", images)
    shown = [part.mention if isinstance(part, Thumbnail) else part for part in parts]
    assert shown == ["Compare ", "IMAGE#7", " with ", "IMAGE#12", ", not IMAGE#7."]


def test_a_tag_without_its_image_stays_in_the_text() -> None:
    assert interleave(f"IMAGE#7{IMAGE_TAG}?", []) == (f"IMAGE#7{IMAGE_TAG}", "?")


def test_a_picture_that_is_gone_does_not_cost_the_page(tmp_path: Path) -> None:
    assert page_of(write_run(tmp_path / "run", choice(tmp_path / "gone.png"))).count("picture not found") == 2


def test_every_text_is_escaped(tmp_path: Path) -> None:
    attacked = choice(
        item_id=ATTACK,
        kind=ATTACK,
        label=ATTACK,
        score=Score(answer=f'"{ATTACK}', correct=False),
        tries=[{"turn": 1, "response": ATTACK}, {"turn": 1, "response": ATTACK}],
        dialogue=[
            {
                "role": "user",
                "content": f"{ATTACK} IMAGE#1{IMAGE_TAG}",
                "images": [{"image_id": ATTACK, "path": None, "box": None, "caption": f'"><{ATTACK}'}],
            },
            {"role": "assistant", "content": ATTACK, "images": []},
        ],
    )
    rated = dialogue(None, unscored_reason=ATTACK)
    run = write_run(tmp_path / "<b>run", attacked, rated=(rated,))
    (run / "config.yaml").write_text(ATTACK)
    (run / "environment.json").write_text(json.dumps({ATTACK: {ATTACK: ATTACK}}))
    (run / "metrics.json").write_text(
        json.dumps(
            METRICS
            | {f"bison/kind/{ATTACK}/accuracy": 0.5, f"{ATTACK}/note": ATTACK, "sparkles_eval/judge": ATTACK}
        )
    )
    page = page_of(run)
    assert "<script" not in page
    assert "<b>run" not in page
    assert page.count("&lt;script&gt;") > 10


def test_the_page_needs_no_script_and_loads_nothing(tmp_path: Path, picture: Path) -> None:
    page = page_of(write_run(tmp_path / "run", choice(picture)))
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]+)', page))
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]+)', page))


def test_verdicts_show_ratings_with_reasons(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", rated=(dialogue(both_turns(8)),)))
    assert "8.0 of 10" in page
    assert "names the red circle" in page


def test_an_unscored_dialogue_says_why(tmp_path: Path) -> None:
    page = page_of(
        write_run(tmp_path / "run", rated=(dialogue(None, unscored_reason="the judge's reply broke off"),))
    )
    assert "not rated: the judge&#39;s reply broke off" in page


def test_long_answers_fold_but_stay_whole(tmp_path: Path) -> None:
    prediction = choice()
    prediction.dialogue[1]["content"] = "word " * 300 + "the end"
    page = page_of(write_run(tmp_path / "run", prediction))
    assert "The whole answer, 1507 characters" in page
    assert page.count("the end") == 1


def test_responses_drawn_again_are_kept_in_sight(tmp_path: Path) -> None:
    prediction = choice(tries=[{"turn": 1, "response": "mumble"}, {"turn": 1, "response": "IMAGE#1."}])
    page = page_of(write_run(tmp_path / "run", prediction))
    assert "Earlier tries without a readable answer: 1" in page
    assert "mumble" in page


@pytest.mark.parametrize(
    ("prediction", "outcome"),
    [
        (choice(), "right"),
        (choice(score=Score(answer="IMAGE#2", correct=False)), "wrong"),
        (choice(score=Score(answer=None, correct=False)), "unscored"),
        (dialogue(both_turns(9)), "right"),
        (dialogue(both_turns(2)), "wrong"),
        (dialogue(None), "unscored"),
    ],
)
def test_outcome(prediction: Prediction, outcome: str) -> None:
    assert outcome_of(prediction) == outcome


def test_examples_mix_kinds_and_outcomes() -> None:
    wrong = Score(answer="IMAGE#2", correct=False)
    predictions = [choice(item_id=str(i), kind="place") for i in range(50)]
    predictions += [
        choice(item_id="wrong", kind="place", score=wrong),
        choice(item_id="other", kind="colour"),
    ]
    picked = [prediction.item_id for prediction in pick_examples(predictions, 5)]
    assert picked == ["other", "0", "wrong", "1", "2"]


def test_environment_and_configuration_are_at_the_foot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choice())
    (run / "environment.json").write_text(json.dumps({"versions": {"torch": "2.15"}, "seed": 1}))
    (run / "config.yaml").write_text("seed: 1\n")
    foot = page_of(run).partition("<footer")[2]
    assert "<dt>versions.torch</dt><dd>2.15</dd>" in foot
    assert "<pre>seed: 1" in foot
    assert "<dt>bison/accuracy</dt><dd>0.75</dd>" in foot


def test_metrics_alone_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    assert "No environment.json in this run folder." in page_of(tmp_path)


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choice())
    with (run / "predictions" / "bison.jsonl").open("a") as file:
        file.write('{"item_id": "half')
    assert "1 of 1 items" in page_of(run)


def test_unicode_line_separators_in_a_response_do_not_break_its_line(tmp_path: Path) -> None:
    prediction = choice()
    prediction.dialogue[1]["content"] = "first\u2028second\x85third"
    assert "1 of 1 items" in page_of(write_run(tmp_path / "run", prediction))


def test_a_line_that_is_no_prediction_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choice())
    with (run / "predictions" / "bison.jsonl").open("a") as file:
        file.write('{"item": 1}\n')
    with pytest.raises(RunFolderError, match=r"bison.jsonl, line 2: not a prediction .*delete the line"):
        render_report(run)


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no metrics.json with a benchmark in it; finish a benchmark"):
        render_report(tmp_path)
