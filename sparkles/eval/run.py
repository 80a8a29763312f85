"""Ask a responder everything in some benchmarks, and leave the files of the contract in a run folder.

The items of all benchmarks are asked together, so that no answer waits for the last of another benchmark, and what is
answered is judged meanwhile. `predictions/<benchmark>.jsonl` grows as it is; `metrics.json` and `report.html` follow at
the end. The same call after an interruption takes up the lines that are there. Under torch.distributed each process
asks its share of the items; the first asks the judge, so that there is one budget and one journal, and writes.

An item whose responder could not be asked gets no line. The run goes on without it and says so at its end.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparkles.eval.asking import PLAINLY, Asked, Asking, ask, judged_dialogue
from sparkles.eval.benchmark import Benchmark, BenchmarkError, Item, Metrics, Prediction, Score
from sparkles.eval.controls import controlled, effect
from sparkles.eval.courses import follow
from sparkles.eval.environment import add_endpoints, add_hashes
from sparkles.eval.files import read_json, write_json, write_text
from sparkles.eval.predictions import read_run
from sparkles.eval.report import render_report
from sparkles.eval.scorer_files import write_scorer_file
from sparkles.types import Dialogue, Image, InputError, Judge, Message, Responder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class IncompleteError(InputError):
    """Some items have no answer. What there is was measured and written."""


def evaluate(
    benchmarks: Sequence[Benchmark],
    responder: Responder,
    judge: Judge | None,
    run_dir: Path,
    *,
    asking: Asking = PLAINLY,
    progress: bool = True,
    save_every: int = 64,
) -> Metrics:
    """Metrics of all benchmarks, named `<benchmark>/<metric>`; the same on every process.

    Args:
        judge: rates dialogues; None if no benchmark has any.
        asking: how often, under which control, and what to hold that against.
        save_every: items of one process between two writes.

    Raises:
        InputError: see `read_all`.
        IncompleteError: at the end, if the responder could not be asked everything. The metrics on disk are of the
            items that have an answer; `<benchmark>/unanswered` counts the others.
    """
    run_dir = Path(run_dir)
    if asking.plain is not None and Path(asking.plain).resolve() == run_dir.resolve():
        raise BenchmarkError(f"eval.plain={asking.plain} is this run's own folder; set another run_dir=...")
    items = read_all(benchmarks, judge, asking)
    metrics: Metrics = {}
    incomplete: list[str] = []
    with _progress(progress and _rank() == 0) as bar:
        ledgers = [
            _Ledger(
                benchmark, items[benchmark.name], run_dir, _settings(benchmark, responder, judge, asking), bar
            )
            for benchmark in benchmarks
        ]
        _ask_all(ledgers, responder, judge, asking, save_every)
        for benchmark, ledger in zip(benchmarks, ledgers, strict=True):
            predictions, failures = ledger.predictions(), ledger.failures
            found = _named(benchmark, benchmark.scorer.metrics(predictions))
            seen = _named(benchmark, _effect(benchmark, predictions, asking))
            if failures:
                found |= _named(benchmark, {"unanswered": len(failures)})
                total = len(items[benchmark.name])
                incomplete.append(
                    f"{benchmark.name}: {len(failures)} of {total} items, the last: {failures[-1]}"
                )
            metrics |= found | seen
            if _rank() == 0:
                add_hashes(run_dir, _named(benchmark, benchmark.hashes()))
                write_scorer_file(benchmark, predictions, run_dir / "predictions")
                _merge_metrics(run_dir / "metrics.json", benchmark.name, found | seen)
                if seen and asking.plain is not None:
                    path = Path(asking.plain) / "metrics.json"
                    write_json(path, read_json(path) | seen)
    if _rank() == 0:
        add_endpoints(run_dir, responder=responder, judge=judge)
        render_report(run_dir)
        if asking.plain is not None:
            render_report(Path(asking.plain))
    if incomplete:
        raise IncompleteError(
            "\n  ".join([f"{responder.name} could not be asked everything:", *incomplete])
            + f"\nwhat is in {run_dir} speaks of the others only; the same command with the same run_dir asks the rest"
        )
    return metrics


def read_all(
    benchmarks: Sequence[Benchmark], judge: Judge | None, asking: Asking = PLAINLY
) -> dict[str, list[Item]]:
    """What is asked of each benchmark, by its name: what is wrong with the files shows up here, before the work.

    Raises:
        BenchmarkError: two benchmarks have one name, a judge is missing, item ids repeat, or a control cannot be had.
        RunFolderError: there are no predictions to hold a control against.
        AnnotationError: a file, a record or a picture is not as it should be.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise BenchmarkError(
            f"two benchmarks are called {repeated.pop()!r}; give one of them another name=..."
        )
    for benchmark in benchmarks:
        if benchmark.scorer.needs_judge and judge is None:
            raise BenchmarkError(f"{benchmark.name} is rated by a judge, and there is none; set judge=...")
    if asking.plain is not None and (missing := set(names) - read_run(Path(asking.plain)).keys()):
        raise BenchmarkError(f"eval.plain={asking.plain} has no predictions of {', '.join(sorted(missing))}")
    return {benchmark.name: _read_items(benchmark, asking) for benchmark in benchmarks}


