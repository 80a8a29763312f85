"""A sweep does what is missing, once, and goes on where it was stopped."""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from sparkles.config import CONFIG_DIR
from sparkles.tables import runs as runs_module
from sparkles.tables.launching import Settings, job_overrides, run_missing
from sparkles.tables.rendering import write_files
from sparkles.tables.results import read_results
from sparkles.tables.runs import CHECKPOINT, RowRun, Store, wanted_runs, write_record
from sparkles.tables.spec import TableError, TableSpec
from sparkles.types import InputError
from tests.tables.conftest import find_runs
from tests.tables.stub import BROKEN, calls_of

ROOT = Path(__file__).resolve().parents[2]
MakeSpec = Callable[..., TableSpec]
ROWS: dict[str, list[str]] = {"one": [], "two": ["data.steps=2"]}


@pytest.fixture(autouse=True)
def quick(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "CONFIG_DIR", small_config)


def sweep(spec: TableSpec, store: Path, **settings: object) -> tuple[list[RowRun], str]:
    """Run a table to its end: its runs, and what was said meanwhile."""
    said = StringIO()
    run_missing(
        spec, Store(store), Settings(**{"launcher": "basic", **settings}), Console(file=said, width=200)
    )
    return find_runs(spec, store), said.getvalue()


def states(runs: list[RowRun]) -> dict[str, str]:
    return {f"{run.row.name}{run.seed}": run.state for run in runs}


