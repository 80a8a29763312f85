"""From a recipe and a writer to dialogues: ask, read, filter, count.

Calls are asked in rounds, each no larger than what is still missing; replies are taken in the order of their calls,
however they arrive. So the same replies make the same data set, in one go or after any number of interruptions.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

from sparkles.gen.parsing import Parsed, Reason, Rejected
from sparkles.gen.recipes import Assignment, Call, Recipe, spelled
from sparkles.gen.writers import Writer
from sparkles.llm_client import Completion, Failure, Outcome
from sparkles.types import Dialogue

SURPLUS = "more than were asked for"
_NO_ANSWERS = ("refusal", "content_filter")
"""How replies end in which the model, or its provider, declines."""


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A part of a reply that did not become data, and why."""

    kind: int
    number: int
    """Of the call, see `Call`."""
    reason: str
    detail: str
    text: str
    candidates: tuple[int | str, ...]
    """Ids of the images that were there to choose from."""


@dataclass(kw_only=True)
class Generated:
    """What has come of a recipe so far."""

    recipe: Recipe
    kept: list[list[Dialogue]]
    """By kind of reply."""
    asked: list[int]
    """Calls of which it is known what came, by kind of reply."""
    rejects: list[Reject] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """Calls without a reply: another run asks them again."""
    models: Counter[str] = field(default_factory=Counter)
    """Replies by the model that signed them, with its version."""
    interrupted: bool = False
    """Ctrl-C ended it. The journal may have more replies than were taken."""

    @property
    def dialogues(self) -> list[Dialogue]:
        """Those of different kinds in turn, so that a part of the data has some of each."""
        longest = max(map(len, self.kept))
        mixed = [kind[index] for index in range(longest) for kind in self.kept if index < len(kind)]
        if not self.recipe.numbered:
            return mixed
        return [replace(dialogue, dialogue_id=str(number)) for number, dialogue in enumerate(mixed, start=1)]

    @property
    def num_kept(self) -> int:
        return sum(map(len, self.kept))

    @property
    def reasons(self) -> Counter[str]:
        """Rejects by reason."""
        return Counter(reject.reason for reject in self.rejects)

    def counts(self) -> dict[str, Any]:
        """All that was asked, kept and dropped, for files."""
        return {
            "wanted": self.recipe.num_dialogues,
            "kept": self.num_kept,
            "interrupted": self.interrupted,
            "calls": sum(self.asked),
            "replies": self.models.total(),
            "rejected": dict(self.reasons.most_common()),
            "failed": dict(Counter(failure.reason for failure in self.failures)),
            "models": dict(self.models.most_common()),
        }


def first_round(recipe: Recipe) -> list[Call]:
    """The calls that a run begins with."""
    return _next_round(Generated(recipe=recipe, **_nothing(recipe)))


def generate(recipe: Recipe, writer: Writer, *, progress: bool = True) -> Generated:
    """Ask until there are as many dialogues as wanted, or calls or candidates are used up.

    It also ends after the first round if that keeps nothing, after any in which a call fails, and at Ctrl-C, which is
    noted.
    """
    generated = Generated(recipe=recipe, **_nothing(recipe))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}", table_column=Column()),  # which wraps
    )
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("calls", total=None, state="")
        try:
            while calls := _next_round(generated):
                bar.update(task, total=sum(generated.asked) + len(calls))
                _ask(generated, writer, calls, on_taken=lambda: _show(bar, task, generated, writer))
                if generated.failures or not generated.num_kept:
                    break
        except KeyboardInterrupt:
            generated.interrupted = True
    return generated


def _nothing(recipe: Recipe) -> dict[str, Any]:
    return {"kept": [[] for _ in recipe.replies], "asked": [0 for _ in recipe.replies]}


