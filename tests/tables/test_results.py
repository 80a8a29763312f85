from pathlib import Path

import numpy as np
import pytest

from sparkles.eval.table import RunFolderError
from sparkles.tables.results import Result, Results, read_results
from sparkles.tables.scores import Column
from tests.tables.answered import answered

NUM = 120


def right(share: float, seed: int) -> dict[str, list[bool]]:
    """So many items of `NUM` are right, mostly the same ones for every seed."""
    rng = np.random.default_rng(seed)
    hard = np.linspace(0, 1, NUM) + rng.normal(0, 0.1, NUM)
    return {"bison": [bool(value) for value in hard <= np.quantile(hard, share)]}


def seeds(share: float, number: int = 3, first: int = 0) -> list[dict[str, list[bool]]]:
    return [right(share, first + seed) for seed in range(number)]


def cell(results: Results, row: str, column: int = 0) -> Result:
    return next(cells[column] for cells in results.rows if cells[column].row.name == row)


def test_a_value_is_the_mean_over_seeds_with_an_interval_over_both(tmp_path: Path) -> None:
    results = read_results(*answered(tmp_path, {"a": [right(0.5, 0), right(0.6, 1), right(0.7, 2)]}))
    measured = cell(results, "a").measured
    assert measured is not None
    assert measured.value == pytest.approx(0.6, abs=0.01)
    assert (measured.seeds, measured.num, measured.unscored) == ((0, 1, 2), NUM, 0)
    assert measured.interval.low is not None
    assert measured.interval.low < 0.5  # the seeds are far apart
    assert results.complete
    assert results.problems == []


def test_the_interval_of_one_seed_is_that_of_its_report(tmp_path: Path) -> None:
    results = read_results(*answered(tmp_path, {"a": [right(0.5, 0)]}))
    measured = cell(results, "a").measured
    assert measured is not None
    assert measured.interval.low == pytest.approx(0.4117, abs=1e-3)  # Wilson's


def test_a_row_that_did_not_run_is_shown_as_what_it_is(tmp_path: Path) -> None:
    rows = {
        "a": seeds(0.5),
        "b": ["failed", "failed", "failed"],
        "c": ["missing"],
        "d": [right(0.5, 0), "failed"],
    }
    results = read_results(*answered(tmp_path, rows))
    assert [cell(results, row).problem for row in "abcd"] == ["", "failed", "missing", "seed 1 failed"]
    partial = cell(results, "d").measured
    assert partial is not None
    assert partial.seeds == (0,)
    assert not results.complete
    assert results.problems[0] == f"b, seed 0: failed; see {tmp_path}/b_seed0/train.log"
    assert results.problems[3:] == [
        "c, seed 0: missing",
        f"d, seed 1: failed; see {tmp_path}/d_seed1/train.log",
    ]


def test_a_benchmark_that_a_finished_run_lacks_is_missing(tmp_path: Path) -> None:
    spec, runs = answered(tmp_path, {"a": seeds(0.5)}, benchmarks=("bison", "sparkles_eval"), reference=None)
    results = read_results(spec, runs)
    assert cell(results, "a", 1).problem == "missing"
    assert results.problems == ["a, SparklesEval: missing"]
    assert results.columns[1].heading == "SparklesEval, 1 to 10"


def test_dialogues_that_could_not_be_rated_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    rows = {"a": [{"sparkles_eval": [5.0, 6.0, 7.0]}, {"sparkles_eval": [5.0, 6.0, 7.0]}]}
    spec, runs = answered(tmp_path, rows, benchmarks=("sparkles_eval",))
    measured = cell(read_results(spec, runs), "a").measured
    assert measured is not None
    assert (measured.value, measured.num) == (6.0, 3)


def test_rows_are_compared_on_the_same_items_and_corrected_for_their_number(tmp_path: Path) -> None:
    rows = {"ref": seeds(0.5), "same": seeds(0.5, first=5), "better": seeds(0.8, first=9)}
    results = read_results(*answered(tmp_path, rows))
    same, better = cell(results, "same").difference, cell(results, "better").difference
    assert cell(results, "ref").difference is None
    assert same is not None
    assert better is not None
    assert better.num == NUM
    assert better.estimate.value == pytest.approx(0.3, abs=0.01)
    assert better.corrected == pytest.approx(2 * better.p_value)
    assert same.corrected == same.p_value > 0.5