def _named(benchmark: Benchmark, values: Mapping[str, T]) -> dict[str, T]:
    return {f"{benchmark.name}/{key}": value for key, value in values.items()}


def _read_items(benchmark: Benchmark, asking: Asking) -> list[Item]:
    items = benchmark.items()
    seen: set[str] = set()
    for item in items:
        if item.item_id in seen:
            raise BenchmarkError(
                f"{benchmark.name}: two items have the id {item.item_id!r}; correct its annotations"
            )
        seen.add(item.item_id)
    try:
        return controlled(items, asking.control, seed=asking.seed)
    except InputError as error:
        raise BenchmarkError(f"{benchmark.name}: {error}") from error


def _effect(benchmark: Benchmark, predictions: Sequence[Prediction], asking: Asking) -> Metrics:
    """What the control shows beside the plain run; nothing without either, or where they cannot be compared."""
    if asking.control is None or asking.plain is None:
        return {}
    try:
        return effect(asking.control, read_run(Path(asking.plain))[benchmark.name], predictions)
    except InputError as error:
        logger.warning("%s: what the control shows cannot be told: %s", benchmark.name, error)
        return {}


class _Ledger:
    """What is known of the items of one benchmark, in memory and on disk.

    Args:
        settings: what a score depends on beyond its item.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        items: Sequence[Item],
        run_dir: Path,
        settings: Sequence[str],
        bar: Progress,
    ) -> None:
        self.benchmark = benchmark
        self.items = {item.item_id: item for item in items}
        self.done: dict[str, Prediction] = {}
        self.failures: list[str] = []
        """Why some items have no answer."""
        self._path = run_dir / "predictions" / f"{benchmark.name}.jsonl"
        self._keys = {item.item_id: item.key(*settings) for item in items}
        self._bar = bar
        self._task = bar.add_task(benchmark.name, total=len(items))

    def take_up(self, judge: Judge | None) -> None:
        """What an earlier run has left, and another attempt where its judge could not be asked."""
        self.done = _take_up(self._path, self._keys)
        unrated = [one for one in self.done.values() if _judge_failed(one)]
        items = [self.items[one.item_id] for one in unrated]
        dialogues = [judged_dialogue(item, _answers(one)) for item, one in zip(items, unrated, strict=True)]
        scores = self._scored(items, dialogues, judge)
        self._append([replace(one, score=score) for one, score in zip(unrated, scores, strict=True)])
        if self.done:
            self._bar.console.print(
                f"{self.benchmark.name}: {len(self.done)} of {len(self.items)} items taken up from {self._path}"
            )

    def keep(self, asked: Sequence[Asked], judge: Judge | None) -> None:
        """Score what was answered, and put it on disk."""
        scores = self._scored([one.item for one in asked], [one.dialogue for one in asked], judge)
        self._append([_prediction(one, score, self._keys) for one, score in zip(asked, scores, strict=True)])

    def predictions(self) -> list[Prediction]:
        """Of all items that have an answer, in order; the file then has them in this order too."""
        predictions = [self.done[item_id] for item_id in self.items if item_id in self.done]
        if _rank() == 0:
            write_text(self._path, "".join(f"{prediction.to_json()}\n" for prediction in predictions))
            if unrated := [prediction for prediction in predictions if _judge_failed(prediction)]:
                logger.warning(
                    "%s: the judge could not be asked about %d of %d dialogues, which count as unscored; "
                    "the same command with the same run_dir asks it again",
                    self.benchmark.name,
                    len(unrated),
                    len(predictions),
                )
        return predictions

    def tell_interruption(self) -> None:
        self._bar.console.print(
            f"{self.benchmark.name}: interrupted with {len(self.done)} of {len(self.items)} items in {self._path}; "
            "the same command with the same run_dir continues there"
        )

    def _scored(
        self, items: Sequence[Item], dialogues: Sequence[Dialogue], judge: Judge | None
    ) -> Sequence[Score]:
        return self.benchmark.scorer.score(items, dialogues, judge) if items else []

    def _append(self, predictions: list[Prediction]) -> None:
        if predictions:
            _append(self._path, predictions)
        self.done |= {prediction.item_id: prediction for prediction in predictions}
        self._bar.update(self._task, completed=len(self.done))


def _settings(
    benchmark: Benchmark, responder: Responder, judge: Judge | None, asking: Asking
) -> tuple[str, ...]:
    judge_name = judge.name if judge and benchmark.scorer.needs_judge else ""
    return (responder.name, benchmark.scorer.name, judge_name, *asking.settings(benchmark.scorer))


def _ask_all(
    ledgers: Sequence[_Ledger], responder: Responder, judge: Judge | None, asking: Asking, save_every: int
) -> None:
    """Ask what has no answer yet. The first process judges and writes in a thread, at most one batch behind."""

    def take_up() -> list[dict[str, Prediction]]:
        for ledger in ledgers:
            ledger.take_up(judge)
        return [ledger.done for ledger in ledgers]

    def keep(answered: Sequence[tuple[int, Asked]]) -> None:
        for number, ledger in enumerate(ledgers):
            ledger.keep([one for index, one in answered if index == number and not one.failure], judge)

    try:
        with ThreadPoolExecutor(max_workers=1) as judging:
            known = _on_first(lambda: judging.submit(take_up).result())
            todo = [
                (number, item)
                for number, ledger in enumerate(ledgers)
                for item in ledger.items.values()
                if item.item_id not in known[number]
            ]
            todo.sort(key=lambda one: -len(one[1].questions))  # what takes longest begins first
            mine = todo[_rank() :: _size()]
            courses = [ask(item, ledgers[number].benchmark.scorer, asking) for number, item in mine]
            answers = follow(courses, responder, at_once=save_every)
            kept: Future[None] | None = None

            def share() -> list[tuple[int, Asked]]:
                new = [(mine[index][0], asked) for index, asked in islice(answers, save_every)]
                if kept is not None:
                    kept.result()
                return new

            def finish() -> list[dict[str, Prediction]]:
                share()
                return [ledger.done for ledger in ledgers]

            for _ in range(0, len(todo), save_every * _size()):
                answered = _gather(share)
                for number, asked in answered:
                    ledgers[number].failures += [asked.failure] if asked.failure else []
                if _rank() == 0:
                    kept = judging.submit(keep, answered)
            done = _on_first(finish)
    except KeyboardInterrupt:
        for ledger in ledgers:
            ledger.tell_interruption()
        raise
    for ledger, predictions in zip(ledgers, done, strict=True):
        ledger.done = predictions


def _prediction(asked: Asked, score: Score, keys: Mapping[str, str]) -> Prediction:
    item = asked.item
    return Prediction(
        item_id=item.item_id,
        kind=item.kind,
        prompt="\n\n".join(question.content for question in item.questions),
        image_ids=[image.image_id for image in item.images],
        dialogue=[_message_record(message) for message in asked.messages],
        tries=list(asked.tries),
        key=keys[item.item_id],
        label=item.label,
        score=score,
    )


def _judge_failed(prediction: Prediction) -> bool:
    verdict = prediction.score.verdict
    return verdict is not None and verdict.failed


def _answers(prediction: Prediction) -> list[str]:
    return [said["content"] for said in prediction.dialogue if said["role"] == "assistant"]


def _message_record(message: Message) -> dict[str, Any]:
    def image_record(image: Image) -> dict[str, Any]:
        # An absolute path: the report is made, and may be made again, from another working directory.
        return asdict(image) | {"path": image.path and str(image.path.absolute())}

    return {
        "role": message.role,
        "content": message.content,
        "images": [image_record(image) for image in message.images],
    }


def _take_up(path: Path, keys: Mapping[str, str]) -> dict[str, Prediction]:
    """Predictions of an earlier run whose key still holds, by item id; the file is left with those alone.

    Other lines (of another model, prompt or sample) move to `superseded/`; a line torn by a crash is dropped.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    done: dict[str, Prediction] = {}
    superseded = []
    for line in lines:
        try:
            prediction = Prediction.from_json(line)
        except (ValueError, TypeError, KeyError):  # torn, maybe within a character, or of another format
            continue
        if keys.get(prediction.item_id) == prediction.key:
            done[prediction.item_id] = prediction
        else:
            superseded.append(prediction)
    if superseded:
        _append(path.parent / "superseded" / path.name, superseded)
    write_text(path, "".join(f"{prediction.to_json()}\n" for prediction in done.values()))
    return done


