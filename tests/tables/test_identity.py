"""A run is another one when, and only when, something changes that its results depend on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.tables import identity as module
from sparkles.tables.identity import Contents, code_hash, identify

Identify = Callable[..., module.Identity]


@pytest.mark.parametrize(
    "override",
    [
        "name=Other",
        "run_dir=elsewhere",
        "data_root=elsewhere",
        "logger=none",
        "budget_usd=3",
        "resume_from=some.ckpt",
        "callbacks=[checkpoint,benchmarks]",
        "callbacks.checkpoint.every_n_train_steps=7",
        "callbacks.benchmarks.batch_size=3",
        "+callbacks.benchmarks.progress=false",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "data.num_workers=2",
        "data.cache_images=false",
        "data.feature_cache=elsewhere",
    ],
)
def test_what_changes_no_result_does_not_matter(identity: Identify, override: str) -> None:
    assert identity(override) == identity()


@pytest.mark.parametrize(
    "override",
    [
        "benchmark.num=600",
        "benchmark.seed=1",
        "benchmark=[bison,nlvr2]",
        "eval.control=blank",
        "eval.mode=likelihood",
        "judge=none",
        "callbacks.benchmarks.generation.max_new_tokens=24",
        "+callbacks.benchmarks.original_answer_text=true",
    ],
)
def test_how_a_model_is_measured_leaves_its_weights_what_they_are(identity: Identify, override: str) -> None:
    changed, plain = identity(override), identity()
    assert changed.results != plain.results
    assert changed.weights == plain.weights


@pytest.mark.parametrize(
    "override",
    [
        "data.steps=201",
        "data.turns=sampled",
        "data.subsets.cc_turn1.ratio=0",
        "data.image_placement=sentence",
        "data.feature_cache=null",
        "data.prepare.seed=1",
        "module.optimizer.lr=0.01",
        "model.vision.depth=3",
        "trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=2",
        "checkpoint=null",
        "+callbacks.average={_target_: lightning.pytorch.callbacks.WeightAveraging}",
    ],
)
def test_what_is_trained_changes_both(identity: Identify, override: str) -> None:
    changed, plain = identity(override), identity()
    assert changed.weights != plain.weights
    assert changed.results != plain.results


def test_a_seed_and_the_making_of_data_are_part_of_what_is_trained(identity: Identify) -> None:
    runs = [identity(), identity(seed=1), identity(prepare=(("sparkles.gen", "seed=1"),))]
    assert len({run.weights for run in runs}) == len({run.results for run in runs}) == 3


def test_what_trains_nothing_does_not_depend_on_how_it_would(identity: Identify) -> None:
    plain = identity("experiment=minigpt4")
    assert identity("experiment=minigpt4", "data.steps=3", seed=5) == plain
    assert identity("experiment=minigpt4", "checkpoint=null").results != plain.results
    assert identity("experiment=minigpt4", "data.image_placement=sentence").results != plain.results


def test_an_endpoint_has_no_weights_of_ours(identity: Identify) -> None:
    asked = identity("+responder=openai", "responder.model=one")
    assert asked.trained == {}
    assert asked.results != identity("+responder=openai", "responder.model=other").results
    assert asked.results == identity("+responder=openai", "responder.model=one", "data.steps=3").results


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], dict[str, object]]:
    """A config of a run on files of a folder, which is made."""

    def config(name: str) -> dict[str, object]:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "a_turn1.json").write_text("[1]")
        (folder / "a_turn2.json").write_text("[2]")
        (folder / "images/1.png").write_bytes(b"picture")
        subset = {"annotations": f"{folder}/a_turn*.json", "images": f"{folder}/images", "ratio": 1}
        return {
            **{"fit": True, "seed": 0, "model": {}, "module": {}, "trainer": {}, "callbacks": {}},
            **{"benchmark": {"suite": {}}, "data": {"subsets": {"a": subset}}},
        }

    return config


def test_files_count_by_content_wherever_they_lie(
    files: Callable[[str], dict[str, object]], tmp_path: Path
) -> None:
    def found() -> str:
        return identify(config, Contents(tmp_path / "hashes.json")).weights

    config = files("moved")
    elsewhere = found()
    config = files("data")
    plain = found()
    assert plain == elsewhere
    (tmp_path / "data/a_turn2.json").write_text("[3]")
    assert found() not in (changed := {plain})
    (tmp_path / "data/a_turn2.json").write_text("[2]")
    assert found() == plain
    (tmp_path / "data/images/1.png").write_bytes(b"a larger picture")
    assert found() not in changed
    (tmp_path / "data/images/1.png").write_bytes(b"picture")
    (tmp_path / "data/images/2.png").touch()
    assert found() not in changed


def test_a_file_is_read_once_for_as_long_as_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights.bin").write_bytes(b"large")
    contents = Contents(tmp_path / "hashes.json")
    first = contents.of(tmp_path / "weights.bin")
    contents.save()
    monkeypatch.setattr(module, "file_hash", lambda path: pytest.fail(f"{path} was read again"))
    assert Contents(tmp_path / "hashes.json").of(tmp_path / "weights.bin") == first


def test_an_identity_is_written_and_read(identity: Identify) -> None:
    found = identity()
    record = json.loads(json.dumps({"trained": dict(found.trained), "measured": dict(found.measured)}))
    assert module.Identity.read(record) == found


# --- code -----------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Code of which `house.door.Door` uses `house.lock`, and `house.garden` is nobody's."""
    files = {
        "door.py": '"""A door."""\nfrom house import lock\n\n\nclass Door:\n    handle = lock.TURNS\n',
        "lock.py": "from .deep import key\n\nTURNS = 2\n",
        "deep/key.py": "TEETH = 5\n",
        "garden.py": "TREES = 3\n",
        "__init__.py": "",
        "prompts/knock.txt": "Knock.",
    }
    for name, text in files.items():
        (tmp_path / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "house" / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "matters"),
    [
        (
            "door.py",
            "# A comment.\nfrom house import lock\n\nclass Door:\n    '''Doc.'''\n    handle=lock.TURNS",
            False,
        ),
        ("door.py", "from house import lock\n\nclass Door:\n    handle = lock.TURNS + 1", True),
        ("lock.py", "from .deep import key\n\nTURNS = 3\n", True),
        ("deep/key.py", "TEETH = 6\n", True),
        ("garden.py", "TREES = 4\n", False),
        ("prompts/knock.txt", "Ring.", True),
    ],
)
def test_code_counts_where_it_is_used(package: Path, file: str, text: str, matters: bool) -> None:
    def found() -> str:
        for cached in (code_hash, module._read_module):
            cached.cache_clear()
        return code_hash(("house.door.Door",), package)

    before = found()
    (package / "house" / file).write_text(text)
    assert (found() != before) == matters


def test_code_that_only_shows_what_was_found_does_not_count(tmp_path: Path) -> None:
    for name in ("eval/run.py", "eval/report.py"):
        (tmp_path / "sparkles" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sparkles" / name).write_text("from sparkles.eval import report\n")
    before = code_hash(("sparkles.eval.run.evaluate",), tmp_path)
    (tmp_path / "sparkles/eval/report.py").write_text("COLOR = 'red'\n")
    code_hash.cache_clear()
    module._read_module.cache_clear()
    assert code_hash(("sparkles.eval.run.evaluate",), tmp_path) == before
