"""Ask a responder everything in some benchmarks, and leave the files of the contract in a run folder.

`predictions/<benchmark>.jsonl` grows while the benchmark runs; `metrics.json` after each benchmark; `report.html` at
the end. The same call after an interruption takes up the lines that are there. Under torch.distributed each process
asks its share of the items; the first asks the judge, so that there is one budget and one journal, and writes.

An item whose responder could not be asked gets no line. The run goes on without it and says so at its end.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparkles.eval.benchmark import Benchmark, BenchmarkError, Item, Metrics, Prediction, Score
from sparkles.eval.environment import add_hashes
from sparkles.eval.files import read_json, write_json, write_text
from sparkles.eval.report import render_report
from sparkles.prompt_format import IMAGE_PLACEHOLDER, strip_tags
from sparkles.types import Dialogue, Image, InputError, Judge, Message, Prompt, Responder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class IncompleteError(InputError):
    """Some items have no answer. What there is was measured and written."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """An item, and what the responder said to it."""

    item: Item
    messages: tuple[Message, ...]
    tries: list[dict[str, Any]]
    failure: str
    """Why the item is not finished; empty if it is."""


def evaluate(
    benchmarks: Sequence[Benchmark],
    responder: Responder,
    judge: Judge | None,
    run_dir: Path,
    *,
    progress: bool = True,
    save_every: int = 64,
) -> Metrics:
    """Metrics of all benchmarks, named `<benchmark>/<metric>`; the same on every process.

    Args:
        judge: rates dialogues; None if no benchmark has any.
        save_every: items of one process between two writes.

    Raises:
        InputError: see `read_all`.
        IncompleteError: at the end, if the responder could not be asked everything. The metrics on disk are of the
            items that have an answer; `<benchmark>/unanswered` counts the others.
    """
    run_dir = Path(run_dir)
    items = read_all(benchmarks, judge)
    metrics: Metrics = {}
    incomplete: list[str] = []
    with _progress(progress and _rank() == 0) as bar:
        for benchmark in benchmarks:
            predictions, failures = _predict(
                benchmark, items[benchmark.name], responder, judge, run_dir, bar, save_every
            )
            found = _named(benchmark, benchmark.scorer.metrics(predictions))
            if failures:
                found |= _named(benchmark, {"unanswered": len(failures)})
                total = len(items[benchmark.name])
                incomplete.append(
                    f"{benchmark.name}: {len(failures)} of {total} items, the last: {failures[-1]}"
                )
            metrics |= found
            if _rank() == 0:
                add_hashes(run_dir, _named(benchmark, benchmark.hashes()))
                _merge_metrics(run_dir / "metrics.json", benchmark.name, found)
    if _rank() == 0:
        render_report(run_dir)
    if incomplete:
        raise IncompleteError(
            "\n  ".join([f"{responder.name} could not be asked everything:", *incomplete])
            + f"\nwhat is in {run_dir} speaks of the others only; the same command with the same run_dir asks the rest"
        )
    return metrics


def read_all(benchmarks: Sequence[Benchmark], judge: Judge | None) -> dict[str, list[Item]]:
    """The items of each benchmark, by its name: what is wrong with the files shows up here, before the work.

    Raises:
        BenchmarkError: two benchmarks have one name, a judge is missing, or item ids repeat.
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
    return {benchmark.name: _read_items(benchmark) for benchmark in benchmarks}


def _named(benchmark: Benchmark, values: Mapping[str, T]) -> dict[str, T]:
    return {f"{benchmark.name}/{key}": value for key, value in values.items()}


def _read_items(benchmark: Benchmark) -> list[Item]:
    items = benchmark.items()
    seen: set[str] = set()
    for item in items:
        if item.item_id in seen:
            raise BenchmarkError(
                f"{benchmark.name}: two items have the id {item.item_id!r}; correct its annotations"
            )
        seen.add(item.item_id)
    return items


def _predict(
    benchmark: Benchmark,
    items: Sequence[Item],
    responder: Responder,
    judge: Judge | None,
    run_dir: Path,
    bar: Progress,
    save_every: int,
) -> tuple[list[Prediction], list[str]]:
    """The predictions of all items, in order: those on disk, and the rest asked and written batch by batch.

    And why some have none.
    """
    path = run_dir / "predictions" / f"{benchmark.name}.jsonl"
    judge_name = judge.name if judge and benchmark.scorer.needs_judge else ""
    keys = {item.item_id: item.key(responder.name, benchmark.scorer.name, judge_name) for item in items}
    done: dict[str, Prediction] = {}
    if _rank() == 0:
        done = _take_up(path, keys)
        again = _rate_again(benchmark, items, done, judge)
        _append(path, again)
        done |= {prediction.item_id: prediction for prediction in again}
    done = _from_first(done)
    if done:
        bar.console.print(f"{benchmark.name}: {len(done)} of {len(items)} items taken up from {path}")
    todo = [item for item in items if item.item_id not in done]
    task = bar.add_task(benchmark.name, total=len(items), completed=len(done))
    failures: list[str] = []
    try:
        for start in range(0, len(todo), save_every * _size()):
            mine = todo[start : start + save_every * _size()][_rank() :: _size()]
            asked = _gather(_ask(mine, responder))
            failures += [one.failure for one in asked if one.failure]
            new: list[Prediction] = []
            if _rank() == 0:
                new = _score([one for one in asked if not one.failure], benchmark, judge, keys)
                _append(path, new)
            done |= {prediction.item_id: prediction for prediction in _from_first(new)}
            bar.update(task, completed=len(done))
    except KeyboardInterrupt:
        bar.console.print(
            f"{benchmark.name}: interrupted with {len(done)} of {len(items)} items in {path}; "
            "the same command with the same run_dir continues there"
        )
        raise
    predictions = [done[item.item_id] for item in items if item.item_id in done]
    if _rank() == 0:
        write_text(path, "".join(f"{prediction.to_json()}\n" for prediction in predictions))
        if unrated := [prediction for prediction in predictions if _judge_failed(prediction)]:
            logger.warning(
                "%s: the judge could not be asked about %d of %d dialogues, which count as unscored; "
                "the same command with the same run_dir asks it again",
                benchmark.name,
                len(unrated),
                len(predictions),
            )
    return predictions, failures


