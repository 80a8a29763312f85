import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkles.nano.dialogues import Claim, Request, answer, image_ids, make_dialogue
from sparkles.nano.language import caption
from sparkles.nano.rubric import STANDARDS, RubricJudge, credit
from sparkles.nano.world import COLORS, Scene, random_scene
from sparkles.prompt_format import image_reference
from sparkles.types import CRITERIA, Dialogue, Image, Judge, Message, Verdict

seeds = st.integers(0, 2**32)
DESCRIBE = f"Describe {image_reference(7)} and {image_reference(9)}."
COMPARE = f"Compare {image_reference(12)} with the first image."
Scenes = Mapping[str, Scene]


@pytest.fixture
def scenes(two_scenes: Scenes) -> Scenes:
    return {**two_scenes, "12": two_scenes["7"].put("top-middle", two_scenes["9"].at["top-middle"])}


@pytest.fixture
def perfect(scenes: Scenes) -> Dialogue:
    """Describe IMAGE#7 and IMAGE#9; then compare IMAGE#12 with IMAGE#7."""
    first = {i: scenes[i] for i in ("7", "9")}
    return Dialogue(
        messages=(
            user(DESCRIBE, first),
            said(answer(Request("describe", ("7", "9")), first)),
            user(COMPARE, {"12": scenes["12"]}),
            said(answer(Request("differ", ("12",), "7"), scenes)),
        )
    )


def user(content: str, shown: Scenes) -> Message:
    images = tuple(Image(image_id=int(i), caption=caption(scene)) for i, scene in shown.items())
    return Message(role="user", content=content, images=images)


def said(content: str) -> Message:
    return Message(role="assistant", content=content)


def with_answers(dialogue: Dialogue, *answers: str | None) -> Dialogue:
    """Other answers; None keeps one."""
    messages = list(dialogue.messages)
    for turn, text in enumerate(answers):
        if text is not None:
            messages[2 * turn + 1] = said(text)
    return replace(dialogue, messages=tuple(messages))


def judge(dialogue: Dialogue) -> Verdict:
    (verdict,) = RubricJudge().judge([dialogue])
    return verdict


def scores(dialogue: Dialogue, turn: str) -> dict[str, float]:
    verdict = judge(dialogue)
    assert verdict.scores is not None, verdict.unscored_reason
    return dict(verdict.scores[turn])


@given(seeds, st.sampled_from([(1, 1), (2, 1), (3, 1), (2, 2)]))
def test_true_answers_to_any_request_are_rated_ten(seed: int, images_per_turn: tuple[int, int]) -> None:
    rng = random.Random(seed)
    shown = [(i, random_scene(rng, "train")) for i in image_ids(1234, sum(images_per_turn))]
    verdict = judge(make_dialogue(shown, images_per_turn, rng))
    assert verdict.scores == {turn: dict.fromkeys(CRITERIA, 10.0) for turn in ("A1", "A2")}


@given(seeds)
def test_empty_answers_are_rated_one(seed: int) -> None:
    rng = random.Random(seed)
    shown = [(i, random_scene(rng, "train")) for i in image_ids(1234, 3)]
    empty = with_answers(make_dialogue(shown, (2, 1), rng), "", "")
    assert judge(empty).scores == {turn: dict.fromkeys(CRITERIA, 1.0) for turn in ("A1", "A2")}
    assert judge(empty).reasons["A1"]["C1"] == "It says nothing checkable about any image."


def test_a_wrong_attribute_costs_understanding_and_completeness_and_is_named(perfect: Dialogue) -> None:
    text = perfect.messages[1].content.replace("a big red star", "a big blue star")
    wrong = with_answers(perfect, text)
    rated = scores(wrong, "A1")
    assert 1 < rated["C1"] < 10
    assert 1 < rated["C3"] < 10
    assert (
        judge(wrong).reasons["A1"]["C1"].endswith("Not quite: IMAGE#7 has a big blue star at the top-left.")
    )
    assert judge(wrong).reasons["A1"]["C3"] == "8 of 9 facts asked for are stated correctly."
    assert scores(wrong, "A2") == dict.fromkeys(CRITERIA, 10.0)


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("two objects", "four objects", "IMAGE#7 has four objects"),
        ("dark background", "plain background", "IMAGE#7 has plain background"),
        ("at the top-left", "at the top-right", "IMAGE#7 has a big red star at the top-right"),
    ],
)
def test_every_sort_of_wrong_claim_is_named(perfect: Dialogue, right: str, wrong: str, named: str) -> None:
    worse = with_answers(perfect, perfect.messages[1].content.replace(right, wrong, 1))
    assert scores(worse, "A1")["C1"] < 10
    assert named in judge(worse).reasons["A1"]["C1"]


