import json
from typing import Any

import pytest

from sparkles.gen.parsing import Reason
from sparkles.gen.recipes import Call
from sparkles.types import InputError
from tests.gen.scripted import demonstrations, make_recipe, reply


def test_no_image_is_a_candidate_of_two_calls_of_any_kind() -> None:
    recipe = make_recipe()
    assert [recipe.calls_left(kind, 0) for kind in (0, 1)] == [5, 5]
    calls = [Call(kind, number) for number in range(5) for kind in (0, 1)]
    ids = [image.image_id for call in calls for image in recipe.assignment(call).candidates]
    assert len(ids) == len(set(ids)) == 40


def test_what_a_call_asks_does_not_depend_on_how_many_are_wanted() -> None:
    few, many = (make_recipe(num_dialogues=num, demonstrations=demonstrations()) for num in (4, 10))
    assert few.assignment(Call(1, 2)) == many.assignment(Call(1, 2))


def test_dialogues_are_divided_evenly_among_the_kinds() -> None:
    recipe = make_recipe(num_dialogues=8, replies=[[[2, 1]], [[3, 1]], [[2, 2]]])
    assert [recipe.wanted(kind) for kind in range(3)] == [3, 3, 2]


def test_three_times_the_calls_that_would_do_are_allowed() -> None:
    three_in_a_reply = [[[1, 1], [2, 1], [3, 1]]]
    assert make_recipe(num_dialogues=30, replies=three_in_a_reply).calls_at_most == 30
    assert make_recipe(num_dialogues=30).calls_at_most == 90
    assert make_recipe(max_calls=7).calls_at_most == 7


def test_a_dialogue_of_another_shape_is_rejected_with_both_shapes() -> None:
    recipe = make_recipe()
    assignment = recipe.assignment(Call(0, 0))
    ids = [image.image_id for image in assignment.candidates]
    parsed = recipe.read(reply(ids, [(2, 1), (1, 1)]), assignment)
    assert [len(parsed.dialogues), len(parsed.rejected)] == [1, 1]
    assert parsed.rejected[0].reason == Reason.NUM_IMAGES
    assert parsed.rejected[0].detail == "images by turn: [1, 1], expected [2, 1]"


def test_any_number_of_turns_and_images() -> None:
    recipe = make_recipe(replies=[[[1, 2, 1], [1]]], candidates={"size": 8})
    assignment = recipe.assignment(Call(0, 0))
    parsed = recipe.read(
        reply([image.image_id for image in assignment.candidates], assignment.shapes), assignment
    )
    assert [one.num_turns for one in parsed.dialogues] == [3, 1]


def test_replies_may_be_read_as_the_original_did() -> None:
    recipe = make_recipe(original_parsing=True, num_dialogues=2, replies=[[[2, 1]]])
    assignment = recipe.assignment(Call(0, 0))
    first = assignment.candidates[0].image_id
    messages = json.loads(reply([image.image_id for image in assignment.candidates], [(2, 1)]))["dialogues"][
        0
    ]
    messages[0]["content"] = f"{first} apples: {messages[0]['content']}"
    (tagged,) = recipe.read(json.dumps([messages]), assignment).dialogues
    assert tagged.messages[0].content.startswith(f"{first}<Img>")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replies": [[[0, 1]]]}, r"holds \[0, 1\]; .* one or more in the first"),
        ({"replies": [[[]]]}, r"holds \[\]"),
        ({"replies": [[[3, 2]]]}, r"5 images \(\[3, 2\]\) cannot be chosen from 4 candidates"),
        ({"num_dialogues": 1}, "at least one for each of the 2 kinds"),
        ({"replies": [[[1, 1]]], "demonstrations": demonstrations()}, "0 demonstrations have 1 images"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe(**settings)
