import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.eval import report
from sparkles.eval.benchmark import Prediction, Score
from sparkles.eval.report import outcome_of, render_report
from sparkles.eval.table import RunFolderError
from sparkles.prompt_format import IMAGE_TAG
from sparkles.types import Verdict
from tests.browser import HOSTILE, Page, browse

METRICS = {
    "bison/accuracy": 0.75,
    "bison/accuracy_low": 0.6,
    "bison/accuracy_high": 0.85,
    "bison/accuracy_interval": "Wilson",
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
            # In ASCII, so that a line may hold half of a character.
            "".join(json.dumps(json.loads(line.to_json())) + "\n" for line in lines)
        )
    return run_dir


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    PIL.Image.new("RGB", (60, 30), "red").save(path)
    return path


def page_of(run_dir: Path) -> Page:
    return Page(render_report(run_dir).read_text(encoding="utf-8"))


def words(page: Page) -> str:
    return re.sub(r"\s+", " ", page.shown)


def test_headline_numbers_carry_interval_method_denominator_and_chance(tmp_path: Path) -> None:
    other = choice(item_id="bison-1", label="IMAGE#2")
    said = words(page_of(write_run(tmp_path / "my-run", choice(), other)))
    assert "my-run" in said
    assert "95 % interval [60.0, 85.0], above chance" in said
    assert "n=40, 1 unscored · interval: Wilson" in said
    assert "chance 50.0" in said


def test_no_chance_is_claimed_where_the_labels_do_not_show_it(tmp_path: Path) -> None:
    assert "chance 1" not in page_of(write_run(tmp_path / "run", choice())).shown


