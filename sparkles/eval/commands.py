"""What `python -m sparkles.eval COMMAND key=value ...` does with runs that exist; the docstrings are the help texts.

Each function imports what it needs when it is called, so that --help is answered at once.
"""

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparkles.eval.benchmark import Prediction


def compare(
    run: str,
    other: str,
    match: Literal["content", "id"] = "content",
    benchmark: str | None = None,
    json: bool | str = False,
) -> None:
    """Compare two runs on the same items: the difference with its 95 % interval and a paired test.

    run=A other=B    run folders, predictions/<benchmark>.jsonl, or result files of the original
    match=id         compare items with one id although prompt, pictures or label differ, as those of a control do
    benchmark=NAME   this one only
    json=true|FILE   print JSON, or write it, instead of the table
    """
    from sparkles.eval.compare import compare_runs, comparison_table
    from sparkles.eval.predictions import read_run

    ours, theirs = read_run(Path(run)), read_run(Path(other))
    if benchmark is not None:
        ours, theirs = _only(benchmark, ours, run), _only(benchmark, theirs, other)
    found = compare_runs(ours, theirs, match)
    names = [Path(path).resolve().name for path in (run, other)]
    shown = names if names[0] != names[1] else [run, other]
    _show(comparison_table(found, *shown), [asdict(one) for one in found], json)


def agreement(run: Sequence[str], ratings: Sequence[str] = (), json: bool | str = False) -> None:
    """How far judges agree, with each other and with people: Krippendorff's alpha for each criterion.

    run=A run=B      runs whose dialogues were rated; the same answers rated by several judges show their agreement
    ratings=CSV      of people, as the page of `rate` writes it; several may be given
    json=true|FILE   print JSON, or write it, instead of the table
    """
    from sparkles.eval.agreement import agreement_table, agreements, human_ratings, judge_ratings
    from sparkles.eval.predictions import read_run
    from sparkles.eval.rating import read_ratings

    predictions = [found for path in run for found in read_run(Path(path)).values()]
    people = human_ratings([line for path in ratings for line in read_ratings(Path(path))])
    found = agreements(judge_ratings(predictions), people)
    _show(agreement_table(found), [asdict(one) for one in found], json)


def variance(run: Sequence[str], json: bool | str = False) -> None:
    """Split the variance of scores into that of items, training seeds and the judge.

    run=A run=B ...  runs with the same answers are repeats of the judge, as are an ensemble's members; runs with
                     other answers are other seeds
    json=true|FILE   print JSON, or write it, instead of the table
    """
    from sparkles.eval.predictions import read_run
    from sparkles.eval.variance import split_variance, variance_table
    from sparkles.types import InputError

    runs = [read_run(Path(path)) for path in run]
    if not (names := [name for name in runs[0] if all(name in found for found in runs)]):
        raise InputError(f"variance: no benchmark in all of {', '.join(run)}")
    splits = [split_variance(name, [found[name] for found in runs]) for name in names]
    _show(
        variance_table(splits), [asdict(one) | {"standard_error": one.standard_error} for one in splits], json
    )


