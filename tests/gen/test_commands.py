"""`python -m sparkles.gen` on data sets that exist, from files to files."""

import json
import shutil
from pathlib import Path

import pytest

from sparkles.config import call
from sparkles.data.annotations import read_dialogues, read_samples, write_dialogues
from sparkles.gen.commands import COMMANDS, SOURCES, convert, filter, look_for_leaks, pairs, stats
from sparkles.prompt_format import IMAGE_TAG, image_reference
from sparkles.types import Dialogue, Image, InputError, Message


def dialogue(question: str, image_id: int, answer: str = "Yes, of course.") -> Dialogue:
    image = Image(image_id=image_id, caption="A quiet harbour at dusk.")
    content = question.replace("{}", image_reference(image_id))
    return Dialogue(
        messages=(
            Message(role="user", content=content, images=(image,)),
            Message(role="assistant", content=answer),
        )
    )


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """BISON with picture 500 of COCO, SparklesEval with picture 20 of Visual Genome, and the map between them."""
    folder = tmp_path / "evaluation"
    for name in ("BISON", "SparklesEval"):
        (folder / name / "annotations").mkdir(parents=True)
    bison = [{"image_candidates": [{"image_id": 500}, {"image_id": 501}]}]
    (folder / "BISON" / "annotations" / "bison.json").write_text(json.dumps(bison))
    write_dialogues(folder / "SparklesEval" / "annotations" / "eval.json", [dialogue("Is {} odd?", 20)])
    image_data = [
        {"image_id": 10, "coco_id": 500},
        {"image_id": 20, "coco_id": 600},
        {"image_id": 30, "coco_id": None},
    ]
    (tmp_path / "image_data.json").write_text(json.dumps(image_data))
    return folder


