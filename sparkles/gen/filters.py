"""Which well-formed dialogues to leave out, and why.

Each filter is a `Filter` of `sparkles.gen.recipes`: it says in words what is wrong with a dialogue, or "". `apply`
runs several over a data set; a recipe may name them in its configuration (`gen.recipe.filters`). Those that compare a
dialogue with earlier ones come last, as they remember what they let pass.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from sparkles.gen.extras import needs
from sparkles.gen.recipes import Filter
from sparkles.gen.verbs import find_pairs_by
from sparkles.prompt_format import image_mention, strip_tags
from sparkles.types import Dialogue, InputError, Message

_MENTION = re.compile(rf"\b{image_mention('')}\w+")
_WORD = re.compile(r"[a-z0-9]+")
_SENTENCE = re.compile(r"[^.!?]+[.!?]*")


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A dialogue that a filter objected to."""

    index: int
    """In the data set, from 0."""
    filter: str
    reason: str
    dialogue: Dialogue


def apply(
    filters: Mapping[str, Filter], dialogues: Iterable[Dialogue]
) -> tuple[list[Dialogue], list[Removed]]:
    """What all filters let pass, and for the rest the first that did not."""
    kept, removed = [], []
    for index, dialogue in enumerate(dialogues):
        for name, check in filters.items():
            if reason := check(dialogue):
                removed.append(Removed(index=index, filter=name, reason=reason, dialogue=dialogue))
                break
        else:
            kept.append(dialogue)
    return kept, removed


def demonstrations(
    dialogues: Sequence[Dialogue], *, min_words: int = 100, verbs: Literal["auto", "parser", "rules"] = "auto"
) -> tuple[list[Dialogue], list[Removed]]:
    """Those fit to show a writer how it is done: nobody else asks for the same, and the answers are long.

    The paper has 661 and 441 of SparklesDialogueCC, with two and three images in the first turn (appendix F).
    """
    find = find_pairs_by(verbs)
    pairs = [find(dialogue.messages[0].content) for dialogue in dialogues]
    filters: dict[str, Filter] = {
        "long_answers": LongAnswers(min_words=min_words),
        "lone_pair": UniquePair(
            verbs=verbs, repeated=[pair for pair, num in Counter(pairs).items() if pair and num > 1]
        ),
    }
    return apply(filters, dialogues)


class LongAnswers:
    """Wants answers of at least `min_words` words."""

    def __init__(self, *, min_words: int = 100) -> None:
        self.min_words = min_words

    def __call__(self, dialogue: Dialogue) -> str:
        words = [len(message.content.split()) for message in dialogue.messages if message.role == "assistant"]
        if min(words, default=0) >= self.min_words:
            return ""
        return f"words of each answer: {', '.join(map(str, words))}; expected at least {self.min_words}"


class UniquePair:
    """Wants first questions with a root verb and an object that no dialogue before had.

    Args:
        verbs: how they are found, see `sparkles.gen.verbs`.
        repeated: pairs that are refused from the start.
    """

    def __init__(
        self,
        *,
        verbs: Literal["auto", "parser", "rules"] = "auto",
        repeated: Iterable[Sequence[str]] = (),
    ) -> None:
        self._find = find_pairs_by(verbs)
        self._seen = {tuple(pair) for pair in repeated}

    def __call__(self, dialogue: Dialogue) -> str:
        pair = self._find(dialogue.messages[0].content)
        if pair is None:
            return "the first question has no verb with an object"
        if pair in self._seen:
            return f"another dialogue asks to {' '.join(pair)}"
        self._seen.add(pair)
        return ""


class NearDuplicate:
    """Wants questions unlike those of dialogues before: ROUGE-L at most `threshold`, as in Self-Instruct.

    Mentions of images count as one word, whichever they are. The score is the F-measure of the longest common
    subsequence of words, without stemming; rapidfuzz computes it as 1 - indel distance / (length + length), which is
    the same number, fast enough to compare 10,000 questions with each other.

    Args:
        threshold: highest score of a question that is new.
        turn: whose questions are compared, from 1.
    """

    def __init__(self, *, threshold: float = 0.7, turn: int = 1) -> None:
        with needs("figures"):
            from rapidfuzz import process
            from rapidfuzz.distance import Indel
        if not 0 < threshold <= 1:
            raise InputError(f"threshold is {threshold}, expected more than 0 and at most 1")
        self.threshold = threshold
        self.turn = turn
        self._closest = lambda words, known: process.extractOne(
            words, known, scorer=Indel.normalized_similarity, processor=None, score_cutoff=threshold
        )
        self._letters: dict[str, str] = {}
        self._kept: list[str] = []
        self._texts: list[str] = []

    def __call__(self, dialogue: Dialogue) -> str:
        questions = [message.content for message in dialogue.messages if message.role == "user"]
        if len(questions) < self.turn:
            return ""
        question = _MENTION.sub("image", strip_tags(questions[self.turn - 1]))
        # A letter for each word makes of the words a string, which rapidfuzz compares fastest.
        letters = "".join(
            self._letters.setdefault(word, chr(len(self._letters))) for word in _words(question)
        )
        closest = self._closest(letters, self._kept)
        if closest is not None and closest[1] > self.threshold:
            return f"ROUGE-L {closest[1]:.2f} with {self._texts[closest[2]]!r}"
        self._kept.append(letters)
        self._texts.append(question)
        return ""