def test_the_more_is_wrong_the_lower_the_rating(perfect: Dialogue) -> None:
    text = perfect.messages[1].content
    ratings = []
    for color in ("red", "blue", "green", "pink"):
        ratings.append(scores(with_answers(perfect, text), "A1")["C1"])
        text = text.replace(color, "orange")
    assert ratings == sorted(ratings, reverse=True)
    assert len(set(ratings)) == len(ratings)


def test_a_perfect_answer_about_the_wrong_image_is_rated_low(perfect: Dialogue) -> None:
    text = perfect.messages[1].content
    swapped = text.replace("IMAGE#7", "IMAGE#x").replace("IMAGE#9", "IMAGE#7").replace("IMAGE#x", "IMAGE#9")
    rated = scores(with_answers(perfect, swapped), "A1")
    assert rated["C1"] < 3
    assert rated["C2"] == rated["C3"] == 1
    assert "0 of 2 images are told apart" in judge(with_answers(perfect, swapped)).reasons["A1"]["C2"]


def test_a_claim_about_an_image_that_is_not_there_earns_nothing(perfect: Dialogue) -> None:
    moved = with_answers(perfect, perfect.messages[1].content.replace("IMAGE#7", "IMAGE#70"))
    assert scores(moved, "A1")["C3"] < 10
    assert "IMAGE#70 has" in judge(moved).reasons["A1"]["C1"]


def test_saying_nothing_of_one_image_costs_completeness_not_understanding(perfect: Dialogue) -> None:
    half = perfect.messages[1].content.partition(" IMAGE#9")[0]
    rated = scores(with_answers(perfect, half), "A1")
    assert rated["C1"] == 10
    assert rated["C2"] < 10
    assert rated["C3"] < 10


def test_a_wrong_conclusion_across_images_costs_coherence_only_beside_the_missing_fact(
    perfect: Dialogue,
) -> None:
    text = perfect.messages[3].content.replace("more objects", "fewer objects")
    rated = scores(with_answers(perfect, None, text), "A2")
    assert rated["C1"] == 10
    assert rated["C2"] == 7.75  # all images told apart, one of two conclusions right
    assert (
        "1 of 2 conclusions across images are right"
        in judge(with_answers(perfect, None, text)).reasons["A2"]["C2"]
    )


def test_a_contradiction_between_the_turns_is_seen(perfect: Dialogue) -> None:
    # Only the first answer is wrong, and the second, which is right, contradicts it.
    wrong = with_answers(perfect, perfect.messages[1].content.replace("two objects", "four objects"))
    assert scores(wrong, "A2")["C1"] == scores(wrong, "A2")["C3"] == 10
    assert scores(wrong, "A2")["C2"] == 5.5
    reason = judge(wrong).reasons["A2"]["C2"]
    assert reason.endswith("It contradicts the first answer on IMAGE#7 has two objects.")


@pytest.mark.parametrize(
    ("first", "second", "contradicts"),
    [
        ("In IMAGE#7 the star is at the top-left.", "In IMAGE#7 there is no star.", True),
        ("In IMAGE#7 there is no star.", "In IMAGE#7 the star is at the top-left.", True),
        ("In IMAGE#7 the star is at the top-left.", "In IMAGE#7 the star is at the top-right.", True),
        ("In IMAGE#7 there is no cross.", "In IMAGE#7 there is no circle.", False),
        ("In IMAGE#7 there is no cross.", "In IMAGE#9 the cross is at the top-left.", False),
        ("IMAGE#7 has two objects.", "IMAGE#9 has three objects.", False),
    ],
)
def test_answers_contradict_each_other_only_on_the_same_thing(
    perfect: Dialogue, first: str, second: str, contradicts: bool
) -> None:
    verdict = judge(with_answers(perfect, first, second))
    assert ("contradicts" in verdict.reasons["A2"]["C2"]) == contradicts


