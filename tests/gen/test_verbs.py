"""Which sentence is looked at, which verb of a tree, and what is said where no parser is."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sparkles.gen import verbs
from sparkles.gen.verbs import RULES, disagreements, find_pairs_by, pair_in_tree
from sparkles.types import InputError


@dataclass
class Word:
    """A token of spaCy, as far as it is looked at."""

    lemma_: str
    pos_: str = "VERB"
    dep_: str = "ROOT"
    children: list["Word"] = field(default_factory=list)


def noun(lemma: str, dep: str = "dobj") -> Word:
    return Word(lemma, "NOUN", dep)


@pytest.fixture
def fresh_finders() -> Iterator[None]:
    find_pairs_by.cache_clear()
    yield
    find_pairs_by.cache_clear()


def test_the_last_sentence_counts_and_else_the_first() -> None:
    assert RULES("I love gardens. Now plan a picnic in IMAGE#7<Img><ImageHere></Img>.") == ("plan", "picnic")
    assert RULES("Write a poem about IMAGE#7<Img><ImageHere></Img>. It is raining there. Is it?") == (
        "write",
        "poem",
    )


@pytest.mark.parametrize(
    ("tree", "pair"),
    [
        (Word("write", children=[noun("me", "dative"), noun("poem"), noun("song")]), ("write", "poem")),
        (
            Word("be", "AUX", children=[noun("it", "nsubj"), Word("Compare", children=[noun("bridge")])]),
            ("compare", "bridge"),
        ),
        (Word("help", children=[Word("write", dep_="ccomp", children=[noun("poem")])]), None),
        (Word("see", children=[Word("what", "PRON", "dobj")]), None),
        (Word("yes", "INTJ"), None),
    ],
)
def test_of_a_tree_the_verb_closest_to_the_root_with_its_first_noun(
    tree: Word, pair: tuple[str, str] | None
) -> None:
    assert pair_in_tree(tree) == pair


@pytest.mark.usefixtures("fresh_finders")
def test_without_the_parser_rules_stand_in_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benepar", None)
    find = find_pairs_by("auto")
    assert find.name == "rules"
    assert find("Compare the bridges.") == ("compare", "bridge")
    with pytest.raises(
        InputError, match=r"the parser is not installed .*pip install 'sparkles\[stats\]'.*verbs=rules"
    ):
        find_pairs_by("parser")


@pytest.mark.usefixtures("fresh_finders")
def test_the_parser_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = verbs.Finder("parser", lambda sentence: ("parse", sentence))
    monkeypatch.setattr(verbs, "_parser", lambda: finder)
    assert find_pairs_by("auto")("Go on.") == ("parse", "Go on.")


def test_disagreements_are_named(tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.csv"
    labelled.write_text(
        "question,verb,noun\nTell a story.,tell,story\nTell a joke.,tell,story\nDescribe it.,,\n"
    )
    num, [one] = disagreements(RULES, labelled)
    assert (num, one.question, one.found, one.expected) == (
        3,
        "Tell a joke.",
        ("tell", "joke"),
        ("tell", "story"),
    )
    labelled.write_text("question,verb\n")
    with pytest.raises(InputError, match="no column noun; it has"):
        disagreements(RULES, labelled)