def test_every_row_runs_with_every_seed_once(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(ROWS, seeds=(0, 1))
    runs, said = sweep(spec, tmp_path)
    assert states(runs) == dict.fromkeys(["one0", "one1", "two0", "two1"], "finished")
    assert "[4/4] two, seed 1: finished in" in said
    again, said = sweep(spec, tmp_path)
    assert again == runs
    assert said == ""
    assert [len(calls_of(run.run_dir)) for run in runs] == [1, 1, 1, 1]
    assert [calls_of(run.run_dir)[0]["seed"] for run in runs] == [0, 1, 0, 1]


def test_what_a_run_prints_goes_into_its_log(
    make_spec: MakeSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [run, _], said = sweep(make_spec(ROWS), tmp_path)
    assert run.log is not None
    assert "hard at work" in run.log.read_text()
    assert "hard at work" not in said + "".join(capsys.readouterr())


def test_a_run_folder_is_one_of_hydra(make_spec: MakeSpec, tmp_path: Path) -> None:
    [run], _ = sweep(make_spec({"one": []}), tmp_path)
    assert "seed=0" in (run.run_dir / ".hydra/overrides.yaml").read_text()


@pytest.mark.parametrize(
    ("steps", "logged"), [(BROKEN, "thirteen steps bring bad luck\n"), (BROKEN + 1, "RuntimeError: a bug\n")]
)
def test_a_failed_row_has_its_log_and_stops_no_other(
    make_spec: MakeSpec, tmp_path: Path, steps: int, logged: str
) -> None:
    spec = make_spec({"broken": [f"data.steps={steps}"], **ROWS})
    runs, said = sweep(spec, tmp_path)
    assert states(runs) == {"broken0": "failed", "one0": "finished", "two0": "finished"}
    assert runs[0].log is not None
    assert runs[0].log.read_text().endswith(logged)
    assert ("Traceback" in runs[0].log.read_text()) == (steps != BROKEN)
    assert str(runs[0].log) in said
    sweep(spec, tmp_path)
    assert [len(calls_of(run.run_dir)) for run in runs] == [2, 1, 1]


def test_a_changed_row_runs_again_alone(make_spec: MakeSpec, tmp_path: Path) -> None:
    before, _ = sweep(make_spec(ROWS), tmp_path)
    after, _ = sweep(make_spec({**ROWS, "two": ["data.steps=3"]}), tmp_path)
    assert before[0] == after[0]
    assert before[1].run_dir != after[1].run_dir
    assert len(calls_of(before[0].run_dir)) == 1


def test_the_same_row_in_another_table_is_the_same_run(make_spec: MakeSpec, tmp_path: Path) -> None:
    [one, _], _ = sweep(make_spec(ROWS), tmp_path)
    [other, twin], _ = sweep(make_spec({"renamed": [], "twin": []}, name="other"), tmp_path)
    assert one.run_dir == other.run_dir == twin.run_dir
    assert len(calls_of(one.run_dir)) == 1


def test_weights_are_trained_once_and_measured_twice(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec({"plain": [], "blanked": ["eval.control=blank"]})
    [plain, blanked], _ = sweep(spec, tmp_path)
    assert [call["fit"] for call in calls_of(plain.run_dir)] == [True]
    assert calls_of(blanked.run_dir) == [
        {"fit": False, "checkpoint": str(plain.run_dir / CHECKPOINT), "resume_from": None, "seed": 0}
    ]


def test_another_measurement_takes_answers_and_training_log_along(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    [small], _ = sweep(make_spec({"one": []}), tmp_path)
    log = Path("logs/version_0/metrics.csv")
    (small.run_dir / log).parent.mkdir(parents=True)
    (small.run_dir / log).write_text("step,train/loss\n0,1.5\n")
    (small.run_dir / "predictions/bison.jsonl").write_text("an answer\n")
    [large], _ = sweep(make_spec({"one": []}, num=600), tmp_path)
    assert large.run_dir != small.run_dir
    assert (large.run_dir / "predictions/bison.jsonl").read_text() == "an answer\n"
    assert (large.run_dir / log).read_text() == (small.run_dir / log).read_text()


@pytest.mark.parametrize("whole", [True, False])
def test_a_killed_run_goes_on_from_its_checkpoint_if_that_is_whole(
    make_spec: MakeSpec, tmp_path: Path, whole: bool
) -> None:
    spec = make_spec({"one": []})
    [run] = find_runs(spec, tmp_path)
    checkpoint = run.run_dir / CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    with zipfile.ZipFile(checkpoint, "w") as file:
        file.writestr("weights", "0" * 100)
    if not whole:
        checkpoint.write_bytes(checkpoint.read_bytes()[:60])
    sweep(spec, tmp_path)
    assert [call["resume_from"] for call in calls_of(run.run_dir)] == [str(checkpoint) if whole else None]


def test_a_run_that_another_sweep_is_at_is_left_to_that(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec, store = make_spec(ROWS), Store(tmp_path)
    wanted = wanted_runs(spec, store.contents)
    busy, free = store.place(wanted)
    busy.run_dir.mkdir(parents=True)
    lock = FileLock(busy.run_dir / "row.lock", thread_local=False)
    lock.acquire()

    def end_the_other_sweep() -> None:
        while not (free.run_dir / "metrics.json").is_file():
            time.sleep(0.01)
        (busy.run_dir / "metrics.json").write_text("{}")
        write_record(busy.run_dir, wanted[0].identity, state="finished", seconds=1)
        lock.release()

    other = threading.Thread(target=end_the_other_sweep)
    other.start()
    runs, _ = sweep(spec, tmp_path)
    other.join()
    assert states(runs) == {"one0": "finished", "two0": "finished"}
    assert (calls_of(busy.run_dir), len(calls_of(free.run_dir))) == ([], 1)


def test_two_sweeps_at_once_do_nothing_twice(make_spec: MakeSpec, small_config: Path, tmp_path: Path) -> None:
    spec = make_spec(ROWS, seeds=(0, 1, 2))
    sweeps = [start_sweep(spec, tmp_path, small_config) for _ in range(2)]
    assert [one.wait() for one in sweeps] == [0, 0]
    runs = find_runs(spec, tmp_path)
    assert set(states(runs).values()) == {"finished"}
    assert [len(calls_of(run.run_dir)) for run in runs] == [1] * 6


def test_several_processes_share_the_rows(make_spec: MakeSpec, tmp_path: Path) -> None:
    runs, said = sweep(make_spec(ROWS, seeds=(0, 1)), tmp_path, launcher="joblib", jobs=2)
    assert set(states(runs).values()) == {"finished"}
    assert "[4/4]" in said
    assert all("hard at work" in run.log.read_text() for run in runs if run.log)


CLUSTERS = {
    "submitit_local": ("hydra_submitit_launcher", "sparkles[cluster]", ["hydra.launcher.timeout_min=1"]),
    "ray": ("hydra_ray_launcher", "sparkles[ray]", ["+hydra.launcher.ray.init.num_cpus=1"]),
}
"""By launcher its plugin, what brings it, and what it is told."""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", CLUSTERS)
def test_a_cluster_runs_the_rows(make_spec: MakeSpec, tmp_path: Path, launcher: str) -> None:
    plugin, extra, overrides = CLUSTERS[launcher]
    pytest.importorskip(f"hydra_plugins.{plugin}", reason=f"needs {extra}")
    runs, _ = sweep(make_spec(ROWS), tmp_path, launcher=launcher, hydra=tuple(overrides))
    assert set(states(runs).values()) == {"finished"}


@pytest.mark.skipif(
    find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="sparkles[ray] is there"
)
def test_a_launcher_that_is_not_installed_is_told_with_what_brings_it(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match=r"(?s)launcher=ray: .*pip install 'sparkles\[ray\]' brings it"):
        sweep(make_spec(ROWS), tmp_path, launcher="ray")


def test_one_run_needs_no_other_process() -> None:
    assert Settings().resolved(1) == ("basic", 1)
    assert Settings(jobs=2).resolved(8) == ("joblib", 2)
    assert Settings(jobs=8).resolved(3) == ("joblib", 3)
    assert Settings(launcher="basic", jobs=2).resolved(8) == ("basic", 1)


def test_an_unknown_launcher_is_told_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match=r"launcher=joblob; did you mean joblib\? Expected auto, basic"):
        Settings(launcher="joblob")


def test_data_are_prepared_once(make_spec: MakeSpec, tmp_path: Path) -> None:
    made = tmp_path / "made.txt"
    command = ("timeit", "-n", "1", "-r", "1", f"open({str(made)!r}, 'a').write('made')")
    spec = make_spec(ROWS, prepare=(command,))
    _, said = sweep(spec, tmp_path)
    assert "making data: python -m timeit" in said
    sweep(make_spec(ROWS, seeds=(5,), prepare=(command,)), tmp_path)
    assert made.read_text() == "made"


def test_data_that_cannot_be_prepared_stop_the_table(make_spec: MakeSpec, tmp_path: Path) -> None:
    command = ("timeit", "1 / 0")
    with pytest.raises(TableError, match="python -m timeit 1 / 0 ended with exit code 1, see") as raised:
        sweep(make_spec(ROWS, prepare=(command,)), tmp_path)
    log = str(raised.value).partition("see ")[2].partition(";")[0]
    assert "ZeroDivisionError" in Path(log).read_text()


def test_rows_that_need_values_do_not_begin(make_spec: MakeSpec, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"values that nobody knows but you:\n  judge\.model="):
        sweep(make_spec({"judged": ["judge=llm"]}), tmp_path)


@pytest.mark.parametrize("logger", ["wandb", "csv"])
def test_a_tracked_run_is_named_after_its_row_in_the_group_of_its_table(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: str
) -> None:
    monkeypatch.setattr(runs_module, "CONFIG_DIR", CONFIG_DIR)
    spec = make_spec({"cc_only": [f"logger={logger}"]}, name="table4")
    [wanted] = wanted_runs(spec, Store(tmp_path).contents)
    overrides = job_overrides(spec, wanted, tmp_path / "run", None)
    told = {"logger.wandb.group=table4", "logger.wandb.name=cc_only"}
    assert told & set(overrides) == (told if logger == "wandb" else set())


# --- killed ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_killed_twice_is_the_unbroken_table(
    make_spec: MakeSpec,
    tiny_run: list[str],
    tiny_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two rows of the nano model; the sweep and all its processes are killed in a training and at an evaluation."""
    monkeypatch.setattr(runs_module, "CONFIG_DIR", CONFIG_DIR)
    row = [
        *tiny_run,
        f"data_root={tiny_world}",
        "data.steps=30",
        "callbacks.checkpoint.every_n_train_steps=3",
    ]
    spec = replace(
        make_spec({"one": row, "two": [*row, "module.optimizer.lr=0.01"]}, num=4),
        task="sparkles.launch.launch",
    )

    def killed_when(happened: Callable[[Path], bool]) -> None:
        process = start_sweep(spec, tmp_path / "killed", CONFIG_DIR)
        while not any(happened(run.run_dir) for run in runs):
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.02)
        time.sleep(random.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    runs = find_runs(spec, tmp_path / "killed")
    killed_when(lambda run_dir: (run_dir / CHECKPOINT).is_file())
    assert {run.state for run in find_runs(spec, tmp_path / "killed")} == {"missing"}
    killed_when(lambda run_dir: (run_dir / "predictions").is_dir())
    assert "finished" not in {find_runs(spec, tmp_path / "killed")[1].state}
    resumed, _ = sweep(spec, tmp_path / "killed")
    unbroken, _ = sweep(spec, tmp_path / "unbroken")
    assert set(states(resumed).values()) == {"finished"}
    tables = []
    for runs in (resumed, unbroken):
        write_files(read_results(spec, runs), tmp_path / "table")
        tables.append((tmp_path / "table/table.csv").read_text())
    assert tables[0] == tables[1]
    for one, other in zip(resumed, unbroken, strict=True):
        assert (one.run_dir / "metrics.json").read_text() == (other.run_dir / "metrics.json").read_text()


def start_sweep(spec: TableSpec, store: Path, config: Path) -> subprocess.Popen[bytes]:
    """Run a table in a process of its own, with its own group."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((spec, store, config)))
    process.stdin.close()
    return process


if __name__ == "__main__":
    asked, folder, runs_module.CONFIG_DIR = pickle.load(sys.stdin.buffer)
    sweep(asked, folder)
