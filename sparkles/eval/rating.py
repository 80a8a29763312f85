"""People as judges: a page of dialogues that does not say which model answered, and the CSV that it writes.

The page holds everything it needs. It keeps what was rated in the browser and downloads it as a CSV with one line per
dialogue; `dialogue` is a hash of the whole conversation, by which the ratings find their way back to the runs.
"""

import csv
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparkles.eval.benchmark import Prediction
from sparkles.eval.files import write_text
from sparkles.eval.judges import ANSWERS, HIGHEST, LOWEST
from sparkles.eval.matching import dialogue_key
from sparkles.eval.report import messages_of
from sparkles.pages.page import Album, Speech, render
from sparkles.types import CRITERIA, InputError, Message, images_of

CRITERION_QUESTIONS = {
    "C1": "Does the answer understand the images and reason about them correctly?",
    "C2": "Is it coherent across the images and with what was said before?",
    "C3": "Is it relevant to the question and complete?",
}
CELLS = tuple(f"{answer}/{criterion}" for answer in ANSWERS for criterion in CRITERIA)
COLUMNS = ("rater", "dialogue", *CELLS)


class RatingError(InputError):
    """A file of ratings, or what is to be rated, cannot be used as it is."""


@dataclass(frozen=True, kw_only=True)
class HumanRating:
    """One line of the CSV."""

    rater: str
    dialogue: str
    """See `matching.dialogue_key`."""
    scores: Mapping[str, float]
    """By cell, `A1/C1` to `A2/C3`; those that were left empty are missing."""


def write_sheet(
    runs: Sequence[Sequence[Prediction]], path: Path, *, num: int | None = None, seed: int = 0
) -> int:
    """Write the page with `num` dialogues of all runs (None: all), shuffled by `seed`; return how many.

    Raises:
        RatingError: no run has a dialogue of two turns, or fewer than `num`.
    """
    # Two runs may have said the same; it is rated once.
    dialogues = {
        dialogue_key(one): one for run in runs for one in run if len(one.dialogue) == 2 * len(ANSWERS)
    }
    keys = sorted(dialogues)
    random.Random(seed).shuffle(keys)
    if not 0 < (len(keys) if num is None else num) <= len(keys):
        raise RatingError(
            f"num={num}: the runs have {len(keys)} dialogues of two turns to rate; runs of sparkles_eval have some"
        )
    shown = {key: _uncaptioned(dialogues[key]) for key in keys[:num]}
    album = Album(image for messages in shown.values() for image in images_of(messages))
    page = render(
        "rating.html.j2",
        album=album,
        dialogues={
            key: dict(zip(ANSWERS, Speech(messages, album).turns(), strict=True))
            for key, messages in shown.items()
        },
        questions=CRITERION_QUESTIONS,
        scale=range(LOWEST, HIGHEST + 1),
        columns=COLUMNS,
        nonce=secrets.token_urlsafe(16),
    )
    write_text(path, page)
    return len(keys[:num])


def read_ratings(path: Path) -> list[HumanRating]:
    """The lines of a CSV with `COLUMNS`, as the page writes it; further columns are the user's own.

    Raises:
        RatingError: names the line and cell that is not as it should be.
    """
    if not path.is_file():
        raise RatingError(f"{path}: no such file; expected the CSV that the page of `rate` downloads")
    # A spreadsheet program may have put a byte order mark in front.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
            raise RatingError(f"{path}: no column {', '.join(missing)}; expected {','.join(COLUMNS)}")
        ratings = [_rating(line, f"{path}, line {reader.line_num}") for line in reader]
    seen: set[tuple[str, str]] = set()
    for rating in ratings:
        if (rating.rater, rating.dialogue) in seen:
            raise RatingError(
                f"{path}: {rating.rater!r} rates dialogue {rating.dialogue} twice; delete one of the lines"
            )
        seen.add((rating.rater, rating.dialogue))
    return ratings


def _rating(line: Mapping[str, str | None], where: str) -> HumanRating:
    scores = {}
    for cell in CELLS:
        text = (line[cell] or "").strip()
        if not text:
            continue
        try:
            scores[cell] = float(text)
        except ValueError:
            scores[cell] = float("nan")
        if not LOWEST <= scores[cell] <= HIGHEST:
            raise RatingError(
                f"{where}, {cell}: {text!r}; expected a number from {LOWEST} to {HIGHEST}, or nothing"
            )
    rater, dialogue = (line["rater"] or "").strip(), (line["dialogue"] or "").strip()
    if not rater or not dialogue:
        raise RatingError(f"{where}: no rater or no dialogue; each line needs both")
    return HumanRating(rater=rater, dialogue=dialogue, scores=scores)


def _uncaptioned(prediction: Prediction) -> tuple[Message, ...]:
    """The dialogue without the captions, which would tell a rater what to see."""
    return tuple(
        replace(message, images=tuple(replace(image, caption="") for image in message.images))
        for message in messages_of(prediction)
    )
