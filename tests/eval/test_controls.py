import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.data.images import CLIP_MEAN, load_image
from sparkles.eval.asking import Asking
from sparkles.eval.benchmark import BenchmarkError, Item, Prediction
from sparkles.eval.bison import Bison
from sparkles.eval.controls import Control, controlled, effect
from sparkles.eval.run import evaluate, read_all
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.prompt_format import check_message, image_reference
from sparkles.types import Image, InputError, Message, Prompt

Scripted = Any
CONTROLS: tuple[Control, ...] = ("swap", "blank", "wrong", "caption", "no_image")


def item(number: int, *names: str, label: str | None = "IMAGE#1", folder: Path = Path()) -> Item:
    images = tuple(
        Image(image_id=place, path=folder / f"{name}.png", caption=f"a {name}")
        for place, name in enumerate(names, start=1)
    )
    content = " and ".join(image_reference(image.image_id) for image in images)
    question = Message(role="user", content=f"See {content}. Which?", images=images)
    return Item(item_id=str(number), questions=(question,), label=label)


def pictures_of(shown: Item) -> list[str]:
    return [image.path.stem for image in shown.images if image.path]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_changes_what_is_asked_and_not_what_is_judged(control: Control, pictures: Path) -> None:
    items = [item(1, "red", "green", folder=pictures), item(2, "804", "test1-7-3-img0", folder=pictures)]
    for plain, shown in zip(items, controlled(items, control), strict=True):
        assert shown.judged == plain.questions != shown.questions
        assert shown.item_id == plain.item_id
        assert shown.key("model") != plain.key("model")
        for question in shown.questions:
            check_message(question, "a question that can be asked")
    assert controlled(items, None) == items


def test_swapped_pictures_change_places_under_their_names_and_the_label_follows() -> None:
    plain = item(1, "cat", "dog", label="IMAGE#1")
    [shown] = controlled([plain], "swap")
    assert shown.questions[0].content == plain.questions[0].content
    assert [(image.image_id, image.caption) for image in shown.images] == [(1, "a dog"), (2, "a cat")]
    assert shown.label == "IMAGE#2"
    assert pictures_of(controlled([shown], "swap")[0]) == ["cat", "dog"]


def test_where_the_answer_is_no_image_names_and_sides_move_with_the_pictures() -> None:
    left, right = image_reference(1), image_reference(2)
    images = (Image(image_id=1, caption="left one"), Image(image_id=2, caption="right one"))
    content = f"Look at the left {left} and the right {right}. Is IMAGE#1 left of IMAGE#2: 'left is red'?"
    asked = Item(item_id="1", questions=(Message(role="user", content=content, images=images),), label="TRUE")
    [shown] = controlled([asked], "swap")
    assert shown.questions[0].content == (
        f"Look at the right {right} and the left {left}. Is IMAGE#1 left of IMAGE#2: 'left is red'?"
    )
    assert [image.caption for image in shown.images] == ["right one", "left one"]
    assert shown.label == "TRUE"


def test_a_dialogue_has_no_order_to_swap() -> None:
    with pytest.raises(
        BenchmarkError, match=r"item 7: eval.control=swap .* such as benchmark=\[bison,nlvr2\]"
    ):
        controlled([item(7, "cat", "dog", label=None)], "swap")


def test_a_blank_picture_is_the_mean_colour_everywhere() -> None:
    [shown] = controlled([item(1, "cat", "dog")], "blank")
    assert [image.image_id for image in shown.images] == [1, 2]
    for image in shown.images:
        picture = load_image(image)
        [(_, color)] = picture.getcolors() or []
        assert color == tuple(round(255 * mean) for mean in CLIP_MEAN)


@pytest.mark.parametrize("seed", range(5))
def test_wrong_pictures_are_of_other_items(seed: int) -> None:
    pool = ["cat", "dog", "hat", "sun", "cup", "car", "bus"]
    items = [item(n, *(pool[(n + k) % 7] for k in range(1 + n % 3))) for n in range(12)]
    shown = controlled(items, "wrong", seed=seed)
    for plain, wrong in zip(items, shown, strict=True):
        assert not set(pictures_of(plain)) & set(pictures_of(wrong))
        assert len(wrong.images) == len(plain.images)
        assert all(image.caption == f"a {image.path.stem}" for image in wrong.images if image.path)
    assert controlled(items, "wrong", seed=seed) == shown
    assert controlled(items, "wrong", seed=seed + 1) != shown


def test_wrong_pictures_cannot_be_had_where_all_items_share_theirs() -> None:
    items = [item(1, "cat", "dog"), item(2, "dog", "cat")]
    with pytest.raises(
        BenchmarkError, match=r"shows 2 pictures of other items, and these 2 items have 0; ask more"
    ):
        controlled(items, "wrong")


def test_captions_stand_where_pictures_stood() -> None:
    [shown] = controlled([item(1, "cat", "dog")], "caption")
    assert shown.questions[0].content == ("See IMAGE#1 [caption: a cat] and IMAGE#2 [caption: a dog]. Which?")
    [without] = controlled([item(1, "cat", "dog")], "no_image")
    assert without.questions[0].content == "See IMAGE#1 and IMAGE#2. Which?"
    assert shown.images == without.images == ()


def test_a_missing_caption_is_told_with_its_benchmark_before_the_work(
    bison_file: Path, pictures: Path
) -> None:
    bison = Bison(annotations=bison_file, images=pictures)
    with pytest.raises(BenchmarkError, match="bison: image 1 has no caption"):
        read_all([bison], None, Asking(control="caption"))