def _next_round(generated: Generated) -> list[Call]:
    """The calls that would do for what is missing if every dialogue were kept; kinds take turns."""
    recipe = generated.recipe
    calls: list[Call] = []
    for kind, asked in enumerate(generated.asked):
        missing = recipe.wanted(kind) - len(generated.kept[kind])
        count = min(math.ceil(missing / len(recipe.replies[kind])), recipe.calls_left(kind, asked))
        calls += [Call(kind, number) for number in range(asked, asked + count)]
    calls.sort(key=lambda call: (call.number, call.kind))
    return calls[: recipe.calls_at_most - sum(generated.asked)]


def _ask(generated: Generated, writer: Writer, calls: Sequence[Call], on_taken: Callable[[], None]) -> None:
    """Make the calls and take their replies, each as soon as all before it are there."""
    arrived: dict[int, Outcome] = {}
    taken = 0

    def take(index: int, outcome: Outcome) -> None:
        nonlocal taken
        arrived[index] = outcome
        while taken in arrived:
            _take(generated, calls[taken], arrived.pop(taken))
            taken += 1
            on_taken()

    writer.write(map(generated.recipe.assignment, calls), take)


def _take(generated: Generated, call: Call, outcome: Outcome) -> None:
    """Keep or reject what a reply holds."""
    generated.asked[call.kind] += 1
    recipe = generated.recipe
    assignment = recipe.assignment(call)
    kept = generated.kept[call.kind]
    if isinstance(outcome, Completion):
        generated.models[outcome.model] += 1
    elif outcome.reason != "refused_call":
        generated.failures.append(outcome)
        return
    parsed = _read(recipe, assignment, outcome)
    rejects = [(str(rejected.reason), rejected.detail, rejected.text) for rejected in parsed.rejected]
    for dialogue in parsed.dialogues:
        if len(kept) == recipe.wanted(call.kind):
            reason, detail = SURPLUS, f"{len(kept)} of its kind are kept already"
        else:
            reason, detail = _objection(recipe, dialogue)
        if reason:
            rejects.append((reason, detail, spelled(dialogue)))
        else:
            kept.append(dialogue)
    ids = tuple(image.image_id for image in assignment.candidates)
    generated.rejects += [
        Reject(kind=call.kind, number=call.number, reason=reason, detail=detail, text=text, candidates=ids)
        for reason, detail, text in rejects
    ]


def _read(recipe: Recipe, assignment: Assignment, outcome: Outcome) -> Parsed:
    if isinstance(outcome, Failure):
        return _declined(outcome.message, "")
    if outcome.finish_reason in _NO_ANSWERS:
        return _declined(outcome.finish_reason, outcome.text)
    return recipe.read(outcome.text, assignment)


def _declined(detail: str, text: str) -> Parsed:
    return Parsed(rejected=(Rejected(reason=Reason.DECLINED, detail=detail, text=text),))


def _objection(recipe: Recipe, dialogue: Dialogue) -> tuple[str, str]:
    """Name and words of the first filter that objects."""
    for name, check in recipe.filters.items():
        if detail := check(dialogue):
            return name, detail
    return "", ""


def _show(bar: Progress, task: TaskID, generated: Generated, writer: Writer) -> None:
    dropped = ", ".join(f"{count} {reason}" for reason, count in generated.reasons.most_common())
    state = (
        f"${writer.ledger.dollars:.2f}, {generated.num_kept} of {generated.recipe.num_dialogues} dialogues, "
        f"{len(generated.rejects)} rejected{f': {dropped}' if dropped else ''}"
    )
    bar.update(task, advance=1, state=state)


def ledger_record(generated: Generated, writer: Writer) -> dict[str, Any]:
    """What was asked and what it cost, earlier runs in the same folder included, for `ledger.json`."""
    ledger = writer.ledger
    costs = ("dollars", "input_tokens", "output_tokens", "lost", "lost_dollars")
    return {
        "writer": writer.name,
        "prompt_sha256": writer.prompt_hash,
        **generated.counts(),
        "paid_replies": ledger.calls,
        **{name: getattr(ledger, name) for name in costs},
        "unknown_cost": dict(ledger.unknown),
    }
