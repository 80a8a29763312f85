"""Runs what of a table is missing, with Hydra's launchers: in this process, in several, on a cluster.

`python train.py -m` hands a launcher the product of its lists; a table hands it the rows. Each run has its folder, its
lock (two sweeps never do the same run at once), its log, and says in `row.json` how it ended. What goes wrong in one
does not stop the others.
"""

import shutil
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from hydra.utils import get_method, instantiate
from joblib import cpu_count
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sparkles.config import TaskFunction, message, nearest, root_cause
from sparkles.eval.files import read_json, write_json
from sparkles.tables.identity import Identity
from sparkles.tables.leases import hold_gpu, visible_gpus
from sparkles.tables.runs import (
    CHECKPOINT,
    LOG,
    RECORD,
    RowRun,
    Store,
    Wanted,
    config_loader,
    state_of,
    wanted_runs,
    write_record,
)
from sparkles.tables.spec import TableError, TableSpec
from sparkles.types import InputError

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm", "ray")
_LOCK = "row.lock"
_LOOK_EVERY = 0.5  # seconds between two looks at how far the runs are


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How runs are launched."""

    launcher: str = "auto"
    """One of `LAUNCHERS`; auto: joblib where several runs are missing and there is more than one place for them."""
    jobs: int | None = None
    """Runs at once, for joblib; None for as many as there are GPUs, or else CPU cores."""
    gpu_memory: float = 4.0
    """GiB that a run needs of a GPU."""
    per_gpu: int = 1
    """Runs that may share a GPU."""
    hydra: tuple[str, ...] = ()
    """Overrides of Hydra itself, such as `hydra.launcher.partition=gpu`."""

    def __post_init__(self) -> None:
        if self.launcher not in ("auto", *LAUNCHERS):
            raise InputError(
                f"launcher={self.launcher}{nearest(self.launcher, LAUNCHERS)} Expected auto, {', '.join(LAUNCHERS)}"
            )

    def resolved(self, runs: int) -> tuple[str, int]:
        """Launcher and number of runs at once, for so many runs."""
        places = self.jobs or len(visible_gpus()) * self.per_gpu or cpu_count()
        places = min(places, runs)
        launcher = self.launcher if self.launcher != "auto" else "joblib" if places > 1 else "basic"
        return launcher, 1 if launcher == "basic" else places


class RunTask(TaskFunction):
    """What a launcher calls for each run.

    Args:
        task: the function that does the work, by its full name.
        identities: of the runs, by folder.
        told: what else `row.json` is to say, by folder.
        wait: for another sweep that is at the same run, instead of leaving it to that one.
    """

    def __init__(
        self,
        task: str,
        *,
        identities: Mapping[str, Identity],
        told: Mapping[str, Mapping[str, Any]],
        settings: Settings,
        wait: bool,
    ) -> None:
        self.task = task
        self.identities = identities
        self.told = told
        self.settings = settings
        self.wait = wait

    def __call__(self, cfg: DictConfig) -> None:
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        try:
            with FileLock(run_dir / _LOCK, timeout=-1 if self.wait else 0):
                if state_of(run_dir) != "finished":
                    self._run(cfg, run_dir)
        except Timeout:
            return

    def _run(self, cfg: DictConfig, run_dir: Path) -> None:
        identity, told = self.identities[run_dir.name], self.told[run_dir.name]
        write_record(run_dir, identity, **told, state="running")
        start = time.perf_counter()
        state, error = "finished", ""
        if cfg.get("fit") and _is_whole(run_dir / CHECKPOINT):
            cfg.resume_from = str(run_dir / CHECKPOINT)
        try:
            with _printing_into(run_dir / LOG):
                hold_gpu(self.settings.gpu_memory, per_gpu=self.settings.per_gpu)
                get_method(self.task)(cfg)
        except Exception as raised:
            state, error = "failed", message(root_cause(raised))
        seconds = round(time.perf_counter() - start, 1)
        write_record(run_dir, identity, **told, state=state, error=error, seconds=seconds)


@contextmanager
def _printing_into(path: Path) -> Iterator[None]:
    """What the run prints goes into its log; and what it raises, without a traceback if it is the user's mistake."""
    with path.open("a", buffering=1, encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except Exception as error:
            cause = root_cause(error)
            mistake = isinstance(cause, InputError | OSError)
            log.write(f"{message(cause)}\n" if mistake else traceback.format_exc())
            raise


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is there, and no crash cut it short: the end of a zip file is its directory."""
    return checkpoint.is_file() and zipfile.is_zipfile(checkpoint)


# --- the sweep ------------------------------------------------------------------------------------------------


def run_missing(spec: TableSpec, store: Store, settings: Settings, console: Console) -> list[Wanted]:
    """Run what is not finished, and return all runs of the table when the last has ended, well or not.

    Runs with the same weights wait for the one that trains them, and then measure those.

    Raises:
        InputError: a run cannot begin, as keys have no value; or data cannot be made.
    """
    wanted = wanted_runs(spec, store.contents)
    if prepare(spec, wanted, store, console):
        wanted = wanted_runs(spec, store.contents)  # which read what was made
    todo = _unfinished(wanted, store)
    if not todo:
        return wanted
    _check_values([one for one, _ in todo.values()])
    _make_data([one for one, _ in todo.values()])
    tried: set[Path] = set()
    wait = False
    with _progress(console) as progress, _Watch(progress, [run for _, run in todo.values()]):
        while todo := {key: pair for key, pair in _unfinished(wanted, store).items() if key not in tried}:
            weights = store.weights_of(one for one, _ in todo.values())
            wave = _wave(todo, weights)
            _launch(spec, wave, weights, settings, console, wait=wait)
            busy = {run_dir for run_dir in wave if _is_locked(run_dir)}
            tried |= wave.keys() - busy
            wait = busy == wave.keys()  # for another sweep, once there is nothing else to do
    return wanted


Todo = dict[Path, tuple[Wanted, RowRun]]


def _unfinished(wanted: Sequence[Wanted], store: Store) -> Todo:
    """By folder; rows that are the same run are in it once."""
    pairs = zip(wanted, store.place(wanted), strict=True)
    return {run.run_dir: (one, run) for one, run in pairs if run.state != "finished"}


def _wave(todo: Todo, weights: Mapping[str, Path]) -> Todo:
    """Runs that can begin: of those that need the same weights, the first is to train them."""
    training: set[str] = set()
    wave = {}
    for run_dir, (one, run) in todo.items():
        needed = one.identity.weights
        if not one.trains or needed in weights or needed not in training:
            wave[run_dir] = (one, run)
        if one.trains:
            training.add(needed)
    return wave


def _launch(
    spec: TableSpec,
    wave: Todo,
    weights: Mapping[str, Path],
    settings: Settings,
    console: Console,
    *,
    wait: bool,
) -> None:
    launcher, jobs = settings.resolved(len(wave))
    of_launcher = {
        "basic": [],
        "joblib": [f"hydra.launcher.n_jobs={jobs}", "hydra.launcher.batch_size=1"],
    }.get(launcher, [])
    task = RunTask(
        spec.task,
        identities={run_dir.name: one.identity for run_dir, (one, _) in wave.items()},
        told={
            run_dir.name: {"table": spec.name, "row": one.row.name, "seed": one.seed}
            for run_dir, (one, _) in wave.items()
        },
        settings=settings,
        wait=wait,
    )
    overrides = []
    for run_dir, (one, _) in wave.items():
        source = weights.get(one.identity.weights) if one.trains else None
        run_dir.mkdir(parents=True, exist_ok=True)
        if source is not None:
            _inherit(source, run_dir)
        overrides.append(job_overrides(spec, one, run_dir, source))
    with config_loader(spec.config) as loader:
        try:
            config = loader.load_configuration(
                spec.config,
                [
                    *(f"hydra/launcher={launcher}", *of_launcher, *settings.hydra),
                    *("hydra.hydra_logging.root.handlers=[]", "hydra.hydra_logging.root.level=WARNING"),
                    f"hydra.sweep.dir={quoted(next(iter(wave)).parent)}",
                ],
                RunMode.MULTIRUN,
            )
        except HydraException as error:
            raise TableError(f"launcher={launcher}: {error}{_EXTRA.get(launcher, '')}") from error
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
        plugin = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        try:
            plugin.launch(overrides, initial_job_idx=0)
        except Exception as error:  # such as a process that the system has killed
            console.print(f"{launcher} gave up: {error}", markup=False)


_EXTRA = {
    **dict.fromkeys(("submitit_local", "submitit_slurm"), "\npip install 'sparkles[cluster]' brings it"),
    "ray": "\npip install 'sparkles[ray]' brings it",
}


def job_overrides(spec: TableSpec, wanted: Wanted, run_dir: Path, source: Path | None) -> list[str]:
    """Everything that Hydra is told for one run.

    Args:
        source: a finished run with the same weights, which then are measured and not trained again.
    """
    overrides = [*wanted.overrides, f"run_dir={quoted(run_dir)}"]
    overrides += [f"hydra.sweep.dir={quoted(run_dir)}", "hydra.sweep.subdir=."]
    overrides += [f"hydra.job.name={Path(LOG).stem}", "hydra.job_logging.root.handlers=[file]"]
    if source is not None:
        overrides += ["fit=false", f"checkpoint={quoted(source / CHECKPOINT)}"]
    if wanted.tracked:
        overrides += [f"logger.wandb.group={spec.name}", f"logger.wandb.name={wanted.row.name}"]
    return overrides


def quoted(value: object) -> str:
    r"""A value as Hydra's overrides take it, whatever it holds.

    >>> quoted("runs/it's, so")
    "'runs/it\\'s, so'"
    """
    return "'" + str(value).replace("'", "\\'") + "'"


def _inherit(source: Path, run_dir: Path) -> None:
    """Give a run the training's log and the answers of another that has the same weights.

    It keeps those answers that were asked as it asks.
    """
    if not (run_dir / "logs").exists() and (source / "logs").is_dir():
        shutil.copytree(source / "logs", run_dir / "logs")
    for path in (source / "predictions").glob("*.jsonl"):
        copy = run_dir / "predictions" / path.name
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())


def _is_locked(run_dir: Path) -> bool:
    """Whether some process is at this run."""
    try:
        with FileLock(run_dir / _LOCK, timeout=0):
            return False
    except Timeout:
        return True


# --- before the first run -------------------------------------------------------------------------------------


def unprepared(runs: Sequence[Wanted], store: Store) -> list[tuple[str, ...]]:
    """The commands that have to make data first, each once."""
    commands = dict.fromkeys(command for one in runs for command in one.row.prepare)
    return [command for command in commands if not store.prepared(command).is_file()]


def prepare(spec: TableSpec, runs: Sequence[Wanted], store: Store, console: Console) -> bool:
    """Run the commands that make data for rows; whether there were any.

    Raises:
        TableError: one failed.
    """
    commands = unprepared(runs, store)
    for command in commands:
        mark = store.prepared(command)
        mark.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(mark.with_suffix(".lock")):
            if mark.is_file():  # another sweep was faster
                continue
            console.print(f"{spec.name}: making data: python -m {' '.join(command)}", markup=False)
            log = mark.with_suffix(".log")
            with log.open("ab") as file:
                done = subprocess.run([sys.executable, "-m", *command], stdout=file, stderr=file, check=False)
            if done.returncode:
                raise TableError(
                    f"python -m {' '.join(command)} ended with exit code {done.returncode}, see {log}; "
                    "once it runs, the same command goes on"
                )
            write_json(mark, {"command": list(command)})
    return bool(commands)


def _check_values(runs: Sequence[Wanted]) -> None:
    missing = sorted({key for one in runs for key in one.missing})
    if missing:
        lines = "\n  ".join(f"{key}=..." for key in missing)
        raise TableError(f"the rows need values that nobody knows but you:\n  {lines}")


def _make_data(runs: Sequence[Wanted]) -> None:
    """What the configs' own `prepare` make, before several runs would do it at once."""
    for node in {repr(node): node for one in runs for node in one.makings}.values():
        root = Path(node["root"])
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):
            instantiate({**node, "_partial_": False})