def test_the_judge_reads_the_true_captions(
    dialogues: SparklesEval, scripted_responder: Scripted, scripted_judge: Scripted, tmp_path: Path
) -> None:
    responder, judge = scripted_responder(), scripted_judge({"7": 3.0, "9": 3.0})
    evaluate([dialogues], responder, judge, tmp_path, asking=Asking(control="blank"), progress=False)
    assert {image.caption for prompt in responder.asked for image in prompt.images} == {"an even grey"}
    assert [image.caption for image in judge.judged[0].images] == ["a blue field", "snow"]
    assert judge.judged[0].messages[1].content == "Therefore, the answer is IMAGE#1."


MakePrediction = Callable[..., Prediction]


def chosen(make_prediction: MakePrediction, pairs: Sequence[tuple[str, str | None]]) -> list[Prediction]:
    """Predictions of (label, answer)."""
    found = []
    for number, (label, answer) in enumerate(pairs):
        made = make_prediction(str(number), answer=answer, correct=answer == label)
        found.append(Prediction(**{**vars(made), "label": label}))
    return found


def test_the_grounding_gap_is_what_right_pictures_add(make_prediction: MakePrediction) -> None:
    plain = chosen(make_prediction, [("TRUE", "TRUE")] * 8 + [("TRUE", None)] * 2)
    wrong = chosen(make_prediction, [("TRUE", "TRUE")] * 3 + [("TRUE", "FALSE")] * 7)
    metrics = effect("wrong", plain, wrong)
    assert metrics["grounding_gap"] == pytest.approx(0.5)
    low, high = metrics["grounding_gap_low"], metrics["grounding_gap_high"]
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert low < 0.5 < high
    assert metrics["grounding_gap_num"] == 10
    assert effect("blank", plain, wrong)["blank_gap"] == pytest.approx(0.5)


def test_swap_consistency_counts_the_same_answer_in_both_orders(make_prediction: MakePrediction) -> None:
    first, second = "IMAGE#1", "IMAGE#2"
    plain = chosen(make_prediction, [(first, first), (first, second), (first, first), (second, None)])
    # By content: the same, the same, the other one, unscored.
    swapped = chosen(make_prediction, [(second, second), (second, first), (second, first), (first, first)])
    metrics = effect("swap", plain, swapped)
    assert (metrics["swap_consistency"], metrics["swap_consistency_num"]) == (0.5, 4)
    assert metrics["position_bias"] == pytest.approx(5 / 7 - 1 / 2)  # of seven answers, five name the first
    assert "position_bias" not in effect("swap", *[chosen(make_prediction, [("TRUE", "TRUE")])] * 2)


def first_of(prompt: Prompt) -> str:
    return "Therefore, the answer is IMAGE#1."


def by_colour(prompt: Prompt) -> str:
    """Sees the pictures: names the red one; without any it says the first."""
    reds = [
        image.image_id
        for image in prompt.images
        if image.path and PIL.Image.open(image.path).getpixel((0, 0)) == (255, 0, 0)
    ]
    return f"Therefore, the answer is IMAGE#{(reds or [1])[0]}."


@pytest.mark.parametrize(("answer", "consistency", "bias"), [(first_of, 0.0, 0.5), (by_colour, 1.0, 0.0)])
def test_a_control_is_held_against_the_plain_run_in_the_metrics_and_reports_of_both(
    answer: Callable[[Prompt], str],
    consistency: float,
    bias: float,
    bison_file: Path,
    pictures: Path,
    scripted_responder: Scripted,
    tmp_path: Path,
) -> None:
    bison = Bison(annotations=bison_file, images=pictures)
    plain, swapped = tmp_path / "plain", tmp_path / "swapped"
    before = evaluate([bison], scripted_responder(answer), None, plain, progress=False)
    (plain / "report.html").unlink()

    asking = Asking(control="swap", plain=plain)
    metrics = evaluate([bison], scripted_responder(answer), None, swapped, asking=asking, progress=False)
    assert metrics["bison/swap_consistency"] == consistency
    assert metrics["bison/position_bias"] == bias
    assert json.loads((swapped / "metrics.json").read_text()) == metrics
    added = {name: value for name, value in metrics.items() if "swap" in name or "bias" in name}
    assert json.loads((plain / "metrics.json").read_text()) == before | added
    assert (plain / "report.html").is_file()


def test_without_a_plain_run_a_control_speaks_for_itself(
    bison_file: Path, pictures: Path, scripted_responder: Scripted, tmp_path: Path
) -> None:
    bison = Bison(annotations=bison_file, images=pictures)
    responder = scripted_responder(by_colour)
    metrics = evaluate([bison], responder, None, tmp_path, asking=Asking(control="no_image"), progress=False)
    assert metrics["bison/accuracy"] == 0.5
    assert not any(prompt.images for prompt in responder.asked)
    assert not any("gap" in name for name in metrics)


def test_a_plain_run_that_cannot_be_compared_is_refused_before_anything_is_asked(
    bison_file: Path,
    pictures: Path,
    scripted_responder: Scripted,
    write_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    bison = Bison(annotations=bison_file, images=pictures)
    run, responder = tmp_path / "run", scripted_responder()

    def refused(control: Control | None, plain: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            evaluate([bison], responder, None, run, asking=Asking(control=control, plain=plain))

    run.mkdir()
    refused("wrong", tmp_path / "gone", "no such run folder")
    refused("wrong", run, "is this run's own folder")
    refused("wrong", tmp_path, "no predictions; expected a run folder")
    refused(None, run, "is what a control is held against, and there is none")
    assert responder.asked == []
