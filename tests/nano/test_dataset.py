import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.data.annotations import read_dialogues, read_samples, samples_of
from sparkles.data.images import ImageFolder, load_image
from sparkles.eval.bison import Bison
from sparkles.eval.nlvr2 import NLVR2
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.nano import dataset
from sparkles.nano.dataset import Sizes, ensure
from sparkles.nano.language import BISON_KINDS, STATEMENTS, parse_caption
from sparkles.nano.rubric import RubricJudge
from sparkles.nano.world import NARROW_WORLD, Scene, render
from sparkles.types import Dialogue

TINY = Sizes(
    cc_dialogues=3, vg_dialogues=2, single_images=2, captions=2, validation_dialogues=1, benchmark_items=2
)
TRAINING = ("SparklesDialogueCC", "SparklesDialogueVG", "descriptions", "reasoning", "validation")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def dialogues_of(root: Path, name: str) -> list[Dialogue]:
    return read_dialogues(root / name / "annotations" / f"{name}.json", ImageFolder(root / name / "images"))


def benchmark(root: Path, kind: type, name: str) -> Any:
    folder = root / "evaluation" / name
    annotations = folder / "annotations" / f"sparkles_evaluation_{name.lower()}_annotations.json"
    return kind(annotations=annotations, images=folder / "images")


