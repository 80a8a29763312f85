"""Run a table and show it: `python -m sparkles.tables table=table4`; see `table` below, or --help."""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from sparkles.config import call, dispatch, nearest
from sparkles.tables.dashboard import dashboard
from sparkles.tables.launching import Settings, run_missing, unprepared
from sparkles.tables.runs import STORE, RowRun, Store, Wanted, wanted_runs
from sparkles.tables.spec import TableError, TableSpec, read_table
from sparkles.types import InputError

_STOPPED = "\nstopped; what was finished is kept, and the same command goes on from there"
_INCOMPLETE = 1
"""Exit code where a cell is missing."""
_SET_HERE = {
    "seed": "seeds=[...]",
    "benchmark": "benchmarks=[...]",
    "benchmark.num": "num=...",
    "run_dir": "store=...",
}
"""Keys of `train.py` that are another's here."""


def run_table(
    table: str,
    *,
    size: str = "nano",
    num: int | Literal["all"] | None = None,
    seeds: Sequence[int] = (),
    rows: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    launcher: str = "auto",
    jobs: int | None = None,
    gpu_memory: float = 4.0,
    per_gpu: int = 1,
    out: Path | None = None,
    store: Path = STORE,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Run what is missing of a table, then print it, and write table.md, .tex, .csv, .json and .html.

      python -m sparkles.tables table=table4                        nano: minutes on two CPU cores
      python -m sparkles.tables table=table4 --dry-run              what would run, and what is there already
      python -m sparkles.tables table=table4 size=7b data_root=DIR weights_dir=DIR
      python -m sparkles.tables table=table3 rows=[sparkleschat,minigpt4] seeds=[0,1] num=600
      python -m sparkles.tables table=table4 data.steps=100         any override of train.py, for all rows
      python -m sparkles.tables table=table4 logger=wandb           a run for each row and seed, the table as group
      python -m sparkles.tables dashboard table=table4              the panels for them in W&B

    table         a file of conf/table/
    size          nano, or 7b
    num           items of each benchmark, or all; seeds, rows, benchmarks: some in place of those of the file
    launcher      basic: one run after another in this process. joblib: several processes. submitit_slurm,
                  submitit_local: pip install 'sparkles[cluster]'; ray: 'sparkles[ray]'. auto: joblib where it helps.
                  Their own settings: hydra.launcher.partition=...
    jobs          runs at once, for joblib: as many as there are GPUs, or else cores
    gpu_memory    GiB that a run needs of a GPU, which it then has to itself; per_gpu=2 lets two share one
    out           folder of the table: runs/tables/<table>-<size>
    store         where all runs of all tables lie, each in rows/<row>_seed<seed>_<hash>

    Finished runs are used again, by this and by other tables, for as long as nothing changes that they depend on:
    configuration, data, code, weights, seed. Whatever stops this command, the same command goes on where it stopped.
    The exit code is 1 where a cell is missing.
    """
    for override in overrides:
        if instead := _SET_HERE.get(key := override.partition("=")[0]):
            raise InputError(f"{key} is the table's to set; give {instead}")
    changes = {"seeds": list(seeds), "benchmarks": list(benchmarks)}
    spec = read_table(
        table,
        size,
        rows=rows,
        changes={key: value for key, value in changes.items() if value}
        | ({} if num is None else {"num": None if num == "all" else num}),
        overrides=[override for override in overrides if not _is_hydras(override)],
    )
    settings = Settings(
        launcher=launcher,
        jobs=jobs,
        gpu_memory=gpu_memory,
        per_gpu=per_gpu,
        hydra=tuple(filter(_is_hydras, overrides)),
    )
    # Not whatever stdout is later: runs in this process print into their logs.
    console = Console(file=sys.stdout)
    runs = Store(store)
    try:
        if dry_run:
            wanted = wanted_runs(spec, runs.contents)
            _show_plan(spec, wanted, runs.place(wanted), runs, settings, console)
            return
        wanted = run_missing(spec, runs, settings, console)
    except TableError as error:
        raise TableError(f"{error}{_own_keys_like(overrides)}") from error
    _show(spec, runs.place(wanted), Path(out or STORE / f"{table}-{size}"), console)


def _is_hydras(override: str) -> bool:
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def _own_keys_like(overrides: Sequence[str]) -> str:
    """What of this command the overrides may have been meant for."""
    own = inspect.signature(run_table).parameters
    close = {key: nearest(key, own) for key in (override.partition("=")[0] for override in overrides)}
    return "".join(
        f"\n{key!r} is no key of this command{advice}" for key, advice in close.items() if advice != "."
    )


def _show_plan(
    spec: TableSpec,
    wanted: Sequence[Wanted],
    placed: Sequence[RowRun],
    store: Store,
    settings: Settings,
    console: Console,
) -> None:
    """What would run where, and what is there already."""
    weights = store.weights_of(wanted)
    table = Table(title=f"{spec.title} ({spec.size})", caption=f"folders in {store.root / 'rows'}")
    for heading in ("row", "seed", "state", "to do", "folder"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "folder")
    for one, run in zip(wanted, placed, strict=True):
        if run.state == "finished":
            todo = ""
        elif not one.trains:
            todo = "measure"
        else:
            source = weights.get(one.identity.weights)
            todo = f"measure the weights of {source.name}" if source else "train, measure"
        table.add_row(one.row.label, str(one.seed), run.state, todo, str(run.run_dir))
    console.print(table)
    for one in {one.row.name: one for one in wanted}.values():
        console.print(f"{one.row.name}: {' '.join(one.overrides)}", markup=False)
    for command in unprepared(wanted, store):
        console.print(f"first: python -m {' '.join(command)}", markup=False)
    for key in sorted({key for one in wanted for key in one.missing}):
        console.print(f"needs a value: {key}=...", markup=False)
    left = {run.run_dir for run in placed if run.state != "finished"}
    launcher, jobs = settings.resolved(len(left)) if left else (settings.launcher, 0)
    console.print(f"{len(left)} runs to do, {jobs} at once by {launcher}; nothing was run", markup=False)


def _show(spec: TableSpec, runs: Sequence[RowRun], out: Path, console: Console) -> None:
    """Print the table and write it; the exit code says whether it is whole."""
    from sparkles.eval.rendering import rich_table  # not before the runs, which may be what is waited for
    from sparkles.tables.page import write_page
    from sparkles.tables.rendering import comparison_of, write_files
    from sparkles.tables.results import read_results

    results = read_results(spec, runs)
    console.print(rich_table(comparison_of(results)))
    write_files(results, out)
    write_page(results, out)
    console.print(f"in {out}: table.html, .md, .tex, .csv, .json", markup=False)
    if not results.complete:
        for problem in results.problems:
            console.print(problem, markup=False)
        sys.exit(_INCOMPLETE)


def main() -> None:
    try:
        dispatch("sparkles.tables", [dashboard], otherwise=_run_from_command_line)
    except KeyboardInterrupt:
        sys.exit(_STOPPED)
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):  # Lightning exits while it handles one
            sys.exit(_STOPPED)
        raise


def _run_from_command_line() -> None:
    arguments = ["dry_run=true" if one == "--dry-run" else one for one in sys.argv[1:]]
    if {"-h", "--help"} & set(arguments):
        print(f"python -m sparkles.tables table=NAME key=value ...\n\n{inspect.getdoc(run_table)}")
        return
    own = inspect.signature(run_table).parameters.keys() - {"overrides"}
    pairs = [one for one in arguments if one.partition("=")[0] in own]
    overrides = [one for one in arguments if one not in pairs]
    try:
        call("tables", run_table, [*pairs, *(f"overrides={override}" for override in overrides)])
    except (InputError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