class GivesAway:
    """Wants questions that leave it to the pictures to show what is in them.

    A question that tells can be answered blindly, and teaches a model not to look.

    Args:
        rules: those of `RULES` to apply, by name; their names begin the reasons.
    """

    def __init__(
        self, *, rules: Sequence[str] = ("copies_caption", "describes_picture", "speaks_of_caption")
    ) -> None:
        if unknown := set(rules) - RULES.keys():
            raise InputError(
                f"rules: unknown {', '.join(sorted(unknown))}; expected some of {', '.join(RULES)}"
            )
        self._rules = {name: RULES[name] for name in rules}

    def __call__(self, dialogue: Dialogue) -> str:
        for message in dialogue.messages:
            for name, rule in self._rules.items():
                if message.role == "user" and (found := rule(message)):
                    return f"{name}: {found!r}"
        return ""


LONGEST_COPY = 6
"""Words in a row that a question may not share with a caption; a shorter caption may not be copied as a whole."""
_DESCRIPTION = re.compile(
    rf"{image_mention('')}\w+\s*(?:"
    r"(?:,\s*|\(\s*)?(?:which|that|showing|depicting|featuring|picturing|displaying)\s+\w+|"
    r"(?:shows|depicts|features|displays|portrays|contains|illustrates)\s+(?:a|an|the|some|two|three|several|many|people)\b|"
    r"\(\s*(?:a|an|the|of|with)\s+\w+)"
)
_OF_THE_CAPTION = re.compile(
    r"\b(?:(?:according to|based on|in|from|per) (?:the|its|their|this|each) (?:image |picture )?"
    r"(?:caption|description|annotation)s?"
    r"|(?:caption|description|annotation)s? (?:says?|states?|mentions?|provided|given)"
    r"|as (?:described|mentioned|stated) (?:in|by))",
    re.IGNORECASE,
)


def copies_caption(message: Message) -> str:
    """Words in a row that the question shares with the caption of one of its images.

    >>> from sparkles.types import Image
    >>> beach = Image(image_id=7, caption="A brown dog runs along the wet sand of a beach.")
    >>> question = "Why does a brown dog run along the wet sand of a beach in IMAGE#7<Img><ImageHere></Img>?"
    >>> copies_caption(Message(role="user", content=question, images=(beach,)))
    'along the wet sand of a beach'
    """
    question = _words(strip_tags(message.content))
    for image in message.images:
        caption = _words(image.caption)
        match = SequenceMatcher(None, question, caption, autojunk=False).find_longest_match()
        if caption and match.size >= min(LONGEST_COPY, len(caption)):
            return " ".join(question[match.a : match.a + match.size])
    return ""


def describes_picture(message: Message) -> str:
    """Where the question says what a picture shows, unless it asks which one does.

    >>> describes_picture(Message(role="user", content="IMAGE#7 shows a dog. Write a story."))
    'IMAGE#7 shows a'
    >>> describes_picture(Message(role="user", content="Which is wetter: IMAGE#7 or IMAGE#8?"))
    ''
    """
    for sentence in _SENTENCE.findall(strip_tags(message.content)):
        asks = sentence.strip().lower().startswith(("which", "what", "who", "does", "do "))
        if not asks and (found := _DESCRIPTION.search(sentence)):
            return found[0]
    return ""


def speaks_of_caption(message: Message) -> str:
    """Where the question speaks of the text that its writer read in place of the picture.

    >>> speaks_of_caption(Message(role="user", content="Based on the description, is IMAGE#7 a beach?"))
    'Based on the description'
    >>> speaks_of_caption(Message(role="user", content="Write a caption for IMAGE#7."))
    ''
    """
    found = _OF_THE_CAPTION.search(strip_tags(message.content))
    return found[0] if found else ""


RULES: Mapping[str, Callable[[Message], str]] = {
    rule.__name__: rule for rule in (copies_caption, describes_picture, speaks_of_caption)
}


def _words(text: str) -> list[str]:
    """As the ROUGE of Self-Instruct splits: letters and digits in lower case."""
    return _WORD.findall(text.lower())
