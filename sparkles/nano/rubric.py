"""The miniature's judge: rates a dialogue by checking its claims against the scenes, and says why.

It reads exactly what an LLM judge reads, the dialogue and the images' captions. Because the captions of the scenes
world are complete, each request's true answer can be derived from them and every claim be checked:

* C1, image understanding: how many of the claims about objects, places, counts and backgrounds hold. A claim about an
  object earns a share for each attribute that is right.
* C2, coherence: whether what is said of each image fits that image better than the others of the dialogue, whether
  conclusions across images (most, more, the same, shown by) are right, and whether the second answer contradicts the
  first.
* C3, relevance and completeness: how many of the facts that the request asks for are stated correctly.

Each is a share v in [0, 1], rated 1 + 9 v. What has to be right for that is a judge's standard, see `STANDARDS`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sparkles.nano.dialogues import CONCLUSIONS, Claim, answer, claims, parse_request
from sparkles.nano.language import NUMBERS, parse_caption
from sparkles.nano.world import COLORS, Scene
from sparkles.prompt_format import strip_tags
from sparkles.types import Dialogue, Verdict

Rated = tuple[float, str]  # share in [0, 1], reason


@dataclass(frozen=True)
class Standard:
    """What a judge asks of claims."""

    earns: Callable[[float], float]
    """What a claim about one image is worth of which this share holds."""
    essence: Callable[[Claim], Hashable]
    """What of a claim has to be as the true answer has it."""


def _without_size(claim: Claim) -> Claim:
    return claim._replace(value=(claim.value[0], *claim.value[2:])) if claim.kind == "thing" else claim


def _topic(claim: Claim) -> tuple[str, str]:
    return (
        claim.kind,
        "" if claim.kind == "most" else claim.image_id,
    )  # which image it is would have to be seen


STANDARDS: Mapping[str, Standard] = {
    "fair": Standard(lambda share: share, lambda claim: claim),
    "strict": Standard(lambda share: float(share == 1), lambda claim: claim),
    "lenient": Standard(lambda share: float(share > 0), _without_size),
    "blind": Standard(lambda share: 1.0, _topic),
}
"""fair: an object earns a share for each attribute. strict: all of its attributes or nothing. lenient: one right
attribute will do, and sizes do not matter. blind: does not look at the images, so whatever is to the point holds."""


class RubricJudge:
    """Rates two-turn dialogues of the scenes world; needs no network and always gives the same verdict."""

    def __init__(self, *, standard: Literal["fair", "strict", "lenient", "blind"] = "fair") -> None:
        self.name = "rubric-1" if standard == "fair" else f"rubric-1, {standard}"
        self._standard = STANDARDS[standard]

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict]:
        return [self._verdict(dialogue) for dialogue in dialogues]

    def _verdict(self, dialogue: Dialogue) -> Verdict:
        try:
            turns = _turns(dialogue)
        except ValueError as error:
            return Verdict(scores=None, judge=self.name, unscored_reason=str(error))
        scores: dict[str, dict[str, float]] = {}
        reasons: dict[str, dict[str, str]] = {}
        for index, turn in enumerate(turns):
            rated = {
                "C1": _understanding(turn, self._standard),
                "C2": _coherence(turn, turns[index - 1] if index else None, self._standard),
                "C3": _completeness(turn, self._standard),
            }
            scores[f"A{index + 1}"] = {name: round(1 + 9 * share, 2) for name, (share, _) in rated.items()}
            reasons[f"A{index + 1}"] = {name: reason for name, (_, reason) in rated.items()}
        return Verdict(scores=scores, reasons=reasons, judge=self.name)


@dataclass(frozen=True)
class _Turn:
    scenes: Mapping[str, Scene]  # every image so far
    said: tuple[Claim, ...]
    wanted: tuple[Claim, ...]  # claims of the true answer
    kind: str


def _turns(dialogue: Dialogue) -> list[_Turn]:
    scenes: dict[str, Scene] = {}
    turns = []
    for user, assistant in zip(dialogue.messages[::2], dialogue.messages[1::2], strict=True):
        scenes = scenes | {str(image.image_id): parse_caption(image.caption) for image in user.images}
        request = parse_request(strip_tags(user.content), list(scenes))
        if request is None:
            raise ValueError(f"not a request of the scenes world: {strip_tags(user.content)!r}")
        if unknown := {*request.new, request.reference} - {"", *scenes}:
            raise ValueError(f"the request names images that were not shown: {', '.join(sorted(unknown))}")
        wanted = tuple(claims(answer(request, scenes)))
        turns.append(_Turn(scenes, tuple(claims(assistant.content)), wanted, request.kind))
    return turns


def credit(claim: Claim, scene: Scene | None) -> float:
    """How far a claim about one image holds of a scene, 0 to 1.

    >>> scene = parse_caption("one object on a dark background: a big red star at the top-left.")
    >>> credit(Claim("thing", "7", ("top-left", "big", "blue", "star")), scene)
    0.6666666666666666
    """
    if scene is None:
        return 0.0
    if claim.kind == "count":
        return float(claim.value[0] == NUMBERS[scene.count])
    if claim.kind == "background":
        return float(claim.value[0] == scene.background)
    if claim.kind == "absent":
        return float(not scene.places_with(claim.value[0]))
    if claim.kind == "located":
        word, place = claim.value
        return float(place in scene.places_with(word))
    place, *words = claim.value
    thing = scene.at.get(place)
    return sum(a == b for a, b in zip(words, thing.words, strict=True)) / 3 if thing else 0.0


def _facts(said: Sequence[Claim]) -> list[Claim]:
    return [claim for claim in said if claim.kind not in CONCLUSIONS]


def _understanding(turn: _Turn, standard: Standard) -> Rated:
    facts = _facts(turn.said)
    if not facts:
        return 0.0, "It says nothing checkable about any image."
    credits = [standard.earns(credit(claim, turn.scenes.get(claim.image_id))) for claim in facts]
    wrong = [_spell(claim) for claim, value in zip(facts, credits, strict=True) if value < 1]
    reason = f"{len(facts) - len(wrong)} of {len(facts)} claims hold."
    return sum(credits) / len(facts), reason + (f" Not quite: {'; '.join(wrong[:3])}." if wrong else "")


def _coherence(turn: _Turn, earlier: _Turn | None, standard: Standard) -> Rated:
    parts, reasons = [], []
    asked = list(dict.fromkeys(claim.image_id for claim in _facts(turn.wanted)))
    own = [_fits_best(image_id, turn, standard) for image_id in asked]
    parts.append(sum(own) / len(own))
    reasons.append(f"{sum(own)} of {len(own)} images are told apart from the others.")
    concluded = {standard.essence(claim) for claim in turn.wanted if claim.kind in CONCLUSIONS}
    if concluded:
        said = {standard.essence(claim) for claim in turn.said if claim.kind in CONCLUSIONS}
        right = len(concluded & said)
        parts.append(right / max(len(concluded), len(said)))
        reasons.append(f"{right} of {len(concluded)} conclusions across images are right.")
    share = sum(parts) / len(parts)
    if earlier is not None:
        contradictions = _contradictions(turn, earlier)
        if contradictions:
            share *= 0.5
            reasons.append(f"It contradicts the first answer on {_spell(contradictions[0])}.")
    return share, " ".join(reasons)


def _fits_best(image_id: str, turn: _Turn, standard: Standard) -> bool:
    """Whether what is said of the image fits it, and fits no other image of the dialogue better."""
    facts = [claim for claim in _facts(turn.said) if claim.image_id == image_id]
    if not facts:
        return False
    fits = {
        other: sum(standard.earns(credit(claim, scene)) for claim in facts)
        for other, scene in turn.scenes.items()
    }
    return fits[image_id] >= 0.75 * len(facts) and fits[image_id] == max(fits.values())


def _contradictions(turn: _Turn, earlier: _Turn) -> list[Claim]:
    def key(claim: Claim) -> tuple[str, ...]:
        if claim.kind in ("located", "absent"):  # both say where an object is
            return "where", claim.image_id, claim.value[0]
        return claim.kind, claim.image_id, claim.value[0] if claim.kind == "thing" else ""

    before = {key(claim): claim for claim in _facts(earlier.said)}
    return [claim for claim in _facts(turn.said) if before.get(key(claim), claim) != claim]


def _completeness(turn: _Turn, standard: Standard) -> Rated:
    if turn.kind in ("story", "continue"):  # a story may be about any object of each image
        asked = {claim.image_id for claim in _facts(turn.wanted)}
        told = {
            claim.image_id
            for claim in turn.said
            if claim.kind == "thing" and standard.earns(credit(claim, turn.scenes.get(claim.image_id))) == 1
        }
        stated, wanted = len(asked & told), len(asked)
    else:
        asked_for = {standard.essence(claim) for claim in turn.wanted}
        stated, wanted = len(asked_for & {standard.essence(claim) for claim in turn.said}), len(asked_for)
    return stated / wanted, f"{stated} of {wanted} facts asked for are stated correctly."


def _spell(claim: Claim) -> str:
    subject = f"IMAGE#{claim.image_id}" if claim.image_id else "no image"
    if claim.kind == "thing":
        place, *words = claim.value
        return f"{subject} has a {' '.join(words)} at the {place}"
    if claim.kind == "located":
        word, place = claim.value
        return f"{subject} has the {word}{' object' if word in COLORS else ''} at the {place}"
    if claim.kind == "absent":
        return f"{subject} has no {claim.value[0]}"
    unit = " objects" if claim.kind == "count" else " background"
    return f"{subject} has {claim.value[0]}{unit}"
