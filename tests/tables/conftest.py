"""Tables of a few rows, without a file."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from sparkles.tables.identity import Contents, Identity
from sparkles.tables.runs import RowRun, Store, wanted_runs
from sparkles.tables.spec import Row, TableSpec
from tests.tables import stub

SMALL_CONFIG = {
    "train.yaml": """
        defaults: [_self_, {benchmark: [bison]}, {judge: none}]
        seed: 0
        fit: true
        checkpoint: null
        resume_from: null
        run_dir: runs/x
        data: {steps: 1, batch_size: 1}
        model: {}
        module: {checkpoint: "${checkpoint}"}
        trainer: {}
        callbacks: {}
        eval: {control: null}
        """,
    "benchmark/bison.yaml": "{num: 150, suite: {bison: {num: '${benchmark.num}'}}}",
    "judge/none.yaml": "{}",
    "judge/llm.yaml": "model: ???",
}
"""What a sweep needs of `conf/`."""

MakeSpec = Callable[..., TableSpec]
Identify = Callable[..., Identity]


def find_runs(spec: TableSpec, store: Path) -> list[RowRun]:
    """The runs of a table as they are; nothing is run."""
    found = Store(store)
    return found.place(wanted_runs(spec, found.contents))


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of configs that are composed in no time."""
    folder = tmp_path_factory.mktemp("conf")
    for name, text in SMALL_CONFIG.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(dedent(text))
    return folder


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    """A table of the given rows, each a list of overrides; its task does a moment's work."""

    def make(
        rows: dict[str, list[str]],
        *,
        seeds: tuple[int, ...] = (0,),
        prepare: tuple[tuple[str, ...], ...] = (),
        num: int = 150,
        name: str = "mine",
    ) -> TableSpec:
        return TableSpec(
            name=name,
            title="Mine",
            question="?",
            size="nano",
            rows=tuple(
                Row(name=row, label=row, overrides=tuple(overrides), seeds=seeds, prepare=prepare)
                for row, overrides in rows.items()
            ),
            seeds=seeds,
            benchmarks=("bison",),
            num=num,
            columns=None,
            reference=None,
            paper=Path("none.csv"),
            task=f"{stub.__name__}.work",
        )

    return make


@pytest.fixture
def identity(make_spec: MakeSpec, tmp_path: Path) -> Identify:
    """The identity of a run of the nano model with these overrides."""

    def identify(*overrides: str, seed: int = 0, **table: object) -> Identity:
        spec = make_spec({"row": list(overrides)}, seeds=(seed,), **table)
        [wanted] = wanted_runs(spec, Contents(tmp_path / "hashes.json"))
        return wanted.identity

    return identify
