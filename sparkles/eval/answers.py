"""Reading the chosen option out of a step-by-step answer. Pure functions on text."""

import re
from collections.abc import Sequence

from sparkles.prompt_format import IMAGE_TAG

_HEDGE = re.compile(
    r"\b(whether|neither|either|unclear|unsure|impossible|not (sure|clear|certain|possible)"
    r"|(cannot|can't|can not|could not|couldn't|unable to) (be )?"
    r"(say|said|decide|determine|tell|judge|know|conclude)\w*)\b[^.,;:!?]*$"
)
_NOT = r"(?! (?:only|just|merely)\b)"
"""Behind a "not": it denies. "Not only X" speaks for X."""
_NEGATION_BEFORE = re.compile(
    rf"(?:\b(?:not|cannot|never)|n't){_NOT}(?: (?:be|the|an?|that|correct|quite|\w+ly))*$"
)
_DENIAL_BEFORE = re.compile(r"(?:\bnot|n't) the case that\b[^.,;:!?]*$")
_NEGATION_BEHIND = re.compile(
    r"^ (?:(?:is|does|do|did|can|could|has|was|were|will|would|should|might)(?: not|n't)|cannot|can't|won't)\b"
    rf"{_NOT}|^ fails to\b"
)
_COMPARED_BEFORE = re.compile(r"\b(?:better|rather) than$")
"""What stands behind it is passed over for something else."""
_IS_BEFORE = re.compile(r"\b(?:is|be)(?: that)?:?$")
_END_BEHIND = re.compile(
    r"^ ?(?:$|[.,;:!?]|(?:because|since|as|and not|but|rather than|instead of|although|while)\b)"
)


def conclusion(option: str) -> str:
    """The sentence that prompts ask for."""
    return f"Therefore, the answer is {option}."


def parse_choice(text: str, options: Sequence[str]) -> str | None:
    """The option that the text behind the last "Therefore" chooses; None where it names none or does not decide.

    Of two options, "not X" means the other. Where several are named, the one behind a closing "... is" counts.

    >>> parse_choice("Both are red. Therefore, the answer (TRUE or FALSE) is **TRUE**.", ["TRUE", "FALSE"])
    'TRUE'
    >>> parse_choice("Therefore, it is not image 1.", ["IMAGE#1", "IMAGE#2"])
    'IMAGE#2'
    >>> parse_choice("Therefore, it is IMAGE#1 or IMAGE#2.", ["IMAGE#1", "IMAGE#2"])
    """
    _, therefore, conclusion = _plain(text).rpartition("therefore")
    if not therefore:
        return None
    patterns = {option: _pattern(option) for option in options}
    conclusion = _without_listings(conclusion, list(patterns.values()))
    choices: list[str] = []
    closing: list[str] = []
    mentions = [
        (match.start(), match.end(), option)
        for option, p in patterns.items()
        for match in p.finditer(conclusion)
    ]
    for start, end, option in sorted(mentions):
        if any(first <= start and end <= last and last - first > end - start for first, last, _ in mentions):
            continue  # a part of another option, as "at the top" is of "at the top-left"
        before, behind = conclusion[:start].rstrip(" '\""), conclusion[end:].lstrip("'\"")
        is_open = _HEDGE.search(before) or _COMPARED_BEFORE.search(before)
        choice = None if is_open else _meant(option, options, before, behind)
        if choice is None:
            continue
        choices.append(choice)
        if _IS_BEFORE.search(before) and _END_BEHIND.search(behind):
            closing.append(choice)
    if len(set(choices)) == 1:
        return choices[0]
    return closing[0] if closing else None


def _plain(text: str) -> str:
    """Lower case, one blank between words, without emphasis and image tags."""
    text = text.replace(IMAGE_TAG, "").replace("’", "'")
    return " ".join(re.sub(r"[*_`]|\\[a-z]*", "", text).lower().split())


def _pattern(option: str) -> re.Pattern[str]:
    """The option as a word of its own: "untrue" is not true, IMAGE#12 is not IMAGE#1, "image 1" is IMAGE#1."""
    return re.compile(rf"(?<!\w){re.escape(option.lower()).replace(re.escape('#'), ' ?#? ?')}(?!\w)")


def _without_listings(text: str, patterns: Sequence[re.Pattern[str]]) -> str:
    """Without brackets that only repeat the options, as the prompt does: "(TRUE or FALSE)"."""
    return re.sub(r" ?\([^()]*\)", lambda m: "" if all(p.search(m[0]) for p in patterns) else m[0], text)


def _meant(option: str, options: Sequence[str], before: str, behind: str) -> str | None:
    """What a mention speaks for: itself, or for "not X" the other of two options."""
    negations = 0
    while match := _NEGATION_BEFORE.search(before):
        negations += 1
        before = before[: match.start()].rstrip()
    negations += bool(_DENIAL_BEFORE.search(before)) + bool(_NEGATION_BEHIND.search(behind))
    if negations % 2 == 0:
        return option
    return next(other for other in options if other != option) if len(options) == 2 else None
