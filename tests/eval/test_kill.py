"""An evaluation over endpoints, killed anywhere, goes on to the same files and asks nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from sparkles.eval.bison import Bison
from sparkles.eval.endpoint import EndpointResponder
from sparkles.eval.llm_judge import LLMJudge
from sparkles.eval.run import evaluate
from sparkles.eval.sparkles_eval import SparklesEval
from sparkles.llm_client import LLMClient
from sparkles.types import CRITERIA
from tests.scripted_server import Call, Reply, ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
ITEMS, DIALOGUES = 6, 4
REQUESTS = ITEMS + 3 * DIALOGUES
"""Two answers and a verdict for each dialogue."""


def run_to_the_end(base_url: str, data: Path, run_dir: Path, kill_at: int | None) -> None:
    """What a child process does: the whole evaluation, or as far as the nth time that it touches a file of the run."""
    os.environ["OPENAI_API_KEY"] = "none"
    time.perf_counter = lambda: 0.0  # so that runs can be compared byte by byte
    touched = count(1)

    def notice(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in ("open", "os.rename") and str(arguments[0]).startswith(str(run_dir))
        if touches and next(touched) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(notice)
    client = partial(LLMClient, base_url=base_url, first_wait=0.001, concurrency=4)
    journals = run_dir / "journal"
    evaluate(
        [
            Bison(annotations=data / "bison.json", images=data),
            SparklesEval(annotations=data / "dialogues.json", images=data),
        ],
        EndpointResponder(model="m", client=client, journal=journals / "responder.jsonl"),
        LLMJudge(model="j", client=client, journal=journals / "judge.jsonl"),
        run_dir,
        progress=False,
        save_every=3,
    )
    run_dir.with_name("touched").write_text(str(next(touched) - 1))


def fork_on_demand() -> None:
    """What this file does as a program: for each line of arguments, `run_to_the_end` in a fork, which has the imports.

    Prints the process id of each, and how it ended.
    """
    for line in sys.stdin:
        base_url, data, run_dir, kill_at = json.loads(line)
        if (child := os.fork()) == 0:
            os.dup2(2, 1)
            run_to_the_end(base_url, Path(data), Path(run_dir), kill_at)
            os._exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Runs:
    """Evaluations of `data` in processes of their own, one at a time."""

    def __init__(self, server: ScriptedServer, data: Path) -> None:
        self.server = server
        self.data = data
        command = [sys.executable, "-m", __name__]
        self.forks = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, run_dir: Path, kill_at: int | None = None) -> int:
        """The process id."""
        assert self.forks.stdin is not None
        print(
            json.dumps([self.server.base_url, str(self.data), str(run_dir), kill_at]),
            file=self.forks.stdin,
            flush=True,
        )
        return self._read()

    def wait(self) -> int:
        """How the process that was started ended: 0, or minus the signal."""
        return self._read()

    def finish(self, run_dir: Path) -> list[str]:
        """Let a run end, and return the questions that it asked."""
        self.server.script = answer
        before = len(self.server.calls)
        self.start(run_dir)
        assert self.wait() == 0
        return [json.dumps(call.body["messages"]) for call in self.server.calls[before:]]

    def close(self) -> None:
        self.forks.kill()
        self.forks.communicate()

    def _read(self) -> int:
        assert self.forks.stdout is not None
        return int(self.forks.stdout.readline())


def answer(call: Call) -> Reply:
    """An answer that depends on the question alone, or a judge's verdict."""
    code = call.question.partition("\nRatings ")[2].partition("\n")[0]
    if not code:
        return Reply(text=f"To {call.question[-30:]!r}: therefore, the answer is IMAGE#1.")
    rated = {criterion: {"explanation": "fine", "rating": 6} for criterion in CRITERIA}
    return Reply(text=json.dumps({"code": code, "A1": rated, "A2": rated}))


