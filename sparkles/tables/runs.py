"""The runs of a table: what each is, where it lies, and how far it is.

<store>/rows/<row>_seed<seed>_<hash>/    a run of train.py each, shared by all tables that have such a row
    row.json                             what it is (see `identity`), and how it ended
<store>/prepared/, <store>/hashes.json   which commands have made their data; hashes of large files
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparkles.config import CONFIG_DIR, explain, fill_missing, missing_keys, register_resolvers
from sparkles.eval.files import read_json, write_json
from sparkles.tables.identity import Contents, Identity, identify, makings
from sparkles.tables.spec import Row, TableError, TableSpec

STORE = Path("runs/tables")
RECORD, LOG = "row.json", "train.log"
CHECKPOINT = Path("checkpoints/last.ckpt")

State = Literal["finished", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class RowRun:
    """One row at one seed."""

    row: Row
    seed: int
    run_dir: Path
    """An ordinary run folder of `train.py` if the run is finished; it may not exist otherwise."""
    state: State
    """`missing` is also a run that was interrupted, which goes on where it stopped."""
    log: Path | None
    """What the run printed, if it ever began."""
    seconds: float | None
    """That the last attempt took, if it ended."""


TableRuns = tuple[TableSpec, list[RowRun]]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run that a table asks for, wherever it lies."""

    row: Row
    seed: int
    overrides: tuple[str, ...]
    """All of them but for the run's folder."""
    identity: Identity
    trains: bool
    makings: tuple[Mapping[str, Any], ...]
    """The config's nodes that make data, see `identity.makings`."""
    missing: tuple[str, ...]
    """Keys without a value: the run cannot begin."""
    tracked: bool
    """Whether W&B is to hear of it."""

    @property
    def folder(self) -> str:
        """Name of its folder, by which a person finds the row."""
        return f"{self.row.name}_seed{self.seed}_{self.identity.results[:8]}"


class Store:
    """The runs that there are, found by what they are."""

    def __init__(self, root: Path = STORE) -> None:
        self.root = Path(root)

    @cached_property
    def contents(self) -> Contents:
        return Contents(self.root / "hashes.json")

    def place(self, wanted: Sequence[Wanted]) -> list[RowRun]:
        """Where each run lies or is to lie, and how far it is."""
        dirs = {identity.results: run_dir for run_dir, identity in self._records()}
        return [self._run(one, dirs.get(one.identity.results)) for one in wanted]

    def weights_of(self, wanted: Iterable[Wanted]) -> dict[str, Path]:
        """By `Identity.weights`, the folder of a finished run that trained them and has them still."""
        asked = {one.identity.weights for one in wanted if one.trains}
        return {
            identity.weights: run_dir
            for run_dir, identity in self._records()
            if identity.weights in asked
            and state_of(run_dir) == "finished"
            and (run_dir / CHECKPOINT).is_file()
        }

    def prepared(self, command: Sequence[str]) -> Path:
        """The file that is there once a command has made its data."""
        digest = hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()
        return self.root / "prepared" / f"{digest[:16]}.json"

    def _records(self) -> Iterator[tuple[Path, Identity]]:
        for path in sorted((self.root / "rows").glob(f"*/{RECORD}")):
            yield path.parent, Identity.read(read_json(path)["identity"])

    def _run(self, wanted: Wanted, run_dir: Path | None) -> RowRun:
        run_dir = run_dir or self.root / "rows" / wanted.folder
        log = run_dir / LOG
        return RowRun(
            row=wanted.row,
            seed=wanted.seed,
            run_dir=run_dir,
            state=state_of(run_dir),
            log=log if log.is_file() else None,
            seconds=read_json(run_dir / RECORD).get("seconds"),
        )


def state_of(run_dir: Path) -> State:
    state = read_json(run_dir / RECORD).get("state")
    if state == "finished" and not (run_dir / "metrics.json").is_file():
        return "missing"  # somebody has tidied up
    return state if state in ("finished", "failed") else "missing"


def write_record(run_dir: Path, identity: Identity, **told: Any) -> None:
    """Say what the run in a folder is, and how far it is."""
    write_json(run_dir / RECORD, {"identity": asdict(identity), **told})


# --- configs --------------------------------------------------------------------------------------------------


@contextmanager
def config_loader(config: str) -> Iterator[ConfigLoader]:
    """Hydra's loader for `conf/`, as `conf/<config>.yaml` is composed by its command."""
    register_resolvers()
    earlier = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_DIR), job_name=Path(LOG).stem, version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        HydraConfig.instance().cfg = earlier


def wanted_runs(spec: TableSpec, contents: Contents) -> list[Wanted]:
    """Every run that a table asks for, row by row.

    Raises:
        TableError: an override that the config does not know.
    """
    chosen = [f"benchmark=[{','.join(spec.benchmarks)}]"] if spec.benchmarks else []
    if spec.benchmarks:
        chosen.append(f"benchmark.num={'null' if spec.num is None else spec.num}")
    with config_loader(spec.config) as loader:
        wanted = [one for row in spec.rows for one in _wanted_of_row(row, spec, chosen, loader, contents)]
    contents.save()
    return wanted


def _wanted_of_row(
    row: Row, spec: TableSpec, chosen: Sequence[str], loader: ConfigLoader, contents: Contents
) -> Iterator[Wanted]:
    overrides = [*chosen, *row.overrides]
    try:
        cfg = loader.load_configuration(
            spec.config, [*overrides, "run_dir='<run>'", "hydra.runtime.output_dir='<run>'"], RunMode.RUN
        )
    except HydraException as error:
        advice = explain(error)
        raise TableError(f"{spec.name}, row {row.name!r}: {advice or error}") from error
    HydraConfig.instance().set_config(cfg)
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    del tree["hydra"]
    filled = OmegaConf.create(fill_missing(tree))
    for seed in row.seeds:
        filled.seed = seed
        try:
            resolved: Any = OmegaConf.to_container(filled, resolve=True)
        except OmegaConfBaseException as error:
            raise TableError(
                f"{spec.name}, row {row.name!r}: the config cannot be resolved: {error}"
            ) from error
        yield Wanted(
            row=row,
            seed=seed,
            overrides=(*overrides, f"seed={seed}"),
            identity=identify(resolved, contents, prepare=row.prepare, task=spec.task),
            trains=bool(resolved.get("fit")) and not resolved.get("responder"),
            makings=tuple(makings(resolved)),
            missing=tuple(missing_keys(tree)),
            tracked="wandb" in (resolved.get("logger") or {}),
        )
