"""What a judge is shown of a dialogue, and what its reply says. Pure functions around the paper's format:

    * Evaluating A1
    - (C1) Explanation: "..." Rating: [[8]]
    - (C2) Explanation: "..." Rating: [[7.5]]
    - (C3) Explanation: "..." Rating: [[9]]
    Therefore, the overall rating of A1 is [[8.2]]

and the same for A2. The overall rating is not read: means are computed (paper, section 4.3).
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import product

from sparkles.prompt_format import strip_tags
from sparkles.types import CRITERIA, Dialogue, InputError, Verdict

ANSWERS = ("A1", "A2")
LOWEST, HIGHEST = 1, 10

_HEADING = (
    r"(?i:evaluat\w*|assess\w*|judg\w*|rating|rate)\W+(?:(?i:of|for|the|answer)\W+)*(A[0-9])\b"
    r"(?![^\n\w]*(?:is\b)?[^\n\w]*\d)"  # "the rating of A1 is [[8]]" heads nothing
)
_CONCLUSION = re.compile(r"^\W*(?:therefore|overall|final|total|average)\b", re.IGNORECASE | re.MULTILINE)
_RATING = re.compile(
    r"(?<!overall )\b(?:rating|score)\b[\s:*\[(]*"
    r"(\d++(?:\.\d++)?+)(?:\s*/\s*10\b)?+(?!\s*[-–/]\s*\d)",  # "8/10" is 8; "4/5" and "7-8" are no ratings
    re.IGNORECASE,
)
_AROUND_EXPLANATION = " \t\n\"'*()-:"


def judge_fields(dialogue: Dialogue) -> dict[str, str]:
    """What fills the judge's prompt: `images` (JSON of ids and captions), `Q1`, `A1`, `Q2`, `A2`; no image tags.

    Raises:
        InputError: not two turns.
    """
    roles = [message.role for message in dialogue.messages]
    if roles != ["user", "assistant"] * len(ANSWERS):
        raise InputError(f"dialogue {dialogue.dialogue_id!r}: a judge rates two finished turns, got {roles}")
    images = [{"image_id": image.image_id, "caption": image.caption} for image in dialogue.images]
    names = [name for answer in ANSWERS for name in (answer.replace("A", "Q"), answer)]
    texts = {
        name: strip_tags(message.content) for name, message in zip(names, dialogue.messages, strict=True)
    }
    return {"images": json.dumps(images, ensure_ascii=False)} | texts


def parse_verdict(reply: str, *, judge: str = "") -> Verdict:
    """The ratings and reasons of a reply; unscored, saying why, unless each criterion of both answers has one rating.

    >>> parse_verdict("I would rather not rate this.").unscored_reason
    'the reply evaluates neither A1 nor A2'
    """
    texts = _texts(reply)
    if not texts:
        return Verdict(
            scores=None, judge=judge, unscored_reason=f"the reply evaluates neither {' nor '.join(ANSWERS)}"
        )
    read = {place: _read(texts[place]) for place in product(ANSWERS, CRITERIA)}
    problems = [f"{' '.join(place)}: {found}" for place, found in read.items() if isinstance(found, str)]
    if problems:
        return Verdict(scores=None, judge=judge, unscored_reason="; ".join(problems))
    rated = {place: found for place, found in read.items() if not isinstance(found, str)}
    return Verdict(
        scores={
            answer: {criterion: rated[answer, criterion][0] for criterion in CRITERIA} for answer in ANSWERS
        },
        reasons={
            answer: {criterion: rated[answer, criterion][1] for criterion in CRITERIA} for answer in ANSWERS
        },
        judge=judge,
    )


def released_verdict(record: Mapping[str, Sequence[float]], *, judge: str = "") -> Verdict:
    """The verdict in a released result file: `A1_C123_scores` and `A2_C123_scores`, each overall, C1, C2, C3."""
    rated = {answer: record[f"{answer}_C123_scores"][1:] for answer in ANSWERS}
    return Verdict(
        scores={answer: dict(zip(CRITERIA, values, strict=True)) for answer, values in rated.items()},
        judge=judge,
    )


def _texts(reply: str) -> defaultdict[tuple[str, str], list[str]]:
    """What the reply says of each criterion, by answer and criterion; several texts where it does so twice."""
    texts = defaultdict(list)
    for answer, section in _sections(reply, _HEADING, _HEADING, ANSWERS):
        for criterion, text in _sections(section, r"(C[1-3])\b", r"\((C[1-3])\)", CRITERIA):
            texts[answer, criterion].append(_CONCLUSION.split(text)[0])
    return texts


def _sections(
    text: str, mark: str, mark_within_line: str, expected: Collection[str]
) -> list[tuple[str, str]]:
    """(name, text up to the next mark) for the marks that begin lines, or for all where these lack a name."""
    marks = list(re.finditer(rf"^[^A-Za-z\n]*{mark}", text, re.MULTILINE))
    if not {match[1] for match in marks}.issuperset(expected):
        marks = list(re.finditer(mark_within_line, text))
    ends = [match.start() for match in marks[1:]] + [len(text)]
    return [(match[1], text[match.end() : end]) for match, end in zip(marks, ends, strict=False)]


def _read(texts: Sequence[str]) -> tuple[float, str] | str:
    """Rating and reason of one criterion, or what is wrong with it."""
    # The last rating of a text counts: one before it is a quotation within the explanation.
    ratings = [found[-1] for text in texts if (found := list(_RATING.finditer(text)))]
    values = {float(rating[1]) for rating in ratings}
    if not values:
        return "no rating"
    if len(values) > 1:
        return f"rated {' and '.join(rating[1] for rating in ratings)}"
    value = values.pop()
    if not LOWEST <= value <= HIGHEST:
        return f"rated {value:g}, expected {LOWEST} to {HIGHEST}"
    explanation = ratings[0].string[: ratings[0].start()].strip(_AROUND_EXPLANATION)
    return value, explanation.removeprefix("Explanation").strip(_AROUND_EXPLANATION)