class KillAtRequest:
    """A script that kills whoever asks as the nth request arrives, which stays without a reply."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.started = threading.Event()
        self.process_id = 0

    def __call__(self, call: Call) -> Reply:
        self.left -= 1
        if self.left > 0:
            return answer(call)
        self.started.wait()
        if self.left == 0:
            os.kill(self.process_id, signal.SIGKILL)
        return Reply(cut="before")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("1.png", "2.png"):
        PIL.Image.new("RGB", (4, 4), "red").save(folder / name)
    pair = [{"image_id": number, "image_filename": f"{number}.png"} for number in (1, 2)]
    items = [
        {"evaluation_id": n, "caption": f"Caption {n}.", "true_image_id": 1, "image_candidates": pair}
        for n in range(ITEMS)
    ]
    questions = [
        "Dialogue {n}: see IMAGE#1<Img><ImageHere></Img>?",
        "And IMAGE#2<Img><ImageHere></Img>, {n}?",
    ]
    dialogues = [
        {
            "evaluation_id": n,
            "dialogue": [
                message
                for number, question in enumerate(questions, start=1)
                for message in (
                    {
                        "role": "user",
                        "content": question.format(n=n),
                        "images": [{"image_id": number, "caption": "red"}],
                    },
                    {"role": "assistant", "content": "A reference."},
                )
            ],
        }
        for n in range(DIALOGUES)
    ]
    (folder / "bison.json").write_text(json.dumps(items))
    (folder / "dialogues.json").write_text(json.dumps(dialogues))
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(answer) as server:
        yield server


@pytest.fixture(scope="module")
def runs(server: ScriptedServer, data: Path) -> Iterator[Runs]:
    runs = Runs(server, data)
    yield runs
    runs.close()


def files_of(run_dir: Path) -> dict[str, object]:
    """Content by name. Replies come in any order, so that of a journal is a set."""
    return {
        str(path.relative_to(run_dir)): (
            set(path.read_text().splitlines())
            if path.suffix == ".jsonl" and path.parent.name == "journal"
            else path.read_text().replace(str(run_dir), "RUN")
        )
        for path in run_dir.rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".torn")
    }


@pytest.fixture(scope="module")
def unbroken(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    asked = runs.finish(run_dir)
    assert len(asked) == len(set(asked)) == REQUESTS
    return run_dir


def check_the_rest(runs: Runs, run_dir: Path, unbroken: Path) -> None:
    """A killed run asks for the rest, and nothing that it had on disk."""
    journalled = sum(path.read_bytes().count(b"\n") for path in run_dir.glob("journal/*.jsonl"))
    asked = runs.finish(run_dir)
    assert len(asked) == len(set(asked)) == REQUESTS - journalled
    assert files_of(run_dir) == files_of(unbroken)


def ten_of(population: range) -> list[Any]:
    """Points at which a run is killed; every second one is left to the slow tests."""
    points = sorted(random.Random(0).sample(population, 10))
    return [
        pytest.param(point, marks=pytest.mark.slow if index % 2 else ()) for index, point in enumerate(points)
    ]


@pytest.mark.parametrize("number", ten_of(range(1, REQUESTS + 1)))
def test_killed_at_a_request(
    server: ScriptedServer, runs: Runs, unbroken: Path, tmp_path: Path, number: int
) -> None:
    run_dir = tmp_path / "run"
    server.script = killing = KillAtRequest(number)
    killing.process_id = runs.start(run_dir)
    killing.started.set()
    assert runs.wait() == -signal.SIGKILL
    check_the_rest(runs, run_dir, unbroken)


@pytest.mark.parametrize("share", ten_of(range(100)))
def test_killed_as_it_touches_a_file(
    server: ScriptedServer, runs: Runs, unbroken: Path, tmp_path: Path, share: int
) -> None:
    """At so many percent of the times that an unbroken run opens or renames one of its files."""
    run_dir = tmp_path / "run"
    touched = int(unbroken.with_name("touched").read_text())
    server.script = answer
    runs.start(run_dir, 1 + touched * share // 100)
    assert runs.wait() == -signal.SIGKILL
    check_the_rest(runs, run_dir, unbroken)


if __name__ == "__main__":
    fork_on_demand()
