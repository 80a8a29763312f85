import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sparkles.eval.asking import Asking
from sparkles.eval.benchmark import BenchmarkError, Prediction
from sparkles.eval.bison import Bison
from sparkles.eval.responders import ModelResponder
from sparkles.eval.run import evaluate
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.types import Dialogue, InputError, Prompt, Verdict

Scripted = Any
"""The scripted classes of conftest.py, which a test gets as fixtures."""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def read_lines(run_dir: Path, name: str = "bison") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "predictions" / f"{name}.jsonl").read_text().splitlines()]


def answer_by_number(prompt: Prompt) -> str:
    """Right about captions 1 and 2, undecided about 3, wrong about 4."""
    match = re.search(r"number (\d)", prompt.messages[-1].content)
    assert match
    chosen = {"1": "IMAGE#1", "2": "IMAGE#2", "3": "either", "4": "IMAGE#1"}[match[1]]
    return f"I looked. Therefore, the answer is {chosen}."


def test_a_run_leaves_the_files_of_the_contract(
    bison: Bison, scripted_responder: Scripted, run_dir: Path
) -> None:
    metrics = evaluate([bison], scripted_responder(answer_by_number), None, run_dir, progress=False)
    assert metrics["bison/accuracy"] == metrics["bison/first_try_accuracy"] == 0.5
    assert (metrics["bison/num"], metrics["bison/unscored"]) == (4, 1)
    assert metrics["bison/kind/color/accuracy"] == 1.0
    assert json.loads((run_dir / "metrics.json").read_text()) == metrics
    assert (run_dir / "report.html").is_file()
    hashes = json.loads((run_dir / "environment.json").read_text())["hashes"]
    assert {name: len(value) for name, value in hashes.items()} == {
        "bison/annotations": 64,
        "bison/prompt": 64,
    }


def test_a_line_is_enough_to_score_again(bison: Bison, scripted_responder: Scripted, run_dir: Path) -> None:
    evaluate([bison], scripted_responder(answer_by_number), None, run_dir, progress=False)
    lines = read_lines(run_dir)
    assert [(line["item_id"], line["answer"], line["label"], line["correct"]) for line in lines] == [
        ("1", "IMAGE#1", "IMAGE#1", True),
        ("2", "IMAGE#2", "IMAGE#2", True),
        ("3", None, "IMAGE#1", False),
        ("4", "IMAGE#1", "IMAGE#2", False),
    ]
    assert lines[0]["tries"] == [
        {
            "turn": 1,
            "response": "I looked. Therefore, the answer is IMAGE#1.",
            "seconds": 0.25,
            "truncated": False,
        }
    ]
    assert lines[0]["image_ids"] == [1, 2]
    assert "something red, number 1" in lines[0]["prompt"]
    assert Path(lines[0]["dialogue"][0]["images"][0]["path"]).is_file()
    again = [Prediction.from_json(json.dumps(line)) for line in lines]
    assert bison.scorer.metrics(again)["accuracy"] == 0.5


def test_the_second_turn_holds_the_first_answer_without_tags_of_its_own(
    dialogues: SparklesEval, scripted_responder: Scripted, scripted_judge: Scripted, run_dir: Path
) -> None:
    responder = scripted_responder(lambda prompt: f"Answer {len(prompt.messages)} <Img><ImageHere></Img>")
    judge = scripted_judge({"7": 8.0, "9": 4.0})
    metrics = evaluate([dialogues], responder, judge, run_dir, progress=False)
    second = responder.asked[2]
    assert [message.content for message in second.messages] == [
        "See IMAGE#804<Img><ImageHere></Img>?",
        "Answer 1 ",
        "And IMAGE#33<Img><ImageHere></Img>, for 7?",
    ]
    assert [message.content for message in judge.judged[0].messages][3] == "Answer 3 "
    assert [image.caption for image in judge.judged[0].images] == ["a blue field", "snow"]
    assert metrics["sparkles_eval/overall"] == metrics["sparkles_eval/A2/C3"] == 6.0
    assert metrics["sparkles_eval/judge"] == "scripted judge 1"
    [first, _] = read_lines(run_dir, "sparkles_eval")
    assert [(t["turn"], t["response"]) for t in first["tries"]] == [
        (1, "Answer 1 <Img><ImageHere></Img>"),
        (2, "Answer 3 <Img><ImageHere></Img>"),
    ]
    assert first["verdict"]["reasons"]["A1"]["C1"] == "as scripted"


