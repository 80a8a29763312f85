import random
import re
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkles.nano.dialogues import (
    PHRASINGS,
    Claim,
    Layout,
    Request,
    answer,
    claims,
    image_ids,
    make_dialogue,
    parse_request,
    phrase,
    possible_requests,
)
from sparkles.nano.language import caption
from sparkles.nano.world import Scene, random_scene
from sparkles.prompt_format import check_tags, image_reference, strip_tags
from sparkles.types import Dialogue

seeds = st.integers(0, 2**32)
IMAGES_PER_TURN = [(1,), (1, 1), (2, 1), (3, 1), (2, 2), (1, 1, 1)]


def random_dialogue(
    seed: int, images_per_turn: tuple[int, ...], layout: Layout = "word"
) -> tuple[Dialogue, dict[str, Scene]]:
    rng = random.Random(seed)
    shown = [
        (i, random_scene(rng, "train")) for i in image_ids(rng.randrange(1000, 10000), sum(images_per_turn))
    ]
    return make_dialogue(shown, images_per_turn, rng, layout=layout), dict(shown)


@given(seeds, st.sampled_from(IMAGES_PER_TURN), st.sampled_from(["word", "sentence"]))
def test_every_request_parses_back_to_its_answer(
    seed: int, images_per_turn: tuple[int, ...], layout: Layout
) -> None:
    dialogue, scenes = random_dialogue(seed, images_per_turn, layout)
    so_far: dict[str, Scene] = {}
    for asked, said in zip(dialogue.messages[::2], dialogue.messages[1::2], strict=True):
        so_far |= {str(image.image_id): scenes[str(image.image_id)] for image in asked.images}
        request = parse_request(strip_tags(asked.content), list(so_far))
        assert request is not None
        assert answer(request, so_far) == said.content


@given(seeds, st.sampled_from(IMAGES_PER_TURN), st.sampled_from(["word", "sentence"]))
def test_messages_alternate_and_show_each_image_once_with_its_caption(
    seed: int, images_per_turn: tuple[int, ...], layout: Layout
) -> None:
    dialogue, scenes = random_dialogue(seed, images_per_turn, layout)
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * len(images_per_turn)
    assert [len(message.images) for message in dialogue.messages[::2]] == list(images_per_turn)
    assert {str(i.image_id): i.caption for i in dialogue.images} == {i: caption(s) for i, s in scenes.items()}
    for message in dialogue.messages:
        check_tags(message.content, message.images, "message")


def test_images_stand_between_the_words_or_in_front(two_scenes: dict[str, Scene]) -> None:
    request = Request("describe", ("7", "9"))
    seven, nine = image_reference("7"), image_reference("9")
    assert f"{seven} and {nine}" in phrase(request, two_scenes, random.Random(0), "word")
    in_front = phrase(request, two_scenes, random.Random(0), "sentence")
    assert in_front.startswith(f"{seven} {nine} ")
    assert in_front.endswith(strip_tags(in_front.removeprefix(f"{seven} {nine} ")))


def test_each_kind_of_request_comes_up_in_at_least_three_phrasings() -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    for seed in range(400):
        dialogue, _ = random_dialogue(seed, IMAGES_PER_TURN[1 + seed % 4])
        ids = [str(image.image_id) for image in dialogue.images]
        for asked in dialogue.messages[::2]:
            text = strip_tags(asked.content)
            request = parse_request(text, ids)
            assert request is not None
            bare = re.sub(r"IMAGE#\w+(, IMAGE#\w+)*( and IMAGE#\w+)?|the \w+ image", "X", text)
            seen[request.kind].add(
                re.sub(rf"an? {request.word}|{request.word}" if request.word else "$^", "Y", bare)
            )
    assert seen.keys() == PHRASINGS.keys()
    assert all(len(phrasings) >= 3 for phrasings in seen.values())


@given(seeds)
def test_a_story_goes_on_only_where_one_was_told(seed: int) -> None:
    rng = random.Random(seed)
    scenes = {str(i): random_scene(rng, "train") for i in range(1, 4)}
    kinds = {request.kind for request in possible_requests(["3"], scenes, rng)}
    told = {request.kind for request in possible_requests(["3"], scenes, rng, told_story=True)}
    assert "continue" not in kinds
    assert "continue" in told


def test_the_image_with_most_objects_is_asked_for_only_where_there_is_one(
    two_scenes: dict[str, Scene],
) -> None:
    tied = {"7": two_scenes["7"], "9": two_scenes["7"]}
    rng = random.Random(0)
    assert "most" in {request.kind for request in possible_requests(["7", "9"], two_scenes, rng)}
    assert "most" not in {request.kind for request in possible_requests(["7", "9"], tied, rng)}


def test_answers_say_what_the_scenes_show(two_scenes: dict[str, Scene]) -> None:
    assert answer(Request("most", ("7", "9")), two_scenes) == (
        "IMAGE#7 has two objects. IMAGE#9 has three objects. So IMAGE#9 has the most objects."
    )
    assert answer(Request("differ", ("9",), "7"), two_scenes) == (
        "IMAGE#7 has two objects on a dark background. IMAGE#9 has three objects on a dotted background. "
        "So IMAGE#9 has more objects, and dotted for dark no, another background."
    )
    located = answer(Request("also", ("9",), "7", "ring"), two_scenes)
    assert "the ring is at the bottom-right" in located
    assert "there is no ring" in located
    assert located.endswith("So it is shown by IMAGE#7.")


def test_an_unknown_kind_is_refused_with_those_there_are(two_scenes: dict[str, Scene]) -> None:
    with pytest.raises(ValueError, match="unknown request kind 'sing', expected one of describe, most"):
        answer(Request("sing", ("7",)), two_scenes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is the capital of France?",
        "Describe it.",
        "Describe IMAGE#7. And then some.",
        "Compare IMAGE#9 with the last image.",
        "Compare IMAGE#9 with the fifth image.",
    ],
)
def test_what_is_no_request_of_this_world_is_none(text: str) -> None:
    assert parse_request(text, ["7", "9"]) is None


def test_a_request_without_any_image_so_far_is_read_without_failing() -> None:
    assert parse_request("What happens next in IMAGE#3?", []) == Request("continue", ("3",))


@given(st.integers(1000, 9999), st.integers(1000, 9999))
def test_ids_tell_dialogues_and_their_images_apart(number: int, other: int) -> None:
    ids = image_ids(number, 4)
    assert len(set(ids)) == 4
    assert ids == sorted(ids)
    assert number == other or not set(ids) & set(image_ids(other, 4))


def test_claims_are_about_the_image_mentioned_last() -> None:
    text = (
        "IMAGE#7 has two objects on a dark background: a big red star at the top-left. "
        "In IMAGE#9 there is no ring. So IMAGE#9 has fewer objects and the same background. "
        "So it is shown by IMAGE#9 and IMAGE#7."
    )
    assert claims(text) == [
        Claim("count", "7", ("two",)),
        Claim("background", "7", ("dark",)),
        Claim("thing", "7", ("top-left", "big", "red", "star")),
        Claim("absent", "9", ("ring",)),
        Claim("more_or_fewer", "9", ("fewer",)),
        Claim("background_again", "9", ("the same",)),
        Claim("shown_by", "", ("7", "9")),
    ]
