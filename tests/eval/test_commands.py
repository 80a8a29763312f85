"""The commands as a user types them; what they compute is tested beside the modules that compute it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.eval.__main__ import main
from sparkles.eval.benchmark import Prediction

Make = Callable[..., Prediction]
Write = Callable[..., Path]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `python -m sparkles.eval ARGUMENTS` prints."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["eval", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def test_runs_are_compared_as_table_and_as_json(
    make_prediction: Make, write_run: Write, run: Callable[..., str]
) -> None:
    one, other = (
        write_run(name, bison=[make_prediction(str(n), correct=n % step == 0) for n in range(20)])
        for name, step in (("a", 1), ("b", 2))
    )
    assert "exact McNemar" in run("compare", f"run={one}", f"other={other}")
    [found] = json.loads(run("compare", f"run={one}", f"other={other}", "json=true"))
    assert (found["benchmark"], found["num"], found["difference"]["value"]) == ("bison", 20, 0.5)
    file = one / "comparison.json"
    assert run("compare", f"run={one}", f"other={other}", f"json={file}") == ""
    assert json.loads(file.read_text()) == [found]
    with pytest.raises(SystemExit, match="no predictions of nlvr2; it has bison"):
        run("compare", f"run={one}", f"other={other}", "benchmark=nlvr2")


def test_people_rate_and_their_agreement_with_the_judge_is_told(
    make_prediction: Make, write_run: Write, run: Callable[..., str], tmp_path: Path
) -> None:
    from sparkles.eval.matching import dialogue_key
    from sparkles.eval.rating import COLUMNS

    rated = [make_prediction(str(n), answers=["a", "b"], rating=1.0 + n) for n in range(5)]
    folder, page, ratings = write_run("a", sparkles_eval=rated), tmp_path / "rate.html", tmp_path / "ann.csv"
    assert run("rate", f"run={folder}", f"out={page}").startswith(f"5 dialogues in {page}")
    lines = [",".join(["ann", dialogue_key(one), *[str(1 + int(one.item_id))] * 6]) for one in rated]
    ratings.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    [found] = json.loads(run("agreement", f"run={folder}", f"ratings={ratings}", "json=true"))
    assert (found["raters"], found["num"]) == (["judge", "ann"], 5)
    assert found["alpha"]["C2"] == pytest.approx(1.0)
    assert "Krippendorff" in run("agreement", f"run={folder}", f"ratings={ratings}")


def test_variance_is_split_over_runs(
    make_prediction: Make, write_run: Write, run: Callable[..., str]
) -> None:
    folders = [
        write_run(
            name,
            sparkles_eval=[make_prediction(str(n), answers=[name, "b"], rating=n + 1.0) for n in range(5)],
        )
        for name in "ab"
    ]
    [found] = json.loads(run("variance", *(f"run={folder}" for folder in folders), "json=true"))
    assert (found["num_seeds"], found["item"], found["seed"]) == (2, 2.5, 0.0)
    assert "between seeds" in run("variance", *(f"run={folder}" for folder in folders))
    with pytest.raises(SystemExit, match="sparkles_eval: one score for each item; expected several runs"):
        run("variance", f"run={folders[0]}")


def test_power_needs_no_run(run: Callable[..., str]) -> None:
    assert "same items, 30 % discordant" in run("power", "num=150", "discordance=0.3")
    found = json.loads(run("power", "num=150", "discordance=0.3", "json=true"))
    assert [one["test"] for one in found] == ["exact McNemar", "two proportions"]


def test_power_plans_a_table(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from runs that there may be
    found = json.loads(run("power", "table=placement", "num=600", "seeds=[0,1]", "json=true"))
    assert {(one["num"], one["seeds"]) for one in found} == {(600, 2)}
    assert all(one["spread"].startswith("assumed") for one in found)


def test_a_run_is_scored_again(make_prediction: Make, write_run: Write, run: Callable[..., str]) -> None:
    folder = write_run("a", bison=[make_prediction("1")])
    assert f"{folder}/metrics.json" in run("rescore", f"path={folder}").replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compar", "run=a"],
            "unknown command 'compar'; expected compare, agreement, variance, power, rate, rescore",
        ),
        (["compare", "run=a"], "compare: missing other; give other=..."),
        (["compare", "runs=a"], "compare: unknown key 'runs'; did you mean run?"),
        (["compare", "run=nowhere", "other=b"], "nowhere: no predictions"),
        (
            ["compare", "run=a", "other=b", "match=name"],
            "compare: match=name; expected one of 'content', 'id'",
        ),
        (["power", "num=many"], r"power: num=many; expected int"),
        (["power"], r"power: missing num; give num=\.\.\., or table="),
        (["power", "table=tabel4"], r"no table 'tabel4'; did you mean table4"),
        (["power", "num=150", "accuracy=57"], "accuracy=57: expected a share between 0 and 1"),
    ],
)
def test_mistakes_end_a_command_with_a_message(
    run: Callable[..., str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(*arguments)


def test_each_command_explains_itself(run: Callable[..., str]) -> None:
    for name in ("compare", "agreement", "variance", "power", "rate", "rescore"):
        assert f"python -m sparkles.eval {name} key=value" in run(name, "--help")


def test_help_lists_the_commands_before_anything_heavy_is_loaded() -> None:
    program = (
        "import runpy, sys; sys.argv = ['eval', '--help']\n"
        "try: runpy.run_module('sparkles.eval', run_name='__main__')\n"
        "finally: print(sorted({'torch', 'scipy', 'pandas', 'PIL'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    for name in ("compare", "agreement", "variance", "power", "rate", "rescore"):
        assert f"python -m sparkles.eval {name}" in said
    assert said.endswith("[]\n")