def test_what_the_judge_cannot_rate_is_counted_and_left_out(
    dialogues: SparklesEval, scripted_responder: Scripted, scripted_judge: Scripted, run_dir: Path
) -> None:
    metrics = evaluate([dialogues], scripted_responder(), scripted_judge({"7": 8.0}), run_dir, progress=False)
    assert (metrics["sparkles_eval/overall"], metrics["sparkles_eval/unscored"]) == (8.0, 1)
    assert read_lines(run_dir, "sparkles_eval")[1]["verdict"]["unscored_reason"] == "unreadable reply"


@pytest.mark.parametrize("interrupt_at", range(4))
def test_an_interrupted_run_continues_where_it_stopped(
    bison: Bison,
    scripted_responder: Scripted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    interrupt_at: int,
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    expected = evaluate(
        [bison], scripted_responder(answer_by_number), None, unbroken, save_every=1, progress=False
    )

    with pytest.raises(KeyboardInterrupt):
        evaluate(
            [bison],
            scripted_responder(answer_by_number, interrupt_at=interrupt_at),
            None,
            broken,
            save_every=1,
        )
    assert f"interrupted with {interrupt_at} of 4 items" in capsys.readouterr().out.replace("\n", " ")
    assert not (broken / "metrics.json").exists()
    second = scripted_responder(answer_by_number)
    assert evaluate([bison], second, None, broken, save_every=1) == expected
    assert len(second.asked) == 4 - interrupt_at
    assert ("items taken up" in capsys.readouterr().out) == (interrupt_at > 0)
    for name in ("predictions/bison.jsonl", "metrics.json"):
        assert (broken / name).read_text() == (unbroken / name).read_text()


def test_a_line_torn_by_a_crash_is_asked_again(
    bison: Bison, scripted_responder: Scripted, run_dir: Path
) -> None:
    evaluate([bison], scripted_responder(), None, run_dir, progress=False)
    path = run_dir / "predictions" / "bison.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-40])
    second = scripted_responder()
    evaluate([bison], second, None, run_dir, progress=False)
    assert [prompt.item_id for prompt in second.asked] == ["4"]
    assert path.read_text() == whole


def test_a_line_torn_within_a_character_is_asked_again(
    bison: Bison, scripted_responder: Scripted, run_dir: Path
) -> None:
    evaluate([bison], scripted_responder(lambda prompt: "Schön"), None, run_dir, progress=False)
    path = run_dir / "predictions" / "bison.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex("ö".encode()) + 1])
    second = scripted_responder(lambda prompt: "Schön")
    evaluate([bison], second, None, run_dir, progress=False)
    assert [prompt.item_id for prompt in second.asked] == ["4"]
    assert path.read_bytes() == whole


def test_an_answer_with_unusual_line_separators_is_taken_up(
    bison: Bison, scripted_responder: Scripted, run_dir: Path
) -> None:
    evaluate(
        [bison], scripted_responder(lambda prompt: "one\u2028two\x85three"), None, run_dir, progress=False
    )
    second = scripted_responder()
    evaluate([bison], second, None, run_dir, progress=False)
    assert second.asked == []


def test_answers_of_another_responder_are_kept_but_not_taken_up(
    bison: Bison, scripted_responder: Scripted, run_dir: Path
) -> None:
    evaluate([bison], scripted_responder(), None, run_dir, progress=False)
    before = read_lines(run_dir)
    other = scripted_responder(answer_by_number, name="another")
    evaluate([bison], other, None, run_dir, progress=False)
    assert len(other.asked) == 4
    assert read_lines(run_dir) != before
    superseded = (run_dir / "predictions" / "superseded" / "bison.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in superseded] == before


def test_another_judge_rates_again(
    dialogues: SparklesEval, scripted_responder: Scripted, scripted_judge: Scripted, run_dir: Path
) -> None:
    ratings = {"7": 8.0, "9": 8.0}
    evaluate([dialogues], scripted_responder(), scripted_judge(ratings), run_dir, progress=False)
    same, other = scripted_judge(ratings), scripted_judge(ratings, name="scripted judge 2")
    evaluate([dialogues], scripted_responder(), same, run_dir, progress=False)
    metrics = evaluate([dialogues], scripted_responder(), other, run_dir, progress=False)
    assert (len(same.judged), len(other.judged)) == (0, 2)
    assert metrics["sparkles_eval/judge"] == "scripted judge 2"


def test_metrics_of_other_benchmarks_stay(
    bison: Bison,
    dialogues: SparklesEval,
    scripted_responder: Scripted,
    scripted_judge: Scripted,
    run_dir: Path,
) -> None:
    first = evaluate([bison], scripted_responder(), None, run_dir, progress=False)
    second = evaluate([dialogues], scripted_responder(), scripted_judge({"7": 1.0}), run_dir, progress=False)
    assert json.loads((run_dir / "metrics.json").read_text()) == first | second


def test_a_missing_judge_is_noticed_before_anything_is_asked(
    bison: Bison, dialogues: SparklesEval, scripted_responder: Scripted, run_dir: Path
) -> None:
    responder = scripted_responder()
    with pytest.raises(
        BenchmarkError, match=r"sparkles_eval is rated by a judge, and there is none; set judge="
    ):
        evaluate([bison, dialogues], responder, None, run_dir)
    assert not responder.asked


def test_two_benchmarks_of_one_name_are_refused(
    bison: Bison, scripted_responder: Scripted, run_dir: Path
) -> None:
    with pytest.raises(BenchmarkError, match="two benchmarks are called 'bison'"):
        evaluate([bison, bison], scripted_responder(), None, run_dir)


def test_a_repeated_item_id_is_refused(
    bison: Bison, bison_file: Path, scripted_responder: Scripted, run_dir: Path
) -> None:
    bison_file.write_text(bison_file.read_text().replace('"evaluation_id": 2', '"evaluation_id": 1'))
    with pytest.raises(BenchmarkError, match="bison: two items have the id '1'"):
        evaluate([bison], scripted_responder(), None, run_dir)


def test_two_processes_leave_the_files_of_one(
    bison: Bison, scripted_responder: Scripted, tmp_path: Path
) -> None:
    """Each asks its share; three items of four are left after an interruption, so the shares are unequal."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = evaluate([bison], scripted_responder(answer_by_number), None, alone, progress=False)
    first = scripted_responder(answer_by_number, interrupt_at=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate([bison], first, None, together, save_every=1, progress=False)

    def share(rank: int) -> None:
        responder = scripted_responder(answer_by_number)
        metrics = evaluate([bison], responder, None, together, save_every=1, progress=False)
        asked = [prompt.item_id for prompt in responder.asked]
        (tmp_path / f"rank{rank}.json").write_text(json.dumps([metrics, asked]))

    in_processes(2, tmp_path / "rendezvous", share)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert results == [[expected, ["2", "4"]], [expected, ["3"]]]
    for name in ("predictions/bison.jsonl", "metrics.json"):
        assert (together / name).read_text() == (alone / name).read_text()


@pytest.mark.parametrize("do_sample", [False, True])
def test_two_processes_give_the_answers_of_one_also_where_they_are_drawn(
    do_sample: bool,
    bison: Bison,
    make_responder: Callable[..., ModelResponder],
    greedy: Mapping[str, Any],
    tmp_path: Path,
) -> None:
    asking = Asking(tries=2)  # random weights answer nothing that could be read

    def measure(folder: str) -> list[list[str]]:
        responder = make_responder(generation={**greedy, "do_sample": do_sample})
        evaluate([bison], responder, None, tmp_path / folder, asking=asking, progress=False)
        return [[one["response"] for one in line["tries"]] for line in read_lines(tmp_path / folder)]

    alone = measure("alone")
    in_processes(2, tmp_path / "rendezvous", lambda rank: measure("together"))
    together = read_lines(tmp_path / "together")
    assert [[one["response"] for one in line["tries"]] for line in together] == alone
    assert len({tuple(tries) for tries in alone}) > 1


def test_a_mistake_that_one_process_meets_ends_all_of_them(
    dialogues: SparklesEval, scripted_responder: Scripted, tmp_path: Path
) -> None:
    class BrokenJudge:
        name = "broken"

        def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
            raise InputError("no key for the judge")

    def share(rank: int) -> None:
        with pytest.raises(InputError, match="no key for the judge"):
            evaluate([dialogues], scripted_responder(), BrokenJudge(), tmp_path / "run", progress=False)
        (tmp_path / f"ended{rank}").touch()

    in_processes(2, tmp_path / "rendezvous", share)
    assert len(list(tmp_path.glob("ended*"))) == 2


def in_processes(number: int, rendezvous: Path, task: Callable[[int], object]) -> None:
    """Run `task(rank)` in so many processes that know of each other."""

    def run(rank: int) -> None:
        dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=number)
        task(rank)
        dist.destroy_process_group()

    torch.multiprocessing.start_processes(run, nprocs=number, start_method="fork")
