import json
from pathlib import Path

import pytest

from sparkles.gen.prompting import SCHEMA, DialoguePrompt
from sparkles.gen.recipes import Assignment, Call
from sparkles.types import InputError
from tests.gen.scripted import captioned, demonstrations, dialogue, make_recipe, written


@pytest.fixture
def assignment() -> Assignment:
    return make_recipe(demonstrations=demonstrations()).assignment(Call(1, 0))


def filled(tmp_path: Path, text: str, assignment: Assignment) -> str:
    (tmp_path / "prompt.txt").write_text(text)
    return DialoguePrompt(tmp_path / "prompt.txt").fill(assignment)


def test_the_prompt_names_candidates_and_what_is_wanted(assignment: Assignment) -> None:
    text = DialoguePrompt().fill(assignment)
    for image in assignment.candidates:
        assert json.dumps({"image_id": image.image_id, "caption": image.caption}) in text
    assert (
        "Dialogue 1: the user brings in three images in the first message, and one new image in message 2."
        in text
    )


def test_what_the_prompt_asks_for_is_what_the_recipe_reads() -> None:
    recipe = make_recipe(replies=[[[1, 1], [2, 1], [3, 2]]], candidates={"size": 9})
    assignment = recipe.assignment(Call(0, 0))
    parsed = recipe.read(written(DialoguePrompt().fill(assignment)), assignment)
    assert (len(parsed.dialogues), parsed.rejected) == (3, ())


def test_a_demonstration_has_neither_captions_nor_tags_nor_its_last_answer(tmp_path: Path) -> None:
    assignment = Assignment(
        candidates=tuple(captioned(4)), demonstrations=(dialogue(1, 1),), shapes=((1, 1),)
    )
    shown = json.loads(filled(tmp_path, "$demonstrations", assignment))
    assert shown == [
        {"role": "user", "image_ids": ["1"], "content": "What of IMAGE#1?"},
        {"role": "assistant", "image_ids": [], "content": "Answer 1."},
        {"role": "user", "image_ids": ["2"], "content": "What of IMAGE#2?"},
        {"role": "assistant", "image_ids": [], "content": "..."},
    ]


def test_a_prompt_of_ones_own_may_use_number_words(tmp_path: Path, assignment: Assignment) -> None:
    text = filled(tmp_path, "Write {$num_dialogues} with $images of $num_candidates.", assignment)
    assert text == "Write {1} with three of 4."


@pytest.mark.parametrize(
    ("text", "message"),
    [("$captions", r"has \$captions, which is none of \$candidates"), ("costs $ 5", r"write \$\$ for a \$")],
)
def test_a_prompt_that_asks_for_what_is_not_there_is_refused(
    tmp_path: Path, assignment: Assignment, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        filled(tmp_path, text, assignment)


def test_a_prompt_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*mine\.txt"):
        DialoguePrompt(tmp_path / "mine.txt")


def test_the_hash_is_of_the_text(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, text in zip(paths, ("one", "one", "two"), strict=True):
        path.write_text(text)
    first, same, other = (DialoguePrompt(path).hash for path in paths)
    assert first == same != other


def test_the_schema_is_strict() -> None:
    """As endpoints demand it: every object lists all of its fields as required, and takes no others."""
    objects = [SCHEMA, SCHEMA["properties"]["dialogues"]["items"]["items"]]
    for one in objects:
        assert (one["additionalProperties"], one["required"]) == (False, list(one["properties"]))