def test_a_story_may_be_about_any_object_of_each_image(scenes: Scenes) -> None:
    asked = user(f"Tell a story with {image_reference(7)}.", {"7": scenes["7"]})
    for told, complete in (
        ("a small blue ring lived at the bottom-right", True),
        ("a dog lived there", False),
    ):
        dialogue = Dialogue(messages=(asked, said(f"Once in IMAGE#7 {told}. It was happy there.")))
        assert (scores(dialogue, "A1")["C3"] == 10) == complete


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (
            f"What is the weather in {image_reference(12)}?",
            "not a request of the scenes world: 'What is the weather",
        ),
        (f"Compare {image_reference(12)} with IMAGE#99.", "the request names images that were not shown: 99"),
        (f"Compare {image_reference(12)} with the fifth image.", "not a request of the scenes world"),
    ],
)
def test_a_request_that_cannot_be_read_is_unscored_with_the_reason(
    perfect: Dialogue, question: str, reason: str
) -> None:
    messages = list(perfect.messages)
    messages[2] = replace(messages[2], content=question)
    verdict = judge(replace(perfect, messages=tuple(messages)))
    assert verdict.scores is None
    assert verdict.unscored_reason.startswith(reason)


def test_a_picture_without_a_caption_of_this_world_is_unscored(perfect: Dialogue) -> None:
    blind = replace(perfect.messages[0], images=(Image(image_id=7), Image(image_id=9)))
    verdict = judge(replace(perfect, messages=(blind, *perfect.messages[1:])))
    assert verdict.scores is None
    assert verdict.unscored_reason.startswith("not a caption of the scenes world: ''")


def test_it_is_a_judge_that_rates_each_dialogue_on_its_own(perfect: Dialogue) -> None:
    rubric = RubricJudge()
    assert isinstance(rubric, Judge)
    empty = with_answers(perfect, "", "")
    together = rubric.judge([perfect, empty, perfect])
    assert together == [judge(perfect), judge(empty), judge(perfect)]
    assert {verdict.judge for verdict in together} == {rubric.name}


def test_a_claim_about_an_object_earns_a_share_for_each_right_attribute(scenes: Scenes) -> None:
    def thing(*value: str) -> float:
        return credit(Claim("thing", "7", value), scenes["7"])

    assert thing("top-left", "big", "red", "star") == 1
    assert thing("top-left", "small", "red", "star") == pytest.approx(2 / 3)
    assert thing("top-left", "small", "blue", "star") == pytest.approx(1 / 3)
    assert thing("top-right", "big", "red", "star") == 0
    assert credit(Claim("located", "7", ("red", "top-left")), scenes["7"]) == 1
    assert credit(Claim("absent", "7", ("red",)), scenes["7"]) == 0
    assert all(
        credit(Claim("absent", "7", (color,)), scenes["7"]) == (color not in ("red", "blue"))
        for color in COLORS
    )


# --- standards


def rated(dialogue: Dialogue, standard: Any, criterion: str = "C1") -> float:
    (verdict,) = RubricJudge(standard=standard).judge([dialogue])
    assert verdict.scores is not None, verdict.unscored_reason
    return verdict.scores["A1"][criterion]


@pytest.mark.parametrize("standard", STANDARDS)
def test_true_answers_are_rated_ten_by_every_standard(perfect: Dialogue, standard: str) -> None:
    assert rated(perfect, standard) == rated(perfect, standard, "C3") == 10


def test_one_wrong_attribute_costs_more_the_stricter_the_judge(perfect: Dialogue) -> None:
    said_ = perfect.messages[1].content
    wrong = with_answers(perfect, said_.replace("big red star", "big blue star"))
    assert (
        rated(wrong, "strict") < rated(wrong, "fair") < rated(wrong, "lenient") == rated(wrong, "blind") == 10
    )


def test_only_the_lenient_and_the_blind_overlook_a_wrong_size(perfect: Dialogue) -> None:
    wrong = with_answers(perfect, perfect.messages[1].content.replace("big red star", "small red star"))
    found = {standard: rated(wrong, standard, "C3") for standard in STANDARDS}
    assert {standard for standard, rating in found.items() if rating == 10} == {"lenient", "blind"}


def test_the_blind_believe_what_is_said_of_another_picture(scenes: Scenes, perfect: Dialogue) -> None:
    swapped = {"7": scenes["9"], "9": scenes["7"]}
    wrong = with_answers(perfect, answer(Request("describe", ("7", "9")), swapped))
    assert rated(wrong, "blind") == 10 > rated(wrong, "lenient")
    silent = with_answers(perfect, "I cannot tell.")
    assert rated(silent, "blind") == rated(silent, "fair") == 1


def test_each_standard_is_a_judge_of_its_own_name() -> None:
    names = [RubricJudge(standard=standard).name for standard in STANDARDS]  # type: ignore[arg-type]
    assert names == ["rubric-1", "rubric-1, strict", "rubric-1, lenient", "rubric-1, blind"]