# --- the same, and not the same


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, second, other = (
        files(ensure(tmp_path / name, seed=seed, sizes=TINY)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    annotations = {name for name in first if name.endswith(".json")}
    assert all(other.get(name) != first[name] for name in annotations)


def test_the_size_of_one_part_does_not_change_another(tmp_path: Path) -> None:
    small = files(ensure(tmp_path / "a", sizes=TINY))
    large = files(ensure(tmp_path / "b", sizes=replace(TINY, cc_dialogues=5)))
    changed = {name for name in small.keys() | large.keys() if small.get(name) != large.get(name)}
    assert {name.split("/")[0] for name in changed} == {"SparklesDialogueCC", "scenes.json"}


def test_training_and_evaluation_show_different_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, set[Scene]] = defaultdict(set)

    def remember(folder: Path, image_id: str | int, scene: Scene) -> None:
        drawn["eval" if "evaluation" in folder.parts else "train"].add(scene)

    monkeypatch.setattr(dataset, "_save", remember)
    ensure(tmp_path / "scenes", sizes=Sizes(benchmark_items=40, captions=100))
    assert drawn.keys() == {"train", "eval"}
    assert all(scene.split == split for split, scenes in drawn.items() for scene in scenes)
    assert not drawn["train"] & drawn["eval"]


# --- what is written can be read


@pytest.mark.parametrize("name", TRAINING)
def test_training_files_are_read_and_hold_the_turns_of_the_dialogues(world_on_disk: Path, name: str) -> None:
    folder = world_on_disk / name
    dialogues = dialogues_of(world_on_disk, name)
    by_file = {
        path.stem: read_samples(path, ImageFolder(folder / "images"))
        for path in (folder / "annotations").glob(f"{name}_turn*img.json")
    }
    for stem, samples in by_file.items():
        turn, images = stem.removeprefix(f"{name}_turn").removesuffix("img").split("_")
        assert {len(sample.images) for sample in samples} == {int(images)}
        assert {len(sample.prompt.messages) for sample in samples} == {2 * int(turn) - 1}
    turns = [sample for dialogue in dialogues for sample in samples_of(dialogue)]
    assert Counter(s.answer for samples in by_file.values() for s in samples) == Counter(
        t.answer for t in turns
    )


def test_dialogues_show_as_many_images_as_in_the_paper(world_on_disk: Path) -> None:
    shown = {
        name: Counter(
            tuple(len(m.images) for m in d.messages[::2]) for d in dialogues_of(world_on_disk, name)
        )
        for name in TRAINING
    }
    assert shown["SparklesDialogueCC"] == {(1, 1): 20, (2, 1): 20, (3, 1): 20}
    assert shown["SparklesDialogueVG"] == {(2, 1): 10, (3, 1): 10}
    assert shown["descriptions"] == shown["reasoning"] == {(1,): 15}


def test_captions_are_read_with_their_pictures(world_on_disk: Path) -> None:
    folder = world_on_disk / "captions"
    samples = read_samples(folder / "annotations" / "captions.json", ImageFolder(folder / "images"))
    assert len(samples) == 20
    assert all(load_image(sample.images[0]).size == (72, 72) for sample in samples)


# --- what is said of the pictures


def misdescribed(root: Path, name: str) -> list[bool]:
    """For each image, whether its picture is not the one that its caption describes."""
    images = [image for dialogue in dialogues_of(root, name) for image in dialogue.images]
    return [load_image(i).tobytes() != render(parse_caption(i.caption)).tobytes() for i in images]


@pytest.mark.parametrize("name", ["SparklesDialogueVG", "validation", "descriptions", "reasoning"])
def test_accurate_sources_say_exactly_what_the_pictures_show(world_on_disk: Path, name: str) -> None:
    assert not any(misdescribed(world_on_disk, name))


def test_cc_describes_many_pictures_wrongly(world_on_disk: Path) -> None:
    assert 0.2 < sum(wrong := misdescribed(world_on_disk, "SparklesDialogueCC")) / len(wrong) < 0.95


def test_vg_is_narrow_and_cc_is_wide(world_on_disk: Path) -> None:
    def kinds(name: str) -> set[str]:
        scenes = [parse_caption(i.caption) for d in dialogues_of(world_on_disk, name) for i in d.images]
        words = {word for scene in scenes for thing in scene.at.values() for word in thing.words[1:]}
        return words | {scene.background for scene in scenes}

    narrow = {*NARROW_WORLD.shapes, *NARROW_WORLD.colors, *NARROW_WORLD.backgrounds}
    assert kinds("SparklesDialogueVG") <= narrow
    assert kinds("SparklesDialogueCC") > narrow


# --- benchmarks


def test_bison_reads_it_and_positions_of_the_answer_are_balanced_per_kind(world_on_disk: Path) -> None:
    items = benchmark(world_on_disk, Bison, "BISON").items()
    labels = Counter((item.kind, item.label) for item in items)
    assert labels == {(kind, f"IMAGE#{n}"): 9 for kind in BISON_KINDS for n in (1, 2)}
    for item in items:
        first, second = (load_image(image) for image in item.images)
        assert first.tobytes() != second.tobytes()


def test_nlvr2_reads_it_and_labels_are_balanced_per_type(world_on_disk: Path) -> None:
    items = benchmark(world_on_disk, NLVR2, "NLVR2").items()
    labels = Counter((item.kind, item.label) for item in items)
    assert labels == {(kind, label): 4 for kind in STATEMENTS for label in ("TRUE", "FALSE")}


def test_nlvr2_statements_are_labelled_with_their_truth(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    oracle: Callable[[str, tuple[Scene, Scene]], tuple[str, str, bool]],
) -> None:
    drawn: dict[str, Scene] = {}
    monkeypatch.setattr(
        dataset, "_save", lambda folder, image_id, scene: drawn.update({str(image_id): scene})
    )
    root = ensure(tmp_path / "scenes", sizes=replace(TINY, benchmark_items=36))
    path = root / "evaluation/NLVR2/annotations/sparkles_evaluation_nlvr2_annotations.json"
    for record in json.loads(path.read_text()):
        pair = record["identifier"].rpartition("-")[0]
        kind, _, truth = oracle(record["sentence"], (drawn[f"{pair}-img0"], drawn[f"{pair}-img1"]))
        assert (record["kind"], record["label"]) == (kind, str(truth))


def test_sparkles_eval_reads_it_and_its_reference_answers_are_rated_ten(world_on_disk: Path) -> None:
    evaluation = benchmark(world_on_disk, SparklesEval, "SparklesEval")
    shown = Counter(tuple(len(q.images) for q in item.questions) for item in evaluation.items())
    assert shown == {(2, 1): 24, (3, 1): 24, (2, 2): 24}
    for verdict in RubricJudge().judge(read_dialogues(evaluation.annotations)):
        assert verdict.scores is not None, verdict.unscored_reason
        assert {score for turn in verdict.scores.values() for score in turn.values()} == {10.0}


# --- writing


def test_what_is_there_already_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ensure(tmp_path / "scenes", sizes=TINY)
    monkeypatch.setattr(dataset, "write", lambda *_, **__: pytest.fail("written again"))
    assert ensure(str(root), sizes=TINY) == root


def test_another_seed_or_size_replaces_what_is_there(tmp_path: Path) -> None:
    root = ensure(tmp_path / "scenes", seed=1, sizes=TINY)
    assert files(ensure(root, seed=2, sizes=TINY)) == files(ensure(tmp_path / "other", seed=2, sizes=TINY))


def test_an_interrupted_writing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures_left = iter(range(10))

    def interrupted(scene: Scene) -> PIL.Image.Image:
        if next(pictures_left, None) is None:
            raise KeyboardInterrupt
        return render(scene)

    monkeypatch.setattr(dataset, "render", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path / "scenes", sizes=TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writing_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(ensure(tmp_path / "scenes", seed=1, sizes=TINY))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path / "scenes", seed=2, sizes=TINY)
    assert files(tmp_path / "scenes") == before
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"was not written by the scenes world; choose another data"):
        ensure(tmp_path, sizes=TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "scenes").mkdir()
    assert (ensure(tmp_path / "scenes", sizes=TINY) / "scenes.json").is_file()
