import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from rich.console import Console, Group

from sparkles.eval.power import detectable_paired
from sparkles.tables.plan import Assumed, Plan, Spread, _comparisons, plan_table, plan_tables, plan_values
from sparkles.tables.results import read_results
from sparkles.tables.spec import TableSpec
from sparkles.types import InputError
from tests.tables import answered

PAPER = ("ref,Ref,bison,56.7,150,Table 9", "b,B,bison,46.0,150,Table 9")


def shown(plan: Plan) -> str:
    console = Console(width=240)
    with console.capture() as capture:
        console.print(Group(*plan_tables(plan)))
    return " ".join(capture.get().split())


@pytest.fixture
def spec(tmp_path: Path) -> TableSpec:
    (tmp_path / "paper.csv").write_text("\n".join(["row,label,benchmark,value,num,source", *PAPER]) + "\n")
    return answered.make_spec(tmp_path, {"ref": 3, "b": 3, "c": 1}, num=600)


def test_one_seed_shows_what_the_test_of_two_runs_shows() -> None:
    spread = Spread(item=0.3, seed=0.0, trained=0, source="")
    assert spread.detectable(150, 1) == pytest.approx(detectable_paired(150, 0.3), abs=0.01)


def test_more_items_do_not_help_where_seeds_differ_too_much() -> None:
    spread = Spread(item=0.3, seed=2 * 0.05**2, trained=2, source="")
    assert spread.detectable(10_000, 3) > 0.12
    assert spread.items_needed(0.1, 3) == inf
    needed = int(spread.items_needed(0.1, 20))
    assert spread.detectable(needed, 20) <= 0.1 < spread.detectable(needed - 1, 20)


def test_a_plan_assumes_what_no_run_tells(spec: TableSpec, tmp_path: Path) -> None:
    plan = plan_table(spec, Assumed(discordance=0.2), tmp_path / "store")
    [b, c] = plan.comparisons
    assert b.published == pytest.approx(-0.107)
    assert b.separable
    assert b.needed is not None
    assert b.needed < 600
    assert (c.published, c.separable, c.needed) == (None, None, None)
    assert (b.spread.trained, c.spread.trained) == (2, 1)  # one seed: nothing is trained
    text = shown(plan)
    for part in ("paper −10.7: yes", "assumed, discordance 0.2", "7 runs, of which 0 are finished"):
        assert part in text
    assert "time: not known" in text
    assert "endpoints: none is asked" in text
    values = plan_values(plan)
    assert [one["row"] for one in values] == ["b", "c"]
    assert json.dumps(values)


def test_finished_runs_of_other_tables_tell_the_time(spec: TableSpec, tmp_path: Path) -> None:
    folder = tmp_path / "store/rows/other_seed0_12345678"
    folder.mkdir(parents=True)
    identity = {"trained": {}, "measured": {}}
    record = {"identity": identity, "state": "finished", "seconds": 120.0}
    (folder / "row.json").write_text(json.dumps(record))
    (folder / "metrics.json").write_text("{}")
    plan = plan_table(spec, Assumed(), tmp_path / "store")
    assert "time: 14 minutes one after another, at 120 s a run, the mean of 1 finished runs" in shown(plan)


def test_runs_of_the_table_tell_the_spread(tmp_path: Path) -> None:
    right, half = [True] * 90 + [False] * 10, [True, False] * 50
    rows = {"ref": [{"bison": right}] * 3, "b": [{"bison": half}] * 3}
    results = read_results(*answered.answered(tmp_path, rows))
    [found] = _comparisons(results, 600, Assumed())
    assert found.spread.source == "measured, 100 items, 3 and 3 seeds"
    assert found.spread.item == pytest.approx(0.3434, abs=1e-3)
    assert (found.spread.seed, found.spread.trained) == (0.0, 2)


def test_dollars_of_judges_are_told(spec: TableSpec, tiny_world: Path, tmp_path: Path) -> None:
    judge = (
        "judge=llm",
        "judge.model=gpt",
        "+judge.client.prices.gpt={_target_:sparkles.llm_client.Price,input:10,output:30}",
    )
    rows = tuple(
        replace(row, overrides=(f"data_root={tiny_world}", *(judge if row.name == "ref" else ())))
        for row in spec.rows
    )
    judged = replace(spec, rows=rows, benchmarks=("sparkles_eval",), num=2)
    text = shown(plan_table(judged, Assumed(), tmp_path / "store"))
    assert "3 x sparkles_eval, verdicts of gpt: 2 calls" in text
    assert "cost about $" in text


def test_what_cannot_be_known_is_said(spec: TableSpec, tmp_path: Path) -> None:
    rows = tuple(replace(row, overrides=("judge=llm",)) for row in spec.rows)
    text = shown(plan_table(replace(spec, rows=rows), Assumed(), tmp_path / "store"))
    assert "endpoints: cost not known" in text


@pytest.mark.slow
def test_a_full_size_table_tells_its_arithmetic(spec: TableSpec, tmp_path: Path) -> None:
    rows = tuple(replace(row, overrides=("experiment=sparkleschat_7b",)) for row in spec.rows)
    text = shown(plan_table(replace(spec, rows=rows, size="7b"), Assumed(), tmp_path / "store"))
    assert "training: 7 times" in text
    assert "GPU hours at 125 TFLOP/s" in text


def test_mistakes_are_told(spec: TableSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table9 takes all items there are; say how many with num="):
        plan_table(replace(spec, num=None), Assumed(), tmp_path)
    with pytest.raises(InputError, match="table9 at size nano has no reference row"):
        plan_table(replace(spec, reference=None), Assumed(), tmp_path)
    with pytest.raises(InputError, match=r"discordance=3: expected a share between 0 and 1"):
        Assumed(discordance=3)
