"""The command as a whole: what it writes, how it ends, and that its data can be trained on."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.data.annotations import read_dialogues, read_samples
from sparkles.gen.__main__ import make
from sparkles.gen.parsing import Reason
from tests.gen.scripted import written
from tests.scripted_server import Call, Reply, ScriptedServer, starter

Run = Callable[..., None]


@pytest.fixture
def run(run_main: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-scripted-0123456789abcdef")
    return lambda *arguments: run_main(make, f"run_dir={tmp_path}/run", *arguments)


@pytest.fixture
def sound() -> Iterator[ScriptedServer]:
    with ScriptedServer(lambda call: Reply(text=written(call.question))) as server:
        yield server


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text(
        "image_id,caption\n" + "".join(f"{number},picture {number}\n" for number in range(101, 221))
    )
    return path


def endpoint(server: ScriptedServer, captions: Path) -> list[str]:
    return [
        "gen.model=scripted",
        f"gen.source.path={captions}",
        f"gen.writer.client.base_url={server.base_url}",
        "+gen.writer.client.prices={scripted: {_target_: sparkles.llm_client.Price, input: 1.0, output: 10.0}}",
    ]


def test_scenes_need_no_network_and_can_be_trained_on(run: Run, tmp_path: Path) -> None:
    run("gen=scenes", "gen.num_dialogues=6", "gen.recipe.candidates.images.num=24")
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} >= {
        "annotations", "images", "config.yaml", "ledger.json", "rejects.jsonl", "view.html", "README.md",
    }  # fmt: skip
    files = {path.name for path in (folder / "annotations").iterdir()}
    name = "SparklesDialogueScenes"
    turns = ("turn1_2img", "turn1_3img", "turn2_3img", "turn2_4img")
    assert files == {f"{name}.json", *(f"{name}_{turn}.json" for turn in turns)}
    assert len(read_dialogues(folder / "annotations" / f"{name}.json")) == 6
    assert len(read_samples(folder / "annotations" / f"{name}_turn2_4img.json")) == 3

    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose(
            "train",
            [
                "data/subset@data.subsets=[generated]",
                f"+generated={folder}",
                "data/subset@data.val_subsets=[]",
            ],
        )
    datamodule = instantiate(cfg.data, prepare=None, steps=1, _convert_="all")
    datamodule.setup("fit")
    assert len(next(iter(datamodule.train_dataloader()))["input_ids"]) == 16


def test_a_run_over_an_endpoint_leaves_ledger_card_and_files(
    run: Run, sound: ScriptedServer, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("gen=cc", "gen.num_dialogues=6", *endpoint(sound, captions))
    folder = tmp_path / "run"
    ledger = json.loads((folder / "ledger.json").read_text())
    assert (ledger["kept"], ledger["calls"], ledger["dollars"]) == (6, 2, pytest.approx(0.0004))
    assert "SparklesDialogueCC: 6 of 6 dialogues from 2 calls" in capsys.readouterr().out.replace("\n", " ")
    assert len(list((folder / "annotations").glob("SparklesDialogueCC_turn?_?img.json"))) == 6
    card = (folder / "README.md").read_text()
    assert ledger["prompt_sha256"] in card
    assert str(captions) in card
    assert "| gives_away | _target_: sparkles.gen.filters.GivesAway |" in card
    assert "sk-scripted" not in "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_pictures_of_evaluation_sets_are_left_out_before_anything_is_paid(
    run: Run, sound: ScriptedServer, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation" / "BISON" / "annotations").mkdir(parents=True)
    bison = [{"image_candidates": [{"image_id": 500}, {"image_id": 501}]}]
    (tmp_path / "evaluation" / "BISON" / "annotations" / "bison.json").write_text(json.dumps(bison))
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 107, "coco_id": 501}]))
    leakage = [
        f"gen.leakage.evaluation={tmp_path}/evaluation",
        f"gen.leakage.image_data={tmp_path}/image_data.json",
    ]
    run("gen=vg", "gen.num_dialogues=29", *leakage, *endpoint(sound, captions))  # of at most 119 / 4
    asked = "".join(call.question for call in sound.calls)
    assert '"image_id": 106' in asked or '"image_id": "106"' in asked
    assert "107" not in asked
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "left out before anything is asked: 1 of 120 pictures are in evaluation sets (BISON: 1, id)"
        in printed
    )
    report = json.loads((tmp_path / "run" / "leakage.json").read_text())
    assert report["found"] == {"107": {"BISON": "coco id 501"}}
    assert "| 107 | BISON: coco id 501 |" in (tmp_path / "run" / "README.md").read_text()


def make_in_child(base_url: str, folder: Path) -> None:
    """What a child process does, started as by a shell in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OPENAI_API_KEY"] = "sk-scripted-0123456789abcdef"
    sys.argv = [
        "gen", "gen=vg", "gen.num_dialogues=30", "gen.model=scripted", f"run_dir={folder}/run",
        f"gen.source.path={folder}/captions.csv", f"gen.writer.client.base_url={base_url}",
    ]  # fmt: skip
    make()


