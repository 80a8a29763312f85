import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparkles.eval.asking import PAPER_TRIES, Asking, Mode
from sparkles.eval.benchmark import Metrics
from sparkles.eval.bison import Bison
from sparkles.eval.run import evaluate
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.types import InputError, Prompt

Scripted = Any
READ, UNREAD = "Therefore, the answer is IMAGE#1.", "I would rather not say."


@pytest.fixture
def bison(bison_file: Path, pictures: Path) -> Bison:
    return Bison(annotations=bison_file, images=pictures)


@pytest.fixture
def measure(bison: Bison, tmp_path: Path) -> Callable[..., Metrics]:
    return lambda responder, **asking: evaluate(
        [bison], responder, None, tmp_path, asking=Asking(**asking), progress=False
    )


def lines(folder: Path, name: str = "bison") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions" / f"{name}.jsonl").read_text().splitlines()]


def readable_from(**first_readable: int) -> Callable[[Prompt], str]:
    """Answers item n readably from try `item_n` on."""
    return lambda prompt: (
        READ if prompt.try_number >= first_readable.get(f"item_{prompt.item_id}", 1) else UNREAD
    )


def test_by_default_each_item_is_asked_once(
    measure: Callable[..., Metrics], scripted_responder: Scripted, tmp_path: Path
) -> None:
    responder = scripted_responder(readable_from(item_1=2))
    metrics = measure(responder)
    assert [prompt.try_number for prompt in responder.asked] == [1] * 4
    assert metrics["bison/unscored"] == 1
    assert len(lines(tmp_path)[0]["tries"]) == 1


def test_what_cannot_be_read_is_asked_again_and_each_try_is_kept(
    measure: Callable[..., Metrics], scripted_responder: Scripted, tmp_path: Path
) -> None:
    responder = scripted_responder(readable_from(item_1=3, item_2=9))
    metrics = measure(responder, tries=3)
    asked = [(prompt.item_id, prompt.try_number) for prompt in responder.asked]
    assert asked == [*((n, 1) for n in "1234"), ("1", 2), ("2", 2), ("1", 3), ("2", 3)]
    said = {line["item_id"]: [one["response"] for one in line["tries"]] for line in lines(tmp_path)}
    assert said == {"1": [UNREAD, UNREAD, READ], "2": [UNREAD] * 3, "3": [READ], "4": [READ]}
    # Items 1 and 3 are right, 1 at the third try only; 2 stays unscored, which is wrong.
    assert metrics["bison/accuracy"] == 0.5
    assert metrics["bison/first_try_accuracy"] == 0.25
    assert metrics["bison/unscored"] == 1


def test_tries_are_part_of_what_is_taken_up(
    measure: Callable[..., Metrics], scripted_responder: Scripted
) -> None:
    measure(scripted_responder(readable_from(item_1=2)))
    again, more, same = (scripted_responder(readable_from(item_1=2)) for _ in range(3))
    measure(again)
    measure(more, tries=2)
    measure(same, tries=2)
    assert [len(one.asked) for one in (again, more, same)] == [0, 5, 0]


def test_a_failed_call_is_no_unreadable_answer(
    measure: Callable[..., Metrics], scripted_responder: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    responder = scripted_responder(lambda prompt: UNREAD)
    respond = responder.respond
    monkeypatch.setattr(
        responder,
        "respond",
        lambda prompts: [replace(one, text="", failure="timeout") for one in respond(prompts)],
    )
    with pytest.raises(InputError, match="4 of 4 items, the last: timeout"):
        measure(responder, tries=5)
    assert len(responder.asked) == 4


def test_dialogues_are_not_asked_again(
    dialogues: SparklesEval, scripted_responder: Scripted, scripted_judge: Scripted, tmp_path: Path
) -> None:
    responder = scripted_responder(lambda prompt: UNREAD)
    for asking in (Asking(tries=4), Asking(mode="likelihood"), Asking()):  # nothing of it concerns dialogues
        evaluate([dialogues], responder, scripted_judge({"7": 2.0}), tmp_path, asking=asking, progress=False)
    assert len(responder.asked) == 4
    assert not any(prompt.options for prompt in responder.asked)


def test_the_paper_draws_until_it_can_read_but_here_within_a_bound(
    measure: Callable[..., Metrics], scripted_responder: Scripted, tmp_path: Path
) -> None:
    responder = scripted_responder(readable_from(item_1=7, item_2=1_000))
    metrics = measure(responder, mode="paper")
    tries = {line["item_id"]: len(line["tries"]) for line in lines(tmp_path)}
    assert tries == {"1": 7, "2": PAPER_TRIES, "3": 1, "4": 1}
    assert metrics["bison/unscored"] == 1
    assert Asking(mode="paper", tries=3).most_tries == 3


def test_likelihood_gives_the_options_to_the_responder(
    measure: Callable[..., Metrics], scripted_responder: Scripted
) -> None:
    modes: tuple[Mode, ...] = ("generate", "likelihood")
    for mode in modes:
        responder = scripted_responder()
        measure(responder, mode=mode)
        expected = ("IMAGE#1", "IMAGE#2") if mode == "likelihood" else ()
        assert {prompt.options for prompt in responder.asked} == {expected}


def test_less_than_one_try_is_refused() -> None:
    with pytest.raises(InputError, match=r"eval\.tries must be at least 1, got 0"):
        Asking(tries=0)
