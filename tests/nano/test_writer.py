import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import pytest
from PIL import Image as PILImage

from sparkles.gen.candidates import Candidates, Demonstrations
from sparkles.gen.pipeline import generate
from sparkles.gen.recipes import Call, Recipe
from sparkles.nano.dialogues import PHRASINGS, claims, phrasing_of
from sparkles.nano.language import parse_caption
from sparkles.nano.rubric import RubricJudge, credit
from sparkles.nano.world import render
from sparkles.nano.writer import Mistakes, SceneWriter, demonstrations, draw_scenes
from sparkles.prompt_format import strip_tags
from sparkles.types import Dialogue, InputError


def scene_recipe(num: int = 6, shown: Iterable[Dialogue] = ()) -> Recipe:
    return Recipe(
        name="scenes",
        replies=[[[2, 1]], [[3, 1]]],
        num_dialogues=num,
        candidates=Candidates(images=draw_scenes(num=4 * num + 16), size=4, shuffle=False),
        demonstrations=Demonstrations(dialogues=list(shown)) if shown else None,
    )


def written(num: int, writer: SceneWriter, shown: Iterable[Dialogue] = ()) -> list[Dialogue]:
    return generate(scene_recipe(num, shown), writer, progress=False).dialogues


def phrasings(dialogues: Iterable[Dialogue], turn: int) -> set[tuple[str, str] | None]:
    """Kind and wording of the questions of a turn, from 0."""
    return {phrasing_of(strip_tags(dialogue.messages[2 * turn].content)) for dialogue in dialogues}


def test_its_dialogues_are_true_of_the_captions() -> None:
    generated = generate(scene_recipe(), SceneWriter(), progress=False)
    assert (generated.num_kept, generated.rejects) == (6, [])
    for verdict in RubricJudge().judge(generated.dialogues):
        assert verdict.scores == {answer: {"C1": 10, "C2": 10, "C3": 10} for answer in ("A1", "A2")}


def test_the_same_candidates_get_the_same_reply() -> None:
    recipe = scene_recipe()
    first, again = (SceneWriter(seed=1).reply(recipe.assignment(Call(0, 0))) for _ in range(2))
    assert first == again != SceneWriter(seed=2).reply(recipe.assignment(Call(0, 0)))
    assert set(json.loads(first)) == {"dialogues"}


def test_several_dialogues_in_a_reply() -> None:
    recipe = Recipe(
        name="scenes",
        replies=[[[1, 1], [2, 1], [3, 1]]],
        num_dialogues=6,
        candidates=Candidates(images=draw_scenes(num=20), size=9, reuse=True),
    )
    generated = generate(recipe, SceneWriter(), progress=False)
    assert [len(one.images) for one in generated.dialogues] == [2, 3, 4] * 2


def test_pictures_show_what_captions_say(tmp_path: Path) -> None:
    images = draw_scenes(num=5, folder=tmp_path / "images")
    assert [image.image_id for image in images] == [100001, 100002, 100003, 100004, 100101]
    for image in images:
        assert image.path is not None
        drawn = render(parse_caption(image.caption))
        assert drawn.tobytes() == PILImage.open(image.path).convert("RGB").tobytes()


def test_without_a_folder_nothing_is_drawn() -> None:
    assert [image.path for image in draw_scenes(num=2)] == [None, None]


def test_a_biased_captioner_errs() -> None:
    exact, biased = (draw_scenes(num=20, biased=flag) for flag in (False, True))
    assert [image.caption for image in exact] != [image.caption for image in biased]


# --- a writer that is shown demonstrations


def test_it_makes_the_requests_of_the_one_demonstration_it_is_shown() -> None:
    # describing and comparing is possible with any pictures
    shown = demonstrations(num=1, kinds=["describe", "differ"], shapes=[(2, 1), (3, 1)])
    dialogues = written(12, SceneWriter(), shown)
    for num_images in (2, 3):
        shaped = [one for one in dialogues if len(one.messages[0].images) == num_images]
        example = [one for one in shown if len(one.messages[0].images) == num_images]
        assert [phrasings(shaped, turn) for turn in (0, 1)] == [phrasings(example, turn) for turn in (0, 1)]


def test_fewer_demonstrations_give_less_diverse_requests() -> None:
    diversity = [len(phrasings(written(60, SceneWriter(), demonstrations(num=num)), 0)) for num in (1, 3, 50)]
    assert diversity == sorted(set(diversity))


def test_shown_nothing_it_makes_any_request() -> None:
    kinds = {spoken[0] for turn in (0, 1) for spoken in phrasings(written(60, SceneWriter()), turn) if spoken}
    assert kinds == PHRASINGS.keys()


def test_where_the_images_allow_no_request_that_it_is_shown_it_makes_another() -> None:
    dialogues = written(40, SceneWriter(), demonstrations(num=50, kinds=["most", "differ", "describe"]))
    assert len(dialogues) == 40


def test_an_unknown_kind_of_demonstration_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown sing; expected some of describe, most"):
        demonstrations(num=1, kinds=["sing"])


# --- a writer that errs


def holding(mistakes: Mistakes) -> float:
    """The share of what is said of objects that holds of the pictures."""
    credits = []
    for dialogue in written(60, SceneWriter(mistakes=mistakes)):
        scenes = {str(image.image_id): parse_caption(image.caption) for image in dialogue.images}
        said = [one for message in dialogue.messages for one in claims(message.content)]
        credits += [credit(one, scenes[one.image_id]) for one in said if one.kind == "thing"]
    return fmean(share == 1 for share in credits)


@pytest.mark.parametrize("kind", ["wrong_fact", "wrong_picture"])
def test_mistakes_are_as_frequent_as_was_asked_for(kind: str) -> None:
    none, few, many = (holding(Mistakes(**{kind: chance})) for chance in (0.0, 0.1, 0.5))
    assert (none, few, many) == pytest.approx((1.0, 0.9, 0.5), abs=0.12)


def test_captions_stay_true_however_the_writer_errs() -> None:
    exact, wrong = (
        written(6, SceneWriter(mistakes=mistakes)) for mistakes in (Mistakes(), Mistakes(wrong_fact=1.0))
    )
    assert [one.images for one in exact] == [one.images for one in wrong]


def test_a_chance_beyond_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"chances between 0 and 1, got Mistakes\(wrong_fact=3, "):
        Mistakes(wrong_fact=3)