def test_kinds_and_criteria_become_bars_best_kind_first(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", choice(), rated=(dialogue(both_turns(8)),))).text
    assert page.index('aria-label="colour 80.0') < page.index('aria-label="place 70.0')
    assert 'aria-label="Image understanding and reasoning 7.25' in page


def test_each_metric_is_told_with_its_interval_and_method(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choice())
    more = {
        "bison/unanswered": 3,
        "bison/grounding_gap": 0.3,
        "bison/grounding_gap_low": 0.2,
        "bison/grounding_gap_high": 0.4,
        "bison/grounding_gap_interval": "paired t",
        "bison/swap_consistency": 0.9,
        "bison/anything/new": None,
        "sparkles_eval/overall_length_controlled": 6.25,
        "seconds": 12.5,
    }
    (run / "metrics.json").write_text(json.dumps(METRICS | more))
    said = words(page_of(run))
    assert "3 unanswered · grounding gap 30.0 · 90.0 % the same when the images are swapped" in said
    assert "6.25 at equal answer length" in said
    assert "grounding_gap0.3[0.2, 0.4] paired t" in said
    assert "anything/newnot measured" in said
    assert "grounding_gap_low" not in said
    assert "seconds12.5" in said


def test_pictures_stand_between_the_words_and_are_stored_once(tmp_path: Path, picture: Path) -> None:
    page = page_of(write_run(tmp_path / "run", choice(picture), choice(picture, item_id="bison-1")))
    assert page.text.count("data:image/webp") == 1
    assert len(page.all("span", class_="picture")) == 4
    assert "Is it IMAGE#1 or IMAGE#2?" in page.shown
    assert len(page.all("span", class_="mention")) == 2


def test_a_picture_that_is_gone_does_not_cost_the_page(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", choice(tmp_path / "gone.png")))
    assert page.shown.count("picture not found") == 2


def hostile_run(run: Path) -> Path:
    """Everything that others write into a run folder is hostile."""
    images = [{"image_id": HOSTILE, "path": None, "box": None, "caption": HOSTILE}]
    attacked = choice(
        item_id=HOSTILE,
        kind=HOSTILE,
        label=HOSTILE,
        score=Score(answer=HOSTILE, correct=False),
        tries=[{"turn": 1, "response": HOSTILE, HOSTILE: HOSTILE}] * 2,
        dialogue=[
            {"role": "user", "content": f"{HOSTILE} IMAGE#{HOSTILE}{IMAGE_TAG}", "images": images},
            {"role": "assistant", "content": f"IMAGE#{HOSTILE}", "images": []},
        ],
    )
    rated = dialogue(both_turns(8))
    reasons = {answer: dict.fromkeys(("C1", "C2", "C3"), HOSTILE) for answer in ("A1", "A2")}
    verdict = Verdict(scores=both_turns(8), reasons=reasons, judge=HOSTILE, members={HOSTILE: both_turns(8)})
    unrated = dialogue(None, unscored_reason=HOSTILE)
    write_run(run, attacked, choice(), rated=(replace(rated, score=Score(verdict=verdict)), unrated))
    (run / "config.yaml").write_text(HOSTILE.replace("\ud800", ""), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps({HOSTILE: {HOSTILE: HOSTILE}}))
    names = {
        f"bison/kind/{HOSTILE}/accuracy": 0.5,
        f"bison/{HOSTILE}": HOSTILE,
        "sparkles_eval/judge": HOSTILE,
    }
    others = {f"{HOSTILE}/accuracy": 0.5, HOSTILE: HOSTILE}
    (run / "metrics.json").write_text(json.dumps(METRICS | names | others))
    return run


def test_hostile_words_are_text(tmp_path: Path) -> None:
    page = page_of(hostile_run(tmp_path / "<b>run"))
    assert len(page.all("script")) == len(page.all("h1")) == 1
    assert not {"img", "b", "i", "textarea"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.shown.count("<script>document") > 20


def test_hostile_words_do_not_run_in_a_browser(tmp_path: Path) -> None:
    path = render_report(hostile_run(tmp_path / "run"))
    escaped = path.read_text(encoding="utf-8")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert policy.search(escaped)
    for page in (escaped, policy.sub("", escaped)):  # with the policy, and by escaping alone
        path.write_text(page, encoding="utf-8")
        seen = browse(path)
        assert "data-owned=" not in seen
        assert seen.count("<script>document") == 0
        assert seen.count("&lt;script&gt;document") > 20
        assert 'role="search">' in seen  # the page's own script has run: the filters are no longer hidden


def test_filters_search_and_full_size_in_a_browser(tmp_path: Path, picture: Path) -> None:
    wrong = choice(picture, item_id="mistaken", kind="colour", score=Score(answer="IMAGE#2", correct=False))
    rated = tuple(replace(dialogue(both_turns(score)), item_id=f"rated-{score}") for score in (2, 8))
    path = render_report(write_run(tmp_path / "run", choice(picture), wrong, rated=rated))
    steps = """
        const seen = [];
        const shown = () => [...document.querySelectorAll("article:not([hidden]) .head a")].map(a => a.textContent);
        const set = (control, value) => { control.value = value; control.dispatchEvent(new Event("input")); };
        const first = selector => document.querySelector(selector);
        first("[value=wrong]").click(); seen.push(shown());
        first("[data-filter=outcome][value='']").click();
        set(first("[data-filter=words]"), "MISTAKEN colour"); seen.push(shown());
        set(first("[data-filter=words]"), "");
        set(first("[data-filter=kind]"), "place"); seen.push(shown());
        set(first("[data-filter=words]"), "nowhere");
        seen.push(shown(), first(".none").hidden, first(".shown").textContent);
        first("[data-reset]").click();
        set(first("[data-filter=low]"), "5"); seen.push(shown());
        const mention = first(".mention"), said = selector => viewer.querySelector(selector).textContent;
        mention.focus(); seen.push(find("peek").hidden, find("peek").firstElementChild.className);
        mention.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
        seen.push(viewer.open, said("strong"), said(".caption"));
        document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
        seen.push(said("strong"));
        document.body.replaceChildren(JSON.stringify(seen));
    """
    page = path.read_text(encoding="utf-8")
    page = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page)
    path.write_text(page.replace("</body>", f"<script>window.onload = () => {{{steps}}}</script></body>"))
    seen = json.loads(browse(path).split("<body>")[1].split("</body>")[0])
    both = ["rated-2", "rated-8"]
    assert seen == [
        ["mistaken", *both],
        ["mistaken", *both],
        ["bison-0", *both],
        both,
        False,
        "0 of 2",
        ["bison-0", "mistaken", "rated-8"],
        False,
        "pixels p0",
        True,
        "IMAGE#1",
        "caption 1",
        "IMAGE#2",
    ]


def test_the_page_loads_nothing_and_runs_its_own_script_alone(tmp_path: Path, picture: Path) -> None:
    page = page_of(write_run(tmp_path / "run", choice(picture)))
    [policy] = [found["content"] or "" for found in page.all("meta", http_equiv="Content-Security-Policy")]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert re.search(r"script-src 'sha256-[^']+';", policy)
    assert not [attributes for _, attributes in page.tags if "src" in attributes]
    assert all((found["href"] or "").startswith("#") for found in page.all("a"))


def test_the_same_run_makes_the_same_page(tmp_path: Path, picture: Path) -> None:
    run = write_run(tmp_path / "run", choice(picture))
    assert page_of(run).text == page_of(run).text


def test_items_carry_what_they_are_filtered_by(tmp_path: Path) -> None:
    rated = dialogue(both_turns(8))
    page = page_of(write_run(tmp_path / "run", choice(), rated=(rated, dialogue(None))))
    found = [(one["data-outcome"], one["data-kind"], one["data-score"]) for one in page.all("article")]
    assert found == [("right", "place", ""), ("right", "place", "8.0"), ("unscored", "place", "")]


def test_verdicts_fold_the_reasons_of_each_rating(tmp_path: Path) -> None:
    verdict = Verdict(
        scores=both_turns(8),
        reasons={"A1": {"C1": "names the red circle"}, "A2": {}},
        members={"judge-a": both_turns(7.5), "judge-b": both_turns(8.5)},
    )
    rated = replace(dialogue(both_turns(8)), score=Score(verdict=verdict))
    page = page_of(write_run(tmp_path / "run", rated=(rated,)))
    assert len(page.all("details", class_="rating")) == 6
    said = words(page)
    assert "8.0 of 10" in said
    assert "names the red circle judge-a7.5 judge-b8.5" in said


def test_an_unscored_dialogue_says_why(tmp_path: Path) -> None:
    page = page_of(
        write_run(tmp_path / "run", rated=(dialogue(None, unscored_reason="the judge's reply broke off"),))
    )
    assert "not ratedthe judge's reply broke off" in words(page)


def test_a_very_long_answer_scrolls_in_its_box_and_stays_whole(tmp_path: Path) -> None:
    prediction = choice()
    prediction.dialogue[1]["content"] = "word " * 600 + "the end"
    page = page_of(write_run(tmp_path / "run", prediction))
    assert len(page.all("div", class_="long", tabindex="0")) == 1
    assert page.shown.count("the end") == 1


def test_every_try_is_kept_in_sight_with_what_is_known_of_it(tmp_path: Path) -> None:
    tries = [
        {"turn": 1, "response": "mumble", "seconds": 0.5, "truncated": True},
        {"turn": 1, "response": "IMAGE#1.", "seconds": 0.25, "truncated": False, "scores": {"IMAGE#1": -0.5}},
    ]
    said = words(page_of(write_run(tmp_path / "run", choice(tries=tries))))
    assert "1 earlier try Try 1 0.5 s, cut off at the limit mumble" in said
    assert "Assistant 0.25 s, scores.IMAGE#1: -0.5" in said


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


def test_of_very_many_items_a_sample_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MOST_ITEMS", 5)
    page = page_of(write_run(tmp_path / "run", *(choice(item_id=f"bison-{n}") for n in range(20))))
    assert len(page.all("article")) == 5
    assert "5 of 20 items, drawn evenly" in page.shown


def test_environment_and_configuration_are_at_the_foot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choice())
    (run / "environment.json").write_text(json.dumps({"versions": {"torch": "2.15"}, "seed": 1}))
    (run / "config.yaml").write_text("seed: 1\n")
    foot = page_of(run).shown.rpartition("Environment")[2]
    assert "versions.torch2.15" in foot
    assert "Configurationseed: 1" in foot


def test_metrics_alone_make_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    assert "No environment.json in this run folder." in page_of(tmp_path).shown


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choice())
    with (run / "predictions" / "bison.jsonl").open("a") as file:
        file.write('{"item_id": "half')
    assert len(page_of(run).all("article")) == 1


def test_unicode_line_separators_in_a_response_do_not_break_its_line(tmp_path: Path) -> None:
    prediction = choice()
    prediction.dialogue[1]["content"] = "first\u2028second\x85third"
    assert len(page_of(write_run(tmp_path / "run", prediction)).all("article")) == 1


def test_a_line_that_is_no_prediction_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", choice())
    with (run / "predictions" / "bison.jsonl").open("a") as file:
        file.write('{"item": 1}\n')
    with pytest.raises(RunFolderError, match=r"bison.jsonl, line 2: not a prediction .*delete the line"):
        render_report(run)


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no metrics.json with a benchmark in it; finish a benchmark"):
        render_report(tmp_path)