def _ask(items: Sequence[Item], responder: Responder) -> list[_Asked]:
    """What the responder says to each item, turn by turn."""
    messages: list[tuple[Message, ...]] = [() for _ in items]
    tries: list[list[dict[str, Any]]] = [[] for _ in items]
    failures = [""] * len(items)
    for turn in range(max((len(item.questions) for item in items), default=0)):
        asked = [
            index for index, item in enumerate(items) if turn < len(item.questions) and not failures[index]
        ]
        prompts = [
            Prompt(messages=(*messages[index], items[index].questions[turn]), item_id=items[index].item_id)
            for index in asked
        ]
        for index, prompt, response in zip(asked, prompts, responder.respond(prompts), strict=True):
            failures[index] = response.failure
            # An answer shows no images: a tag that the model made up would be taken for one in the next prompt.
            answer = strip_tags(response.text).replace(IMAGE_PLACEHOLDER, "")
            messages[index] = (*prompt.messages, Message(role="assistant", content=answer))
            tries[index].append(
                {
                    "turn": turn + 1,
                    "response": response.text,
                    "seconds": round(response.seconds, 4),
                    "truncated": response.truncated,
                }
            )
    return [
        _Asked(item=item, messages=spoken, tries=tried, failure=failure)
        for item, spoken, tried, failure in zip(items, messages, tries, failures, strict=True)
    ]


def _score(
    asked: Sequence[_Asked], benchmark: Benchmark, judge: Judge | None, keys: Mapping[str, str]
) -> list[Prediction]:
    items = [one.item for one in asked]
    dialogues = [Dialogue(messages=one.messages, dialogue_id=one.item.item_id) for one in asked]
    scores = benchmark.scorer.score(items, dialogues, judge) if items else []
    return [_prediction(one, score, keys) for one, score in zip(asked, scores, strict=True)]


def _prediction(asked: _Asked, score: Score, keys: Mapping[str, str]) -> Prediction:
    item = asked.item
    return Prediction(
        item_id=item.item_id,
        kind=item.kind,
        prompt="\n\n".join(question.content for question in item.questions),
        image_ids=[image.image_id for image in item.images],
        dialogue=[_message_record(message) for message in asked.messages],
        tries=asked.tries,
        key=keys[item.item_id],
        label=item.label,
        score=score,
    )


def _judge_failed(prediction: Prediction) -> bool:
    verdict = prediction.score.verdict
    return verdict is not None and verdict.failed


def _rate_again(
    benchmark: Benchmark, items: Sequence[Item], done: Mapping[str, Prediction], judge: Judge | None
) -> list[Prediction]:
    """Predictions whose judge could not be asked, with the verdict of another attempt; the answers stay."""
    unrated = [item for item in items if item.item_id in done and _judge_failed(done[item.item_id])]
    dialogues = []
    for item in unrated:
        answers = [
            Message(role="assistant", content=message["content"])
            for message in done[item.item_id].dialogue
            if message["role"] == "assistant"
        ]
        turns = zip(item.questions, answers, strict=True)
        messages = tuple(message for turn in turns for message in turn)
        dialogues.append(Dialogue(messages=messages, dialogue_id=item.item_id))
    scores = benchmark.scorer.score(unrated, dialogues, judge) if unrated else []
    return [replace(done[item.item_id], score=score) for item, score in zip(unrated, scores, strict=True)]


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
    # Not splitlines, which also breaks at the line separators that a response may hold.
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    done: dict[str, Prediction] = {}
    superseded = []
    for line in lines:
        try:
            prediction = Prediction.from_json(line)
        except (ValueError, TypeError, KeyError):  # torn in the middle, or of another format
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


def _gather(values: list[T]) -> list[T]:
    """The values of all processes."""
    if not _distributed():
        return values
    parts: list[list[T]] = [[] for _ in range(_size())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


def _from_first(value: T) -> T:
    """The value of the first process."""
    if not _distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