# --- progress -------------------------------------------------------------------------------------------------


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        TextColumn("{task.fields[left]}"),
    )
    # Runs in this process print into their logs, whatever stdout is for that long.
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
        yield progress


def _ended_since(run_dir: Path, began: float) -> dict[str, Any] | None:
    """What a run says of its end; None if it has not ended since then."""
    path = run_dir / RECORD
    if not path.is_file() or path.stat().st_mtime < began:
        return None
    record = read_json(path)
    return record if record["state"] in ("finished", "failed") else None


class _Watch:
    """Says in the background which runs have ended, and when the rest may have."""

    def __init__(self, progress: Progress, runs: Sequence[RowRun]) -> None:
        self.progress = progress
        self.waiting = {run.run_dir: run for run in runs}
        self.total = len(runs)
        self.began = time.time()
        self.bar = progress.add_task("runs", total=len(runs), left="")

    def __enter__(self) -> None:
        self._stop = Event()
        self._thread = Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _look_on(self) -> None:
        while not self._stop.wait(_LOOK_EVERY):
            self._look()

    def _look(self) -> None:
        for run_dir, run in list(self.waiting.items()):
            record = _ended_since(run_dir, self.began)
            if record is None:
                continue
            del self.waiting[run_dir]
            done = self.total - len(self.waiting)
            minutes = (time.time() - self.began) / done * len(self.waiting) / 60
            left = f"about {minutes:.0f} min left" if self.waiting else ""
            self.progress.update(self.bar, completed=done, left=left)
            how = "failed" if record["state"] == "failed" else "finished"
            told = (
                f"[{done}/{self.total}] {run.row.name}, seed {run.seed}: {how} in {record['seconds']:.0f} s"
            )
            self.progress.console.print(
                f"{told}; {left}" if left and not self.progress.console.is_terminal else told, markup=False
            )
            if how == "failed":
                first_line = str(record["error"]).partition("\n")[0]
                self.progress.console.print(f"    {first_line}\n    {run_dir / LOG}", markup=False)
