"""How the published code reads answers and verdicts, defects included: what its numbers were measured with.

`original_answers` of a benchmark (and `experiment=paper_exact`) reaches `parse_choice`; `sparkles.eval.answers` and
`sparkles.eval.judges` hold the functions of the same names that are right. Recorded results of the published code
(tests/parity) are what these are held to.
"""

import json
import re
from collections.abc import Sequence

from sparkles.eval import judges
from sparkles.types import CRITERIA, Dialogue, Verdict

_PROMPTED = (("true", "false"), ("image#1", "image#2"))
"""Options whose listing in the prompt, "answer (true or false) is", may be repeated by a response."""
_CLOSINGS = (",", ".", ":", " because")
_NUMBER = r"\[?\[?(\d+\.?\d*)\]?\]?"


def parse_choice(text: str, options: Sequence[str]) -> str | None:
    """The first of two options within what follows the last "Therefore"; None where both are, or none is.

    Both may be there if "the answer is <option>" closes with a mark or "because". Differs from `answers.parse_choice`:

    * "not <first option>" means the second, but "not <second option>" means the second as well;
    * an option counts within a longer word: "untrue" is true, IMAGE#12 is IMAGE#1;
    * "image 2" without "#" is no option.

    >>> parse_choice("Therefore, it is not false.", ["TRUE", "FALSE"])
    'FALSE'
    """
    first, second = (option.lower() for option in options)
    _, therefore, conclusion = text.lower().rpartition("therefore")
    if not therefore:
        return None
    conclusion = conclusion.replace("image #1", "image#1").replace("image #2", "image#2")
    for one, other in _PROMPTED:
        conclusion = conclusion.replace(f"answer ({one} or {other}) is", "answer is")
    conclusion = conclusion.replace(f"not {first}", second)
    closed = any(
        f"the answer is {option}{closing}" in conclusion
        for option in (first, second)
        for closing in _CLOSINGS
    )
    places = {option: conclusion.find(option.lower()) for option in options if option.lower() in conclusion}
    if not places or (len(places) == len(options) and not closed):
        return None
    return min(places, key=lambda option: places[option])


def parse_verdict(reply: str, *, judge: str = "") -> Verdict:
    """Ratings of a reply that has all eight numbers in the paper's spelling. Differs from `judges.parse_verdict`:

    * the overall ratings, which are not used, must be there as well;
    * a criterion that is not rated takes the rating of the next one;
    * what else is headed "Evaluating ..." makes the reply unreadable, and any number is a rating.
    """
    if (scores := read_scores(reply)) is None:
        return Verdict(scores=None, judge=judge, unscored_reason="not the eight ratings of the format")
    return judges.released_verdict(
        {f"{answer}_C123_scores": rated for answer, rated in scores.items()}, judge=judge
    )


def read_scores(reply: str) -> dict[str, list[float]] | None:
    """For A1 and A2 the overall rating, C1, C2 and C3, as in released result files; None if one is missing."""
    overall = {answer: re.findall(rf"rating of {answer} is {_NUMBER}", reply) for answer in judges.ANSWERS}
    rated = [criterion_scores(reply, criterion) for criterion in CRITERIA]
    if not all(overall.values()) or any(len(scores) != len(overall) for scores in rated):
        return None
    return {
        answer: [float(found[0]), *(scores[index] for scores in rated)]
        for index, (answer, found) in enumerate(overall.items())
    }


def criterion_scores(reply: str, criterion: str) -> list[float]:
    """The first rating behind `(C1)` in each part that "Evaluating ..." begins."""
    rating = re.compile(rf"\({criterion}\).*?Rating: {_NUMBER}", re.DOTALL)
    matches = map(rating.search, re.split(r"Evaluating [A-Za-z0-9]+", reply))
    return [float(match[1]) for match in matches if match]


def judge_fields(dialogue: Dialogue) -> dict[str, str]:
    """As `judges.judge_fields`, but with the images written as Python writes a list, not as JSON."""
    fields = judges.judge_fields(dialogue)
    return fields | {"images": repr(json.loads(fields["images"]))}
