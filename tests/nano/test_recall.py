from collections import Counter
from pathlib import Path

import pytest

from sparkles.data.annotations import read_dialogues
from sparkles.data.images import load_image
from sparkles.eval.files import read_rows
from sparkles.eval.recall import COLUMNS, Recall, read_option
from sparkles.nano.dialogues import claims, parse_request
from sparkles.nano.language import parse_caption
from sparkles.nano.recall import ensure
from sparkles.nano.world import COLORS, render
from sparkles.prompt_format import strip_tags

NUM = 70


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure(tmp_path_factory.mktemp("data") / "recall", num=NUM)


@pytest.fixture(scope="module")
def benchmark(root: Path) -> Recall:
    return Recall(annotations=root / "annotations" / "recall.json", images=root / "images")


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again, other = (ensure(tmp_path / name, num=NUM, seed=seed) for name, seed in (("a", 0), ("b", 1)))

    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob("*.*")}

    assert files(root) == files(again) != files(other)


def test_it_has_two_to_eight_pictures_over_two_to_six_turns(benchmark: Recall) -> None:
    asked = benchmark.scorer.asked.values()
    assert Counter(one.images for one in asked) == dict.fromkeys(range(2, 9), NUM // 7)
    assert {one.turns for one in asked} == set(range(2, 7))
    assert all(1 <= one.turns_back < one.turns <= one.images for one in asked)
    assert {item.kind for item in benchmark.items()} == {"differ", "also"}


def test_the_true_answer_is_read_as_the_right_one_and_holds_of_no_other_picture(benchmark: Recall) -> None:
    items = {item.item_id: item for item in benchmark.items()}
    for dialogue in read_dialogues(Path(benchmark.annotations)):
        asked = benchmark.scorer.asked[dialogue.dialogue_id]
        assert read_option(dialogue.messages[-1].content, asked.options) == items[dialogue.dialogue_id].label
        assert asked.right not in asked.of_others


def test_answers_hold_of_the_pictures(benchmark: Recall) -> None:
    for row in read_rows(Path(benchmark.annotations), COLUMNS):
        captions = {
            str(image["image_id"]): image["caption"]
            for message in row["dialogue"]
            for image in message.get("images", [])
        }
        for image_id, answers in row["answers"].items():
            scene = parse_caption(captions[image_id])
            if row["kind"] == "differ":
                (answer,) = answers
                assert captions[image_id].startswith(answer)
            else:
                word = next(color for color in COLORS if f" {color} " in row["options"][0])
                assert [answer.split()[-1] for answer in answers] == scene.places_with(word)


def test_no_earlier_answer_tells_what_the_last_question_asks(benchmark: Recall) -> None:
    for row in read_rows(Path(benchmark.annotations), COLUMNS):
        told = {"count", "background"} if row["kind"] == "differ" else set()
        for message in row["dialogue"][:-2]:
            if message["role"] == "assistant":
                assert not told & {claim.kind for claim in claims(message["content"])}
                if row["kind"] == "also":
                    assert not any(f" {color} " in message["content"] for color in COLORS)


def test_the_last_question_is_one_that_the_miniature_knows(benchmark: Recall) -> None:
    for row in read_rows(Path(benchmark.annotations), COLUMNS):
        ids = [str(image["image_id"]) for message in row["dialogue"] for image in message.get("images", [])]
        request = parse_request(strip_tags(row["dialogue"][-2]["content"]), ids)
        assert request is not None
        assert (request.kind, request.reference) == (row["kind"], str(row["asked_image_id"]))


def test_pictures_are_those_of_the_captions(benchmark: Recall) -> None:
    for image in benchmark.items()[0].images:
        scene = parse_caption(image.caption)
        assert scene.split == "eval"
        assert load_image(image).tobytes() == render(scene).tobytes()


def test_asked_pictures_are_of_all_distances(benchmark: Recall) -> None:
    back = Counter(one.images_back for one in benchmark.scorer.asked.values())
    assert set(range(1, 6)) <= set(back)