def test_filter_keeps_the_rest_and_says_why(evaluation: Path, tmp_path: Path) -> None:
    dialogues = [
        dialogue("Tell a story about {}.", 30),
        dialogue("Tell a story about {}.", 31),
        dialogue("Is {} in BISON?", 10),
        dialogue("Does {} stand in SparklesEval as well?", 20),
        dialogue("Write a song about {} and a quiet harbour at dusk.", 32),
    ]
    write_dialogues(tmp_path / "mine.json", dialogues)
    out = tmp_path / "out"
    filter(
        path=str(tmp_path / "mine.json"),
        out=str(out),
        evaluation=str(evaluation),
        ids="vg",
        image_data=str(tmp_path / "image_data.json"),
    )
    assert [one.images[0].image_id for one in read_dialogues(out / "mine.json")] == [30]
    removed = [json.loads(line) for line in (out / "removed.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["record"], one["filter"]) for one in removed] == [
        (1, "near_duplicate"),
        (2, "leakage"),
        (3, "leakage"),
        (4, "gives_away"),
    ]
    assert removed[1]["reason"] == "image 10 is in BISON: coco id 500"
    assert set(json.loads((out / "leakage.json").read_text(encoding="utf-8"))["found"]) == {"10", "20"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| leakage | 2 removed |" in card
    assert "| BISON | id | 1 |" in card


def test_filters_can_be_left_out(tmp_path: Path) -> None:
    write_dialogues(
        tmp_path / "mine.json", [dialogue("Tell a story about {}.", number) for number in range(3)]
    )
    filter(path=str(tmp_path / "mine.json"), out=str(tmp_path / "out"), rouge=None, gives_away=False)
    assert len(read_dialogues(tmp_path / "out" / "mine.json")) == 3


RECORDS: dict[str, dict[str, object]] = {
    "llava_detail": {
        "id": "000000000",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A bird."},
        ],
    },
    "llava_reasoning": {
        "id": "000000000",
        "conversations": [{"from": "human", "value": "Why?\n<image>"}, {"from": "gpt", "value": "Rain."}],
    },
    "svit": {
        "conversations": [
            {"content": [{"from": "user", "value": "What is it?"}, {"from": "gpt", "value": "A bird."}]}
        ]
    },
    "cc_sbu_align": {"caption": "A bird."},
}


@pytest.mark.parametrize("source", SOURCES)
def test_published_data_become_a_training_file_of_the_original(
    source: str, evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = {
        "llava_detail": (500, 777),
        "llava_reasoning": (600, 777),
        "svit": (10, 30),
        "cc_sbu_align": (500, 777),
    }[source]
    records = [
        RECORDS[source]
        | (
            {"id": f"{number:012d}", "image": f"{number:012d}.jpg"}
            if "llava" in source
            else {"image_id": number}
        )
        for number in ids
    ]
    path, out = tmp_path / "published.json", tmp_path / "out" / "training.json"
    path.write_text(json.dumps(records))
    options = [f"evaluation={evaluation}", f"image_data={tmp_path / 'image_data.json'}"]
    call("convert", convert, [f"source={source}", f"path={path}", f"out={out}", *options])
    samples = read_samples(out)
    clean = [image_id for image_id in ids if source == "cc_sbu_align" or image_id in (777, 30)]
    assert [
        int(sample.images[0].image_id) for sample in samples
    ] == clean  # Conceptual Captions has ids of its own
    assert all(sample.prompt.messages[0].content.count(IMAGE_TAG) == 1 for sample in samples)
    assert f"{len(ids) - len(clean)} samples show pictures of evaluation sets" in capsys.readouterr().out
    card = (tmp_path / "out" / "training.md").read_text(encoding="utf-8")
    assert "| file | published.json |" in card
    assert f"| leakage | {len(ids) - len(clean)} samples removed |" in card
    assert f"| samples | {len(clean)} |" in card
    assert "## Files\n\ntraining.json\n" in card
    assert "Not recorded" not in card
    assert ("| BISON | not compared | 0 |" if source == "cc_sbu_align" else "| BISON | id |") in card


def test_records_that_cannot_be_read_stop_a_conversion_unless_they_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "filter_cap.json", tmp_path / "out.json"
    path.write_text(json.dumps([{"image_id": 1}, {"image_id": 2, "caption": "A bird."}]))
    with pytest.raises(InputError, match=r"record 0: no 'caption'.*\nskip_bad=true leaves out"):
        convert(source="cc_sbu_align", path=str(path), out=str(out))
    assert not out.exists()
    convert(source="cc_sbu_align", path=str(path), out=str(out), skip_bad=True)
    assert "1 samples of 2 records; 1 records could not be read" in capsys.readouterr().out
    assert len(read_samples(out)) == 1


def test_a_folder_without_evaluation_sets_is_refused(tmp_path: Path) -> None:
    write_dialogues(tmp_path / "mine.json", [dialogue("Is {} odd?", 1)])
    with pytest.raises(InputError, match="no folder BISON, NLVR2, SparklesEval in it"):
        filter(path=str(tmp_path / "mine.json"), out=str(tmp_path / "out"), evaluation=str(tmp_path))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"evaluation=.*nowhere: no such folder; expected one with BISON, NLVR2"
    ):
        look_for_leaks([], evaluation=tmp_path / "nowhere")


def test_stats_count_draw_and_print(
    tiny_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_world / "SparklesDialogueVG" / "annotations" / "SparklesDialogueVG.json"
    shutil.copy(path, tmp_path / "set.json")
    options = [
        f"path={tmp_path / 'set.json'}",
        f"out={tmp_path / 'out'}",
        "formats=png",
        "page=false",
        "verbs=rules",
    ]
    call("stats", stats, [*options, f"json={tmp_path / 'numbers.json'}"])
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        "answer_words.png",
        "lengths.png",
        "root_verbs.png",
        "root_verbs_by_images.png",
    ]
    [numbers] = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert (numbers["name"], numbers["dialogues"], numbers["verbs"]) == (
        "set",
        len(read_dialogues(path)),
        "rules",
    )


def test_pairs_shows_where_finder_and_people_differ(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.csv").write_text(
        "question,verb,noun\nTell a story.,tell,story\nDescribe it.,describe,it\n"
    )
    pairs(str(tmp_path / "mine.csv"), verbs="rules")
    printed = capsys.readouterr().out
    assert "rules: 1 of 2 questions as people have them" in " ".join(printed.split())
    assert "describe it" in printed


def test_each_command_has_a_help_text_that_names_its_settings() -> None:
    for task in COMMANDS:
        assert task.__doc__
        for name in task.__annotations__.keys() - {"return", "verbs"}:
            assert f"{name}=" in task.__doc__, f"{task.__name__}: {name}"