def test_pairing_is_sharper_than_two_intervals(tmp_path: Path) -> None:
    results = read_results(*answered(tmp_path, {"ref": seeds(0.5), "better": seeds(0.6, first=9)}))
    found = [cell(results, row).measured for row in ("ref", "better")]
    difference = cell(results, "better").difference
    assert difference is not None
    alone = sum(one.estimate.standard_error**2 for one in found if one) ** 0.5
    assert difference.estimate.standard_error < 0.7 * alone


def test_items_that_ask_something_else_are_not_paired(tmp_path: Path) -> None:
    spec, runs = answered(tmp_path, {"ref": seeds(0.5), "other": seeds(0.5)})
    for run in runs:
        if run.row.name == "other":
            path = run.run_dir / "predictions/bison.jsonl"
            path.write_text(path.read_text().replace('"prompt": "question', '"prompt": "another question'))
    difference = cell(read_results(spec, runs), "other").difference
    assert difference is not None
    assert difference.num is None


@pytest.mark.parametrize(("second", "marked"), [(0.5, True), (0.79, False)])
def test_the_best_is_marked_if_it_can_be_told_from_the_second(
    tmp_path: Path, second: float, marked: bool
) -> None:
    rows = {"first": seeds(0.8), "second": seeds(second, first=9), "last": seeds(0.2, first=20)}
    results = read_results(*answered(tmp_path, rows))
    assert [cell(results, row).best for row in rows] == [marked, False, False]


def test_columns_may_be_any_metrics(tmp_path: Path) -> None:
    columns = {"bison/kind/even/accuracy": "even", "bison/first_try_accuracy": "", "bison/num": "items"}
    spec, runs = answered(tmp_path, {"ref": seeds(0.5), "b": seeds(0.6, first=3)}, columns=columns)
    results = read_results(spec, runs)
    assert [column.heading for column in results.columns] == [
        "even, accuracy, %",
        "BISON first_try_accuracy, accuracy, %",
        "items",
    ]
    even, first_try, items = (cell(results, "b", at) for at in range(3))
    assert even.measured is not None
    assert even.measured.num == NUM // 2
    assert even.difference is not None
    assert even.difference.num == NUM // 2
    assert first_try.measured is not None  # no scores of items, no interval in the metrics
    assert first_try.measured.interval.low is None
    assert first_try.difference is None
    assert items.measured is not None
    assert items.measured.value == NUM


def test_criteria_of_a_judge_have_intervals_over_items(tmp_path: Path) -> None:
    rows = {"ref": [{"sparkles_eval": [4.0, 6.0, 5.0, 7.0]}] * 2}
    spec, runs = answered(tmp_path, rows, columns={"sparkles_eval/A1/mean": "", "sparkles_eval/A2/C3": ""})
    first, second = read_results(spec, runs).rows[0]
    assert first.measured is not None
    assert second.measured is not None
    assert (first.measured.value, second.measured.value) == (4.5, 6.5)
    assert first.measured.interval.low is not None


def test_intervals_of_metrics_serve_where_items_have_no_score(tmp_path: Path) -> None:
    spec, runs = answered(tmp_path, {"ref": [{"bison": [True, False]}] * 3}, columns={"x/accuracy": "x"})
    for run, value in zip(runs, (0.5, 0.6, 0.7), strict=True):
        text = f'{{"x/accuracy": {value}, "x/accuracy_low": {value - 0.1}, "x/accuracy_high": {value + 0.1}}}'
        (run.run_dir / "metrics.json").write_text(text)
    measured = cell(read_results(spec, runs), "ref").measured
    assert measured is not None
    assert measured.interval.low is not None
    assert measured.interval.low < 0.5


def test_a_rate_of_mistakes_is_a_share_of_which_less_is_better() -> None:
    column = Column(name="recall/mix_up_rate", key="recall/mix_up_rate", title="mixed up")
    assert (column.heading, column.more_is_better) == ("mixed up, %", False)


def test_a_broken_run_folder_is_named(tmp_path: Path) -> None:
    spec, runs = answered(tmp_path, {"a": seeds(0.5)})
    (runs[1].run_dir / "metrics.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"a_seed1/metrics.json: not JSON"):
        read_results(spec, runs)