def power(
    num: int | None = None,
    accuracy: float = 0.5,
    discordance: Sequence[float] = (),
    deviation: float | None = None,
    table: str | None = None,
    size: Literal["nano", "7b"] = "nano",
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    json: bool | str = False,
) -> None:
    """The smallest difference that `num` items show with 80 % power at the 5 % level, before anything is spent.

    num=150          items
    accuracy=0.57    of the weaker run, for runs on different items
    discordance=0.3  share of items that one run has right and the other wrong, for runs on the same items
    deviation=1.5    standard deviation of ratings (different items) or of their differences (the same items)
    table=table4     which rows of a table can be told from its reference row, and what the table would cost: in time
                     as finished runs took it, FLOPs, and dollars for endpoints. With size=7b seeds=[0,1] num=600,
                     overrides=judge.model=NAME (any override of train.py, for all rows)
    json=true|FILE   print JSON, or write it, instead of the table
    """
    from rich.console import Group

    from sparkles.eval.power import detectable_differences, power_table
    from sparkles.types import InputError

    if table is not None:
        from sparkles.tables.plan import Assumed, plan_table, plan_tables, plan_values
        from sparkles.tables.spec import read_table

        changes = {"num": num, "seeds": list(seeds) or None}
        spec = read_table(
            table,
            size,
            changes={key: value for key, value in changes.items() if value is not None},
            overrides=overrides,
        )
        assumed = {"discordance": next(iter(discordance), None), "deviation": deviation}
        plan = plan_table(
            spec, Assumed(**{key: value for key, value in assumed.items() if value is not None})
        )
        _show(Group(*plan_tables(plan)), plan_values(plan), json)
        return
    if num is None:
        raise InputError("power: missing num; give num=..., or table=...")
    found = detectable_differences(
        num, accuracy=accuracy, discordances=discordance or (0.1, 0.2, 0.3, 0.5), deviation=deviation
    )
    _show(power_table(num, found), [asdict(one) for one in found], json)


def rate(run: Sequence[str], out: str = "rating.html", num: int | None = None, seed: int = 0) -> None:
    """Write a page on which people rate the dialogues of runs without knowing which model answered.

    run=A run=B      runs with two-turn dialogues (sparkles_eval), mixed and shuffled
    num=50 seed=0    so many of them, drawn by this seed
    out=rating.html  open it in any browser; it needs no network, and downloads a CSV for `agreement ratings=CSV`
    """
    from sparkles.eval.predictions import read_run
    from sparkles.eval.rating import write_sheet

    written = write_sheet(
        [found for path in run for found in read_run(Path(path)).values()], Path(out), num=num, seed=seed
    )
    print(f"{written} dialogues in {out}; open it in a browser, rate, and download the CSV")


def rescore(
    path: str,
    out: str | None = None,
    images: str | None = None,
    judge: str | None = None,
    reparse: bool = False,
) -> None:
    """Compute metrics, intervals and the report again, without model, judge or key.

    path=RUN         a run folder (rewrites its metrics.json and report.html), a predictions/<benchmark>.jsonl, or a
                     result file of the original (BISON_..., NLVR2_... or SparklesEval_....json)
    out=FOLDER       write there; for a file, and with reparse, the default is runs/rescored/<its name>
    images=FOLDER    of the pictures of an original's file
    judge=NAME       whose verdicts of an original's file, where it has several
    reparse=true     read answers, and the verdicts of an original's file, out of the replies again
    """
    from rich.console import Console

    from sparkles.eval.rendering import rich_table
    from sparkles.eval.rescore import rescore as rescore_run
    from sparkles.eval.table import compare as compare_folders

    folder = rescore_run(
        Path(path),
        None if out is None else Path(out),
        images=None if images is None else Path(images),
        judge=judge,
        reparse=reparse,
    )
    Console().print(rich_table(compare_folders({folder.resolve().name: folder})))
    print(f"{folder}/metrics.json and {folder}/report.html")


COMMANDS = (compare, agreement, variance, power, rate, rescore)


def _only(benchmark: str, runs: "dict[str, list[Prediction]]", path: str) -> "dict[str, list[Prediction]]":
    from sparkles.types import InputError

    if benchmark not in runs:
        raise InputError(f"{path}: no predictions of {benchmark}; it has {', '.join(runs)}")
    return {benchmark: runs[benchmark]}


def _show(table: "RenderableType", values: list[dict[str, Any]], json: bool | str) -> None:
    text = json_format.dumps(values, indent=2, ensure_ascii=False)
    if isinstance(json, str):
        Path(json).write_text(text + "\n", encoding="utf-8")
    elif json:
        print(text)
    else:
        from rich.console import Console

        Console().print(table)
