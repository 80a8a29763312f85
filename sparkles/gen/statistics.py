"""What a set of dialogues is like, in numbers: Table 2, and what Figures 4 and 9 draw.

Words are what white space separates; the mention of an image is a word of its message, its tag is none. Messages of
users and of assistants are counted over all turns.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from statistics import fmean
from typing import Any

from sparkles.gen.verb_rules import Pair
from sparkles.gen.verbs import Finder
from sparkles.prompt_format import image_mention, strip_tags
from sparkles.types import Dialogue, InputError

Group = tuple[int, int]
"""A turn, from 1, and the images that its question shows."""

TOP_VERBS, TOP_NOUNS = 20, 4
"""The most common verbs, and nouns of each, that the paper draws (appendix D)."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of one data set."""

    name: str
    num_dialogues: int
    num_unique_images: int
    """By id."""
    num_images: int
    """One for each tag."""
    user_words: Sequence[int]
    """Words of each message, in order."""
    assistant_words: Sequence[int]
    pairs: Mapping[Group, Counter[Pair]]
    """Root verb and object of questions, by turn and images; questions without are in `num_without_pair` alone."""
    num_questions: Mapping[Group, int]
    verbs: str
    """How the pairs were found."""
    answer_words: Counter[str]
    """Each word of the answers in lower case, mentions of images left out."""

    @property
    def all_pairs(self) -> Counter[Pair]:
        return sum(self.pairs.values(), Counter())

    @property
    def num_without_pair(self) -> int:
        return sum(self.num_questions.values()) - self.all_pairs.total()

    def table(self) -> dict[str, float]:
        """Table 2 and what belongs to it, by the names of its columns."""
        pairs = self.all_pairs
        return {
            "dialogues": self.num_dialogues,
            "unique images": self.num_unique_images,
            "total images": self.num_images,
            "images per dialogue": self.num_images / self.num_dialogues,
            "turns per dialogue": len(self.assistant_words) / self.num_dialogues,
            "mean words of users": fmean(self.user_words),
            "mean words of assistants": fmean(self.assistant_words) if self.assistant_words else 0.0,
            "questions": sum(self.num_questions.values()),
            "with verb and object": pairs.total(),
            "different pairs": len(pairs),
            "pairs that occur once": sum(count == 1 for count in pairs.values()),
        }

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            **self.table(),
            "verbs": self.verbs,
            "questions_by_group": {group_name(group): number for group, number in self.num_questions.items()},
            "pairs": {" ".join(pair): count for pair, count in self.all_pairs.most_common()},
        }


def summarize(name: str, dialogues: Iterable[Dialogue], find: Finder) -> Statistics:
    """Count one data set.

    Raises:
        InputError: it is empty.
    """
    num_dialogues = num_images = 0
    unique: set[str] = set()
    user_words, assistant_words = [], []
    pairs: defaultdict[Group, Counter[Pair]] = defaultdict(Counter)
    num_questions: Counter[Group] = Counter()
    answer_words: Counter[str] = Counter()
    for dialogue in dialogues:
        num_dialogues += 1
        num_images += len(dialogue.images)
        unique |= {str(image.image_id) for image in dialogue.images}
        for index, message in enumerate(dialogue.messages):
            words = strip_tags(message.content).split()
            if message.role == "assistant":
                assistant_words.append(len(words))
                answer_words.update(_plain_words(message.content))
                continue
            user_words.append(len(words))
            group = (index // 2 + 1, len(message.images))
            num_questions[group] += 1
            if pair := find(message.content):
                pairs[group][pair] += 1
    if not num_dialogues:
        raise InputError(f"{name} holds no dialogues, so there is nothing to count")
    return Statistics(
        name=name,
        num_dialogues=num_dialogues,
        num_unique_images=len(unique),
        num_images=num_images,
        user_words=user_words,
        assistant_words=assistant_words,
        pairs={group: pairs[group] for group in sorted(num_questions)},
        num_questions=dict(sorted(num_questions.items())),
        verbs=find.name,
        answer_words=answer_words,
    )


def group_name(group: Group) -> str:
    """
    >>> group_name((1, 2)), group_name((2, 1))
    ('turn 1, 2 images', 'turn 2, 1 image')
    """
    turn, images = group
    return f"turn {turn}, {images} image{'' if images == 1 else 's'}"


def top_pairs(
    pairs: Counter[Pair], num_verbs: int = TOP_VERBS, num_nouns: int = TOP_NOUNS
) -> list[tuple[str, list[tuple[str, int]]]]:
    """The most common verbs, each with its most common nouns; ties in the order of the alphabet.

    >>> top_pairs(Counter({("write", "poem"): 3, ("write", "song"): 1, ("plan", "trip"): 2}), num_nouns=1)
    [('write', [('poem', 3)]), ('plan', [('trip', 2)])]
    """
    by_verb = {
        verb: sorted(((noun, pairs[verb, noun]) for _, noun in group), key=lambda one: (-one[1], one[0]))
        for verb, group in groupby(sorted(pairs), key=itemgetter(0))
    }
    verbs = sorted(by_verb, key=lambda verb: (-sum(count for _, count in by_verb[verb]), verb))
    return [(verb, by_verb[verb][:num_nouns]) for verb in verbs[:num_verbs]]


def _plain_words(content: str) -> list[str]:
    without = re.sub(rf"{image_mention('')}\w+", " ", strip_tags(content))
    return re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", without.lower())