@pytest.fixture(scope="module")
def start() -> Callable[[ScriptedServer, Path], BaseProcess]:
    return starter(make_in_child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_right_ledger_and_the_same_command_goes_on(
    start: Callable[[ScriptedServer, Path], BaseProcess], captions: Path, tmp_path: Path, number: int
) -> None:
    waiting = threading.Event()

    def script(call: Call) -> Reply:
        if call.number == 18:
            waiting.set()
        return Reply(text=written(call.question), delay=0.5 if call.number > 10 else 0.0)

    ledger = tmp_path / "run" / "ledger.json"
    with ScriptedServer(script) as server:
        child = start(server, captions.parent)
        assert waiting.wait(60)
        os.kill(child.pid or 0, number)
        child.join(60)
        assert child.exitcode == 1
        stopped = json.loads(ledger.read_text())
        assert (stopped["interrupted"], stopped["wanted"]) == (True, 30)
        assert stopped["paid_replies"] == server.answered.total() == 18
        assert (stopped["lost"], stopped["input_tokens"]) == (0, 1_800)
        assert stopped["kept"] <= stopped["calls"] <= 18
        assert not (tmp_path / "run" / "annotations").exists()
        server.script = lambda call: Reply(text=written(call.question))
        child = start(server, captions.parent)
        child.join(60)
        assert child.exitcode == 0
        assert set(server.answered.values()) == {1}
    finished = json.loads(ledger.read_text())
    assert (finished["interrupted"], finished["kept"], finished["paid_replies"]) == (False, 30, 30)


def test_a_model_that_talks_nonsense_ends_the_run_in_order(
    run: Run, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nonsense(call: Call) -> Reply:
        return Reply(text=f"the [[ of {{ {call.number}")

    with ScriptedServer(nonsense) as server, pytest.raises(SystemExit) as exit_:
        run("gen=vg", "gen.num_dialogues=4", *endpoint(server, captions))
    assert exit_.value.code == 1
    printed = capsys.readouterr()
    assert f"4 rejected: 4 {Reason.NO_DIALOGUE}" in " ".join(printed.out.split())
    assert "no dialogue was kept: all 4 replies were rejected" in printed.err
    assert "Traceback" not in printed.err
    rejects = (tmp_path / "run" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in rejects] == [Reason.NO_DIALOGUE] * 4
    assert json.loads((tmp_path / "run" / "ledger.json").read_text())["rejected"] == {Reason.NO_DIALOGUE: 4}


def test_a_dry_run_prints_the_cost_and_writes_nothing(
    run: Run, sound: ScriptedServer, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    run("gen=vg", "gen.num_dialogues=4", "dry_run=true", *endpoint(sound, captions))
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "4 dialogues take 4 calls if all are kept, at most 12" in printed
    assert "cost about $" in printed
    assert sound.calls == []
    assert [path.name for path in tmp_path.iterdir()] == ["captions.csv"]


def test_a_text_that_no_training_file_can_hold_is_rejected(
    run: Run, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def separator(call: Call) -> Reply:
        text = written(call.question)
        return Reply(text=text.replace("are alike", "###Human: yes") if call.number == 1 else text)

    with ScriptedServer(separator) as server:
        run("gen=vg", "gen.num_dialogues=2", "gen.writer.client.concurrency=1", *endpoint(server, captions))
    assert "1 unwritable" in capsys.readouterr().out


def test_no_verb_noun_pair_occurs_twice_in_an_evaluation_set(
    run: Run, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nouns = ["boats", "hats", "dogs", "trees", "roads", "lamps"]

    def varied(call: Call) -> Reply:
        text = written(call.question)
        return Reply(text=text.replace("Compare ", f"Compare the {nouns[call.number // 2 % 6]} in "))

    with ScriptedServer(varied) as server:
        run("gen=eval", "gen.num_dialogues=3", "gen.writer.client.concurrency=1", *endpoint(server, captions))
    dialogues = read_dialogues(tmp_path / "run" / "annotations" / "SparklesEval.json")
    assert [one.dialogue_id for one in dialogues] == ["1", "2", "3"]
    assert sorted(len(one.images) for one in dialogues) == [3, 4, 4]
    assert len({one.messages[0].content.split()[2] for one in dialogues}) == 3
    assert "unique_pair" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gen=vg", "gen.model=x", "gen.source.path=nowhere.csv"], "nowhere.csv: no such file"),
        (["gen=vg", "gen.source.path=nowhere.csv"], "gen.model: no value yet"),
        (["gen=scenes", "gen.recipe.replies=[[[9]]]"], "cannot be chosen from 4 candidates"),
        (
            ["gen=scenes", "gen.num_dialogues=4", "gen.recipe.candidates.images.num=8"],
            "2 of 4 dialogues: the candidates are used up; give a source with more captions",
        ),
    ],
)
def test_mistakes_end_the_command_with_a_message(
    run: Run, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(*overrides)
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