def _append(path: Path, predictions: Sequence[Prediction]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{prediction.to_json()}\n" for prediction in predictions)


def _merge_metrics(path: Path, name: str, metrics: Metrics) -> None:
    """Replace this benchmark's metrics and keep those of others, which another call may have measured."""
    others = {key: value for key, value in read_json(path).items() if not key.startswith(f"{name}/")}
    write_json(path, others | metrics)


@contextmanager
def _progress(shown: bool) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown) as bar:
        yield bar


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0


def _size() -> int:
    return dist.get_world_size() if _distributed() else 1


def _gather(share: Callable[[], list[T]]) -> list[T]:
    """What the shares of all processes give, one behind the other.

    A mistake that one of them meets is raised on all: the others would wait for it forever.
    """
    if not _distributed():
        return share()
    mine: list[T] | InputError
    try:
        mine = share()
    except (InputError, OSError) as error:
        mine = InputError(str(error))
    parts: list[list[T] | InputError] = [[] for _ in range(_size())]
    dist.all_gather_object(parts, mine)
    values: list[T] = []
    for part in parts:
        if isinstance(part, InputError):
            raise part
        values += part
    return values


def _on_first(function: Callable[[], T]) -> T:
    """What the function gives on the first process, which alone calls it."""
    [value] = _gather(lambda: [function()] if _rank() == 0 else [])
    return value
