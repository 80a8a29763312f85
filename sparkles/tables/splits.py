"""Where rows differ: items of one benchmark that some rows have right and others wrong, with everybody's answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

from sparkles.eval.benchmark import Prediction
from sparkles.eval.report import messages_of, outcome_of, verdict_of
from sparkles.pages.page import Album, Outcome, Speech, Text, draw
from sparkles.tables.results import Results
from sparkles.tables.scores import Column, ItemKey, read_items
from sparkles.types import Image, images_of

MOST_ITEMS = 100
"""Of one benchmark on the page; of more, so many are drawn."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One benchmark, as the first seed of each row answered it."""

    column: Column
    rows: Mapping[str, Mapping[ItemKey, Prediction]]
    """By label, the items that all of them have."""
    keys: tuple[ItemKey, ...]
    """Those that some have right and others not; at most `MOST_ITEMS`."""
    num_split: int
    """How many such items there are."""

    @property
    def num(self) -> int:
        return len(next(iter(self.rows.values())))

    @property
    def images(self) -> list[Image]:
        """The pictures of the shown items."""
        shown = next(iter(self.rows.values()))
        return list(chain.from_iterable(images_of(messages_of(shown[key])) for key in self.keys))

    @property
    def alone_right(self) -> dict[str, list[int]]:
        """By label of a row, how many items it has right that each row, in order, does not."""
        right = {
            label: {key for key, one in found.items() if outcome_of(one) == "right"}
            for label, found in self.rows.items()
        }
        return {label: [len(own - other) for other in right.values()] for label, own in right.items()}

    def items(self, album: Album) -> list["SplitItem"]:
        """What is shown of `keys`."""
        return [self._item(key, album) for key in self.keys]

    def _item(self, key: ItemKey, album: Album) -> "SplitItem":
        predictions = [found[key] for found in self.rows.values()]
        shown = Speech(messages_of(predictions[0]), album)
        return SplitItem(
            item_id=predictions[0].item_id,
            kind=predictions[0].kind,
            label=predictions[0].label or "",
            questions=tuple(turn.question for turn in shown.turns()),
            answers=tuple(_answer(one, shown) for one in predictions),
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one row said to an item."""

    outcome: Outcome
    verdict: str
    said: tuple[Text, ...]
    """Of each turn."""


@dataclass(frozen=True, kw_only=True)
class SplitItem:
    """One item with the answers of all rows, in their order."""

    item_id: str
    kind: str
    label: str
    """The right answer; empty where a judge decides."""
    questions: tuple[Text, ...]
    answers: tuple[Answer, ...]


def find_splits(results: Results) -> list[Split]:
    """Of each headline in the table for which at least two rows have the same items."""
    headlines = [column for column in results.columns if column.key.count("/") == 1]
    by_benchmark = {column.benchmark: column for column in headlines}
    found = (_split(column, results) for column in by_benchmark.values())
    return [split for split in found if split is not None]


def _split(column: Column, results: Results) -> Split | None:
    first = {run.row.name: run for run in reversed(results.runs) if run.state == "finished"}
    read = {
        row.label: items
        for row in results.spec.rows
        if row.name in first and (items := read_items(first[row.name].run_dir, column.benchmark))
    }
    if len(read) < 2:
        return None
    common = [key for key in next(iter(read.values())) if all(key in items for items in read.values())]
    split = [key for key in common if len({outcome_of(items[key]) for items in read.values()}) > 1]
    if not common:
        return None
    return Split(
        column=column,
        rows={label: {key: items[key] for key in common} for label, items in read.items()},
        keys=tuple(draw(split, MOST_ITEMS)),
        num_split=len(split),
    )


def _answer(prediction: Prediction, shown: Speech) -> Answer:
    said = [message["content"] for message in prediction.dialogue if message["role"] == "assistant"]
    return Answer(
        outcome=outcome_of(prediction),
        verdict=verdict_of(prediction)[0],
        said=tuple(shown.parts(text) for text in said),
    )
