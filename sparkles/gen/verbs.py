"""The root verb of a question and its direct object, by which data sets are made and shown to be varied.

As in the paper (appendix D, after Self-Instruct): the verb closest to the root of a message's last sentence, with its
first direct noun object; where there is none, of its first sentence. Where spaCy and benepar are installed with their
models (the extra `stats`) they parse, otherwise the rules of `sparkles.gen.verb_rules` do; `Finder.name` says which.

    pip install 'sparkles[stats]'
    python -m spacy download en_core_web_md
    python -c 'import benepar; benepar.download("benepar_en3")'
"""

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Protocol

from sparkles.gen.verb_rules import Pair, pair_by_rules
from sparkles.prompt_format import strip_tags
from sparkles.types import InputError

SPACY_MODEL, BENEPAR_MODEL = "en_core_web_md", "benepar_en3"
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z])")


@dataclass(frozen=True)
class Finder:
    """Finds the pair of a message by what it makes of one sentence."""

    name: str
    in_sentence: Callable[[str], Pair | None]

    def __call__(self, question: str) -> Pair | None:
        """The pair of the last sentence that has one, of the last and the first.

        >>> RULES("That is a fine view! Could you compare the bridge in IMAGE#7 with the one in IMAGE#8?")
        ('compare', 'bridge')
        """
        sentences = _SENTENCE_END.split(strip_tags(question).strip())
        return self.in_sentence(sentences[-1]) or self.in_sentence(sentences[0])


RULES = Finder("rules", pair_by_rules)


@cache
def find_pairs_by(name: Literal["auto", "parser", "rules"]) -> Finder:
    """The parser, the rules, or with "auto" the parser if it is there.

    Raises:
        InputError: "parser", and it is not installed.
    """
    if name == "rules":
        return RULES
    try:
        return _parser()
    except (ImportError, LookupError, OSError) as error:  # no package, no benepar model, no spaCy model
        if name == "auto":
            return RULES
        raise InputError(
            f"the parser is not installed ({error}); pip install 'sparkles[stats]', then "
            f"python -m spacy download {SPACY_MODEL}, and benepar.download({BENEPAR_MODEL!r}) in Python; "
            "or take verbs=rules"
        ) from error


class Token(Protocol):
    """What of a token of spaCy is looked at."""

    pos_: str
    dep_: str
    lemma_: str

    @property
    def children(self) -> Iterable["Token"]: ...


def pair_in_tree(root: Token) -> Pair | None:
    """The verb closest to the root of a dependency tree with its first direct noun object; None if it has none."""
    level = [root]
    while level:
        for token in level:
            if token.pos_ == "VERB":
                nouns = (
                    child.lemma_
                    for child in token.children
                    if child.dep_ in ("dobj", "obj") and child.pos_ == "NOUN"
                )
                noun = next(nouns, None)
                return None if noun is None else (token.lemma_.lower(), noun.lower())
        level = [child for token in level for child in token.children]
    return None


def _parser() -> Finder:
    import benepar  # noqa: F401  # makes its component known to spaCy
    import spacy

    pipeline = spacy.load(SPACY_MODEL)
    pipeline.add_pipe("benepar", config={"model": BENEPAR_MODEL})

    def in_sentence(sentence: str) -> Pair | None:
        parsed = next(iter(pipeline(sentence).sents), None)
        return None if parsed is None else pair_in_tree(parsed.root)

    return Finder(f"spaCy {SPACY_MODEL} + benepar {BENEPAR_MODEL}", in_sentence)


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A question on which a finder and people differ."""

    question: str
    found: Pair | None
    expected: Pair | None


def disagreements(finder: Finder, labelled: Path) -> tuple[int, list[Disagreement]]:
    """How many questions a CSV with the columns question, verb and noun holds, and those that are found otherwise.

    Raises:
        InputError: it lacks a column.
    """
    with labelled.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if missing := {"question", "verb", "noun"} - set(reader.fieldnames or []):
            raise InputError(
                f"{labelled}: no column {', '.join(sorted(missing))}; it has {reader.fieldnames}"
            )
        rows = list(reader)
    differ = []
    for row in rows:
        expected = (row["verb"], row["noun"]) if row["verb"] and row["noun"] else None
        if (found := finder(row["question"])) != expected:
            differ.append(Disagreement(question=row["question"], found=found, expected=expected))
    return len(rows), differ
