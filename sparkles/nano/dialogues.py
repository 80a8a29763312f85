"""Two-turn dialogues about several scenes, and how to read their questions and answers back.

Each kind of request has at least three phrasings. `ask` makes a request with its true answer; `parse_request` finds
the request in a text again, so that a judge can say what a complete answer holds; `claims` reads the checkable claims
out of any answer.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sparkles.nano.language import (
    NUMBERS,
    ORDINALS,
    article,
    caption,
    inspect_places,
    listing,
    noun,
    objects,
    yes_no,
)
from sparkles.nano.world import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene
from sparkles.prompt_format import image_mention, image_reference
from sparkles.types import Dialogue, Image, Message

Layout = Literal["word", "sentence"]
"""Images between the words that speak of them (the paper), or all in front of the text."""

Scenes = Mapping[str, Scene]
"""Image id -> scene, in the order in which the dialogue shows them."""

PHRASINGS: Mapping[str, tuple[str, ...]] = {
    "describe": ("Describe {images}.", "What can you see in {images}?", "Tell me about {images} in detail."),
    "most": (
        "Which image has the most objects, {images}?",
        "Count the objects in {images} and tell me which has the most.",
        "Where are the most objects, in {images}?",
    ),
    "find": (
        "Where is the {noun} in {images}?",
        "Find the {noun} in {images}.",
        "Is there {a_noun} in {images}, and where?",
    ),
    "story": (
        "Tell a story with {images}.",
        "Make up a short tale about {images}.",
        "Invent a story that shows {images}.",
    ),
    "differ": (
        "How does {images} differ from {reference}?",
        "Compare {images} with {reference}.",
        "What is different between {images} and {reference}?",
    ),
    "also": (
        "Does {images} also show the {noun} of {reference}?",
        "Can you find the {noun} of {reference} in {images} too?",
        "Is the {noun} of {reference} also in {images}?",
    ),
    "most_now": (
        "Describe {images}. Which of all images has the most objects now?",
        "Tell me about {images} and say which of all images has the most objects.",
        "What is in {images}, and which of all images has the most objects?",
    ),
    "continue": (
        "Continue the story with {images}.",
        "What happens next in {images}?",
        "Let the story go on in {images}.",
    ),
}
FIRST_TURN, LATER_TURN = ("describe", "most", "find", "story"), ("differ", "also", "most_now")


@dataclass(frozen=True)
class Request:
    """What a user wants: `new` are the ids shown with it, `reference` an earlier id it goes back to."""

    kind: str
    new: tuple[str, ...]
    reference: str = ""
    word: str = ""


class Claim(NamedTuple):
    """Something checkable that an answer says of an image."""

    kind: str
    image_id: str
    value: tuple[str, ...]


CONCLUSIONS = ("most", "more_or_fewer", "background_again", "shown_by")


# --- image ids ------------------------------------------------------------------------------------------------


def image_ids(dialogue_number: int, count: int) -> list[str]:
    """Ids of a dialogue's images: its number and then 01, 02, ...

    Ids are unique in a data set, and a small language model can still tell from an id which image of the dialogue
    comes next; it confused ids that were drawn at random.

    >>> image_ids(1234, 2)
    ['123401', '123402']
    """
    return [f"{dialogue_number}{position:02d}" for position in range(1, count + 1)]


# --- asking ---------------------------------------------------------------------------------------------------


def possible_requests(
    new: Sequence[str], scenes: Scenes, rng: random.Random, told_story: bool = False
) -> list[Request]:
    """The requests that `new` images allow, given all images so far (`scenes` includes the new ones)."""
    earlier = [image_id for image_id in scenes if image_id not in new]
    requests = []
    if not earlier:
        requests += [Request("describe", tuple(new)), Request("story", tuple(new))]
        if len(new) > 1 and _most(new, scenes):
            requests.append(Request("most", tuple(new)))
        words = [w for w in _words(new, scenes) if all(len(scenes[i].places_with(w)) <= 1 for i in new)]
        if words:
            requests.append(Request("find", tuple(new), word=rng.choice(words)))
        return requests
    reference = rng.choice(earlier)
    requests.append(Request("differ", tuple(new), reference))
    if _most(scenes, scenes):
        requests.append(Request("most_now", tuple(new)))
    unique = [
        w
        for w in _words([reference], scenes)
        if all(len(scenes[i].places_with(w)) <= 1 for i in (reference, *new))
    ]
    if unique:
        requests.append(Request("also", tuple(new), reference, rng.choice(unique)))
    if told_story:
        requests.append(Request("continue", tuple(new), earlier[0]))
    return requests


def phrase(
    request: Request,
    scenes: Scenes,
    rng: random.Random,
    layout: Layout = "word",
    phrasings: Mapping[str, Sequence[str]] = PHRASINGS,
) -> str:
    """Words for a request; an earlier image is named by id or by number ("the first image")."""
    images = [image_reference(i) if layout == "word" else image_mention(i) for i in request.new]
    reference = ""
    if request.reference:
        position = list(scenes).index(request.reference)
        ordinals = [f"the {ordinal} image" for ordinal in ORDINALS[position : position + 1]]
        reference = rng.choice([image_mention(request.reference), *ordinals])
    text = rng.choice(phrasings[request.kind]).format(
        images=listing(images),
        reference=reference,
        noun=noun(request.word) if request.word else "",
        a_noun=article(noun(request.word)) if request.word else "",
    )
    return text if layout == "word" else " ".join([*map(image_reference, request.new), text])


def answer(request: Request, scenes: Scenes) -> str:
    """The true and complete answer."""
    new, reference = request.new, request.reference
    if request.kind == "describe":
        return " ".join(_describe(i, scenes) for i in new)
    if request.kind == "most":
        return f"{_counts(new, scenes)} So {image_mention(_most(new, scenes))} has the most objects."
    if request.kind == "most_now":
        described = " ".join(_describe(i, scenes) for i in new)
        earlier = [i for i in scenes if i not in new]
        return f"{described} {_counts(earlier, scenes)} So {image_mention(_most(scenes, scenes))} has the most objects."
    if request.kind == "find":
        return " ".join(_locate(i, request.word, scenes) for i in new)
    if request.kind == "also":
        lines = [_locate(i, request.word, scenes) for i in (reference, *new)]
        having = [image_mention(i) for i in (reference, *new) if scenes[i].places_with(request.word)]
        return f"{' '.join(lines)} So it is shown by {listing(having)}."
    if request.kind == "differ":
        lines = [
            f"{_count(i, scenes)} on {article(scenes[i].background)} background." for i in (reference, *new)
        ]
        verdicts = [f"So {image_mention(i)} has {_difference(scenes[i], scenes[reference])}." for i in new]
        return " ".join([*lines, *verdicts])
    if request.kind == "story":
        lived = [_lived(i, scenes) for i in new]
        return f"Once {'. Then '.join(lived)}. " + (
            "They became friends." if len(new) > 1 else "It was happy there."
        )
    if request.kind == "continue":
        return f"Next {'. Then '.join(_lived(i, scenes) for i in new)}. They all met {_lived(reference, scenes)}."
    raise ValueError(f"unknown request kind {request.kind!r}, expected one of {', '.join(PHRASINGS)}")


def _words(image_ids: Sequence[str], scenes: Scenes) -> list[str]:
    return sorted({word for i in image_ids for thing in scenes[i].at.values() for word in thing.words[1:]})


def _most(image_ids: Sequence[str] | Scenes, scenes: Scenes) -> str:
    """Id of the image with most objects, "" on a tie."""
    counts = sorted((scenes[i].count, i) for i in image_ids)
    return counts[-1][1] if len(counts) == 1 or counts[-1][0] > counts[-2][0] else ""


def _describe(image_id: str, scenes: Scenes) -> str:
    return f"{image_mention(image_id)} has {caption(scenes[image_id])}"


def _count(image_id: str, scenes: Scenes) -> str:
    return f"{image_mention(image_id)} has {objects(scenes[image_id].count)}"


def _counts(image_ids: Sequence[str], scenes: Scenes) -> str:
    return " ".join(f"{_count(i, scenes)}." for i in image_ids)


def _locate(image_id: str, word: str, scenes: Scenes) -> str:
    scene = scenes[image_id]
    places = scene.places_with(word)
    where = f"the {noun(word)} is at the {places[0]}" if places else f"there is no {noun(word)}"
    return f"In {image_mention(image_id)}: {', '.join(inspect_places(scene, word))}, so {where}."


def _difference(scene: Scene, reference: Scene) -> str:
    """
    >>> dark, plain = (Scene(background, (None,) * 6) for background in ("dark", "plain"))
    >>> _difference(dark, plain)
    'as many objects, and dark for plain no, another background'
    """
    order = (scene.count > reference.count) - (scene.count < reference.count)
    count = {1: "more objects", -1: "fewer objects", 0: "as many objects"}[order]
    same = scene.background == reference.background
    compared = f"{scene.background} for {reference.background} {yes_no(same)}"
    return f"{count}, and {compared}, {'the same' if same else 'another'} background"


def _lived(image_id: str, scenes: Scenes) -> str:
    place, thing = next(iter(scenes[image_id].at.items()))
    return f"in {image_mention(image_id)} {article(str(thing))} lived at the {place}"


# --- whole dialogues ------------------------------------------------------------------------------------------


def make_dialogue(
    shown: Sequence[tuple[str, Scene]],
    images_per_turn: Sequence[int],
    rng: random.Random,
    *,
    layout: Layout = "word",
    kinds: Sequence[str] = tuple(PHRASINGS),
    phrasings: Mapping[str, Sequence[str]] = PHRASINGS,
    dialogue_id: str = "",
) -> Dialogue:
    """A dialogue whose turn t shows the next `images_per_turn[t]` images; its answers are true of `shown`.

    Args:
        shown: image ids with the scenes as the author sees them (captions are all an author gets).
        kinds: requests to choose among; where the images allow none of them, among all.
        phrasings: words for each kind, in the form of `PHRASINGS`; of a kind that it lacks, any.
    """
    messages: list[Message] = []
    scenes: dict[str, Scene] = {}
    remaining = list(shown)
    kind = ""
    for count in images_per_turn:
        turn, remaining = remaining[:count], remaining[count:]
        scenes |= dict(turn)
        new = [image_id for image_id, _ in turn]
        possible = possible_requests(new, scenes, rng, told_story=kind == "story")
        request = rng.choice([request for request in possible if request.kind in kinds] or possible)
        kind = request.kind
        images = tuple(
            Image(image_id=int(i) if i.isdigit() else i, caption=caption(scene)) for i, scene in turn
        )
        asked = phrase(request, scenes, rng, layout, {**PHRASINGS, **phrasings})
        messages.append(Message(role="user", content=asked, images=images))
        messages.append(Message(role="assistant", content=answer(request, scenes)))
    return Dialogue(messages=tuple(messages), dialogue_id=dialogue_id)


# --- reading back ---------------------------------------------------------------------------------------------

_MENTION = r"IMAGE#(\w+)"
_MENTIONS = r"(?P<images>IMAGE#\w+(?:(?:, | and )IMAGE#\w+)*)"
_NOUN = rf"(?P<word>{'|'.join((*COLORS, *SHAPES))})(?: object)?"


def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for field, regex in (
        ("images", _MENTIONS),
        ("noun", _NOUN),
        ("a_noun", "an? " + _NOUN),
        ("reference", r"(?P<reference>IMAGE#\w+|the \w+ image)"),
    ):
        pattern = pattern.replace(re.escape("{" + field + "}"), regex)
    return re.compile(rf"(?:IMAGE#\w+ )*{pattern}")


_PATTERNS = [
    (kind, template, _pattern(template)) for kind, templates in PHRASINGS.items() for template in templates
]


def phrasing_of(text: str) -> tuple[str, str] | None:
    """Kind and phrasing of a user message without image tags, or None where it is none of this world's.

    >>> phrasing_of("Describe IMAGE#7 and IMAGE#9.")
    ('describe', 'Describe {images}.')
    """
    return next((found[:2] for found in _PATTERNS if found[2].fullmatch(text.strip())), None)


def parse_request(text: str, image_ids: Sequence[str]) -> Request | None:
    """The request of a user message without image tags, or None where it is none of this world's.

    Args:
        image_ids: ids of all images so far in order, which give "the first image" its meaning.

    >>> parse_request("How does IMAGE#12 differ from the first image?", ["7", "9", "12"])
    Request(kind='differ', new=('12',), reference='7', word='')
    """
    for kind, _, pattern in _PATTERNS:
        if match := pattern.fullmatch(text.strip()):
            found = match.groupdict()
            new = tuple(re.findall(_MENTION, found["images"]))
            reference = found.get("reference") or ""
            if reference.startswith("IMAGE#"):
                reference = reference.removeprefix("IMAGE#")
            elif reference:
                position = (
                    ORDINALS.index(reference.split()[1])
                    if reference.split()[1] in ORDINALS
                    else len(image_ids)
                )
                if position >= len(image_ids):
                    return None
                reference = image_ids[position]
            if kind == "continue":
                reference = next(iter(image_ids), "")
            return Request(kind, new, reference, found.get("word") or "")
    return None


def _one_of(options: Sequence[str] | Mapping[str, object]) -> str:
    return "(" + "|".join(options) + ")"


_CLAIM = re.compile(
    "|".join(
        (
            r"it is shown by (?P<shown_by>IMAGE#\w+(?:(?:, | and )IMAGE#\w+)*)",
            r"IMAGE#(?P<mention>\w+)",
            r"has (?P<most>the most) objects",
            r"(?P<more_or_fewer>more|fewer|as many) objects",
            r"(?P<background_again>the same|another) background",
            rf"(?P<count>{_one_of(NUMBERS)}) objects?",
            rf"(?P<background>{_one_of(BACKGROUNDS)}) background",
            rf"(?P<thing>{_one_of(SIZES)} {_one_of(COLORS)} {_one_of(SHAPES)}) (?:lived )?"
            rf"at the (?P<at>{_one_of(PLACES)})",
            rf"the (?P<located>{_one_of((*COLORS, *SHAPES))})(?: object)? is at the (?P<location>{_one_of(PLACES)})",
            rf"there is no (?P<absent>{_one_of((*COLORS, *SHAPES))})",
        )
    )
)


def claims(text: str) -> list[Claim]:
    """Every checkable claim of an answer, each about the image mentioned last before it.

    >>> claims("IMAGE#7 has one object on a dark background: a big red star at the top-left.")[-1]
    Claim(kind='thing', image_id='7', value=('top-left', 'big', 'red', 'star'))
    """
    found: list[Claim] = []
    current = ""
    for match in _CLAIM.finditer(text):
        groups = {name: value for name, value in match.groupdict().items() if value}
        if "mention" in groups:
            current = groups["mention"]
        elif "shown_by" in groups:
            found.append(Claim("shown_by", "", tuple(sorted(re.findall(_MENTION, groups["shown_by"])))))
        elif "thing" in groups:
            found.append(Claim("thing", current, (groups["at"], *groups["thing"].split())))
        elif "located" in groups:
            found.append(Claim("located", current, (groups["located"], groups["location"])))
        else:
            ((kind, value),) = groups.items()
            found.append(Claim(kind, current, (value,)))
    return found
