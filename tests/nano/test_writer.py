import json
from pathlib import Path

from PIL import Image as PILImage

from sparkles.gen.candidates import Candidates
from sparkles.gen.pipeline import generate
from sparkles.gen.recipes import Call, Recipe
from sparkles.nano.language import parse_caption
from sparkles.nano.rubric import RubricJudge
from sparkles.nano.world import render
from sparkles.nano.writer import SceneWriter, draw_scenes


def scene_recipe(num: int = 6) -> Recipe:
    return Recipe(
        name="scenes",
        replies=[[[2, 1]], [[3, 1]]],
        num_dialogues=num,
        candidates=Candidates(images=draw_scenes(num=40), size=4, shuffle=False),
    )


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
