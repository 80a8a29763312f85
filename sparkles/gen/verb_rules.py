"""The root verb of a sentence and its object without a parser: closed word classes and the word order of English.

What it knows of verbs is `verbs.txt` beside this file, and it needs that only where the order does not give the verb
away ("Do the people in the park share a hobby?"). tests/gen/test_verb_rules.py says how far it agrees with people.
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

Pair = tuple[str, str]
"""Verb and object, both in their base form: ("compare", "bridge")."""

_IMAGE = "image#"
_TOKEN = re.compile(r"image#[\w-]+|[^\W\d_]+(?:[-’'][^\W\d_]+)*|\d+|[^\w\s]")
_CONTRACTIONS = [
    (re.compile(rf"\b{short}\b"), long)
    for short, long in [
        ("can't", "can not"),
        ("won't", "will not"),
        ("let's", "let us"),
        (r"(\w+)n't", r"\1 not"),
        (r"(\w+)'m", r"\1 am"),
        (r"(\w+)'re", r"\1 are"),
        (r"(\w+)'ve", r"\1 have"),
        (r"(\w+)'ll", r"\1 will"),
        (r"(\w+)'d", r"\1 would"),
        ("(it|that|this|what|here|there|where|who|how)'s", r"\1 is"),
    ]
]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _map(pairs: str) -> dict[str, str]:
    """
    >>> _map("has:have is:be")
    {'has': 'have', 'is': 'be'}
    """
    return dict(pair.split(":") for pair in pairs.split())


_MODALS = _set("can could will would shall should may might must")
_DO = _set("do does did")
_BE = _set("be am is are was were been being")
_HAVE = _set("have has had")
_AUXILIARIES = _MODALS | _DO | _BE | _HAVE
_WH = _set("what which whose who whom how where when why")
_ARTICLES = _set("a an the my your his its our their")
_NUMBERS = _set("one two three four five six seven eight nine ten")
_DETERMINERS = (
    _ARTICLES
    | _NUMBERS
    | _set(
        "this that these those some any each every both all no another what which many much more most several few her"
    )
)
_SUBJECTS = _set("i you we they he she it there someone anyone everyone")
_OBJECTS = _set("me us him her them you")
_NO_NOUNS = _set(
    "it this that these those something anything everything nothing someone anyone everyone myself yourself itself"
)
_PREPOSITIONS = _set(
    "about above across after against along among around as at before behind below beneath beside between beyond by "
    "despite during except for from in inside into like near of off on onto over past per regarding since than through "
    "throughout to toward towards under until upon versus via with within without"
)
_CONJUNCTIONS = _set("and or but nor so because if when while although though unless whereas whether that")
_PARTICLES = _set("up out down off away back")
_ADVERBS = _set(
    "also please still just now then too again together instead only even ever often rather possibly maybe perhaps "
    "here there first next not already best well"
)
_GREETINGS = _set(
    "please now then and so but next finally great thanks okay ok well yes hi hello alternatively instead"
)
_SUBORDINATORS = _set("if when while since because although based given inspired considering")
_NOUNS_IN_ING = _set(
    "painting building wedding meeting clothing setting ceiling lighting feeling meaning ending evening morning "
    "drawing crossing thing string ring king spring wing beginning greeting opening housing railing"
)
_NOUNS_IN_LY = _set("family assembly butterfly fly lily reply supply anomaly")
_ADJECTIVE = re.compile(
    r".*(?:ive|al|ful|ous|ic|able|ible|less|ed|ing|ary)|short|long|brief|big|small|new|old|good|clear|funny"
)
_PARTICIPLES = _set("made taken seen shown held worn drawn written found given used")
_IRREGULAR_VERBS = _map(
    "has:have had:have is:be are:be am:be was:be were:be been:be does:do did:do made:make gave:give given:give "
    "took:take taken:take went:go gone:go saw:see seen:see wrote:write written:write told:tell found:find "
    "bought:buy brought:bring thought:think drew:draw drawn:draw chose:choose chosen:choose built:build left:leave "
    "kept:keep held:hold spent:spend taught:teach won:win lost:lose began:begin felt:feel said:say shown:show"
)
_IRREGULAR_NOUNS = _map(
    "men:man women:woman children:child feet:foot teeth:tooth mice:mouse geese:goose lives:life leaves:leaf "
    "wolves:wolf knives:knife shelves:shelf movies:movie cookies:cookie ties:tie pies:pie series:series "
    "species:species news:news clothes:clothes lens:lens"
)
_WITH_CLAUSES = _set("be let think believe suppose guess say wish hope wonder")
"""Verbs behind which a noun is no object: "let the story go on", "think the bird could fly"."""
_ENDS = _set(". ! ? ; :")


def pair_by_rules(sentence: str) -> Pair | None:
    """The verb closest to the root of one sentence with its first direct noun object; None if it has no such object.

    >>> pair_by_rules("Based on IMAGE#7, could you please write me a short and funny poem?")
    ('write', 'poem')
    >>> pair_by_rules("Which story does the old bridge in IMAGE#7 tell?")
    ('tell', 'story')
    >>> pair_by_rules("Compare IMAGE#7 with IMAGE#8.")
    """
    words = _words(sentence)
    words = words[_main_clause(words) :]
    place, fronted = _root_verb(words)
    if not 0 <= place < len(words) or not words[place].isalpha():
        return None
    verb = _base_verb(words[place])
    noun = fronted or _object(words, place + 1)
    return (verb, noun) if noun and verb not in _WITH_CLAUSES else None


def _words(sentence: str) -> list[str]:
    text = sentence.lower().replace("’", "'")
    for short, long in _CONTRACTIONS:
        text = short.sub(long, text)
    return [_IMAGE if word.startswith(_IMAGE) else word for word in _TOKEN.findall(text)]


def _main_clause(words: Sequence[str]) -> int:
    """Where the clause of the root begins, behind greetings and adverbials: "Using IMAGE#7, | write ..."."""
    start = _skip_greetings(words, 0)
    if start >= len(words):
        return start
    first = words[start]
    opens = first in _SUBORDINATORS or first.endswith("ing") or first in _PREPOSITIONS
    if opens and _at(words, start + 1) not in _WH:
        for place in range(start + 1, len(words)):
            if words[place] == "," and _starts_clause(words, after := _skip_greetings(words, place + 1)):
                return after
        return next((k for k in range(start + 1, len(words)) if words[k] in _WH | _MODALS | _DO), start)
    if first not in _WH | _AUXILIARIES and words[-1] == "?":  # "I like IMAGE#7, | can you ...?"
        for place in range(start + 1, len(words)):
            if words[place] == "," and _at(words, place + 1) in _WH | _MODALS | _DO:
                return place + 1
    return start


def _skip_greetings(words: Sequence[str], start: int) -> int:
    while start < len(words) and (
        words[start] in _GREETINGS
        or not words[start][0].isalpha()
        or (words[start].endswith("ly") and _at(words, start + 1) == ",")
    ):
        start += 1
    return start


def _starts_clause(words: Sequence[str], place: int) -> bool:
    word = _at(words, place)
    return word in _WH | _AUXILIARIES | _SUBJECTS or word in _verbs()


def _root_verb(words: Sequence[str]) -> tuple[int, str]:
    """Place of the root verb, and its object if that stands before it; place -1 if there is none with an object."""
    first, second = _at(words, 0), _at(words, 1)
    if first in _WH or (first in _PREPOSITIONS and second in _WH):
        return _in_wh_question(words)
    if first in _BE:  # "Is there ...?", "Are you planning ...?"
        return (2 if _at(words, 2).endswith("ing") else -1), ""
    if first in _AUXILIARIES and not (
        first == "have" and second in _ARTICLES
    ):  # "Have a look" is an imperative
        return _behind_subject(words, 1, first), ""
    if first in _SUBJECTS:
        return _in_statement(words), ""
    if first == _IMAGE or first in _DETERMINERS or first in _NO_NOUNS:
        return _finite_verb(words, 1), ""
    return next((k for k, word in enumerate(words) if not _is_adverb(word)), -1), ""


def _in_wh_question(words: Sequence[str]) -> tuple[int, str]:
    start = 1 if words[0] in _WH else 2
    auxiliary = next((k for k in range(start, len(words)) if words[k] in _AUXILIARIES), -1)
    if auxiliary < 0:  # "Who painted ...?", "Which picture shows ...?"
        return (start if words[0] == "who" else _finite_verb(words, start)), ""
    asked = "" if start == 2 else _head(words[1:auxiliary])
    verb, behind = words[auxiliary], _at(words, auxiliary + 1)
    if verb in _HAVE and behind in _DETERMINERS:
        return auxiliary, ""
    if verb in _BE:  # "Which sport are they playing?", "Which image is showing a bird?"
        if behind.endswith("ing"):
            return auxiliary + 1, ""
        clause = [k for k, word in enumerate(words) if word not in _ENDS]
        return (clause[-1], asked) if clause and words[clause[-1]].endswith("ing") else (-1, "")
    if verb in _MODALS and behind in _verbs():  # "What would happen ...?" asks for the subject
        return auxiliary + 1, ""
    return _behind_subject(words, auxiliary + 1, verb), asked


def _behind_subject(words: Sequence[str], start: int, auxiliary: str) -> int:
    """The first verb behind the subject that begins at `start`."""
    if _at(words, start) in _SUBJECTS:
        return next((k for k in range(start + 1, len(words)) if not _is_adverb(words[k])), -1)
    for place in range(start + 1, len(words)):
        word = words[place] if auxiliary not in _HAVE else _base_verb(words[place])
        before = words[place - 1]
        if before in _ARTICLES | _PREPOSITIONS | _NUMBERS or _ADJECTIVE.fullmatch(before):
            continue  # the word is a noun here: "the show", "a good play"
        if word in _verbs() or word == "be":
            return place
    return -1


def _in_statement(words: Sequence[str]) -> int:
    """The verb behind a pronoun: "I would like", "We are opening"; -1 where a form of "be" is all there is."""
    for place in range(1, len(words)):
        word = words[place]
        if word in _HAVE and _at(words, place + 1) in _DETERMINERS:
            return place
        if word in _AUXILIARIES or _is_adverb(word):
            continue
        is_form = words[place - 1] not in _BE or word.endswith(("ing", "ed"))
        return place if is_form and word not in _DETERMINERS | _PREPOSITIONS else -1
    return -1


def _finite_verb(words: Sequence[str], start: int) -> int:
    """The first word that is a verb by its form, and not a noun by what precedes it."""
    return next(
        (
            place
            for place in range(start, len(words))
            if (_base_verb(words[place]) in _verbs() or words[place] in _AUXILIARIES)
            and words[place - 1] not in _ARTICLES | _PREPOSITIONS
            and not words[place].endswith("ing")
        ),
        -1,
    )


def _object(words: Sequence[str], place: int) -> str:
    """The noun that is the direct object of the verb before `place`, or ""."""
    while _is_adverb(_at(words, place)):
        place += 1
    if _at(words, place) in _PARTICLES and _starts_noun(words, place + 1):  # "make up a tale"
        place += 1
    if _at(words, place) == "in" and _at(words, place + 2) in _ARTICLES:  # "describe in detail the ..."
        place += 2
    receiver = _at(words, place)
    if receiver in _OBJECTS | {_IMAGE} and (receiver != "her" or _at(words, place + 1) in _DETERMINERS):
        if _at(words, place + 1) not in _DETERMINERS:
            return ""
        place += 1  # "give me the", "give IMAGE#7 a"
    return _head(words[place:])


def _head(words: Sequence[str]) -> str:
    """The last noun of the noun phrase that the words begin with, or ""."""
    head = ""
    for place, word in enumerate(words):
        behind = _at(words, place + 1)
        if (
            word in {"and", "or", ","}
            and head
            and _ADJECTIVE.fullmatch(head)
            and behind not in _DETERMINERS | {_IMAGE}
        ):
            continue  # "a creative and engaging story"
        if not word[0].isalpha() and not word.isdigit():
            break
        if word in _NO_NOUNS and not _starts_noun(words, place + 1):
            break
        if word in _DETERMINERS or word.isdigit() or _is_adverb(word):
            if head and word in _DETERMINERS:
                break
            continue
        if word in _PREPOSITIONS | _CONJUNCTIONS | _WH | _AUXILIARIES | _SUBJECTS | _PARTICLES | {_IMAGE}:
            break
        if not head and word.endswith("ing") and behind in _DETERMINERS | {_IMAGE}:
            break  # "suggest using the"
        if head and _is_participle(word) and not (behind.isalpha() and _starts_noun(words, place + 1)):
            break  # "the celebration | occurring in"
        if head and _is_participle(word) and behind in _DETERMINERS:
            break  # "the man | wearing a"
        head = word
    return _base_noun(head)


def _starts_noun(words: Sequence[str], place: int) -> bool:
    word = _at(words, place)
    others = _PREPOSITIONS | _CONJUNCTIONS | _WH | _AUXILIARIES | _SUBJECTS
    return word != "" and word[0].isalpha() and word not in others - _DETERMINERS and not _is_adverb(word)


def _is_adverb(word: str) -> bool:
    return word in _ADVERBS or (word.endswith("ly") and word not in _NOUNS_IN_LY)


def _is_participle(word: str) -> bool:
    return word in _PARTICIPLES or (word.endswith(("ing", "ed")) and word not in _NOUNS_IN_ING)


def _base_verb(word: str) -> str:
    """
    >>> [_base_verb(word) for word in ("loves", "planning", "identified", "miss", "has")]
    ['love', 'plan', 'identify', 'miss', 'have']
    """
    if word in _verbs():
        return word
    if word in _IRREGULAR_VERBS:
        return _IRREGULAR_VERBS[word]
    stems = [word.removesuffix(ending) for ending in ("s", "es", "d", "ed", "ing") if word.endswith(ending)]
    stems += [stem[:-1] for stem in stems if stem[-1:] == stem[-2:-1]]  # plann
    stems += [stem[:-1] + "y" for stem in stems if stem.endswith("i")]  # identifi
    return next(
        (stem + ending for stem, ending in product(stems, ("", "e")) if stem + ending in _verbs()), word
    )


def _base_noun(word: str) -> str:
    """
    >>> [_base_noun(word) for word in ("activities", "dishes", "glass", "children", "houses")]
    ['activity', 'dish', 'glass', 'child', 'house']
    """
    if word in _IRREGULAR_NOUNS:
        return _IRREGULAR_NOUNS[word]
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zzes")):
        return word[:-2]
    return word if word.endswith(("ss", "us", "is")) else word.removesuffix("s")


def _at(words: Sequence[str], place: int) -> str:
    return words[place] if 0 <= place < len(words) else ""


@cache
def _verbs() -> frozenset[str]:
    return _set(Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8"))
