import random
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkles.eval.answers import parse_choice
from sparkles.eval.prompting import load_prompt
from sparkles.nano.corpus import question, random_conversation, slot_words
from sparkles.nano.language import BISON_KINDS, STATEMENTS
from sparkles.nano.pretrain_language import MAX_WORDS_PER_SLOT
from sparkles.nano.pretrain_vision import NUM_QUERY_TOKENS
from sparkles.nano.world import Scene, Split, random_scene
from sparkles.prompt_format import check_tags

KINDS = (*BISON_KINDS, *STATEMENTS)
seeds = st.integers(0, 2**32)
Oracle = Callable[[str, tuple[Scene, Scene]], tuple[str, str, bool]]


@given(seeds, st.sampled_from(["train", "eval"]))
def test_conversations_alternate_and_have_a_scene_of_the_split_for_each_image(
    seed: int, split: Split
) -> None:
    conversation = random_conversation(random.Random(seed), split)
    roles = [message.role for message in conversation.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert sum(len(message.images) for message in conversation.messages) == len(conversation.scenes)
    assert all(scene.split == split for scene in conversation.scenes)
    for message in conversation.messages:
        check_tags(message.content, message.images, "message")


def test_the_same_seed_makes_the_same_conversations_and_another_seed_others() -> None:
    def some(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [message.content for _ in range(10) for message in random_conversation(rng).messages]

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_dialogues_have_their_share_and_every_task_occurs() -> None:
    rng = random.Random(0)
    kinds = Counter(random_conversation(rng, dialogues=0.5).kind for _ in range(1500))
    assert kinds["dialogue"] / kinds.total() == pytest.approx(0.5, abs=0.06)
    assert kinds.keys() == {"dialogue", "caption", "unlike", *KINDS}


@given(seeds)
def test_each_query_token_has_the_words_of_its_fact(seed: int) -> None:
    scene = random_scene(random.Random(seed), "train")
    words = slot_words(scene)
    assert len(words) == NUM_QUERY_TOKENS
    assert all(0 < len(of_slot) <= MAX_WORDS_PER_SLOT for of_slot in words)
    shown = {of_slot[-1]: of_slot[:-1] for of_slot in words[:-2] if of_slot[0] != "nothing"}
    assert shown == {place: thing.words for place, thing in scene.at.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_worded_as_the_benchmarks(kind: str) -> None:
    opening = load_prompt("bison" if kind in BISON_KINDS else "nlvr2").template.partition("$")[0]
    for seed in range(5):
        asked = question(kind, random.Random(seed), "train")
        assert asked.kind == kind
        assert asked.messages[0].content.startswith(opening)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_questions_are_balanced(kind: str) -> None:
    rng = random.Random(kind)
    asked = [question(kind, rng, "train") for _ in range(60)]
    options = ("IMAGE#1", "IMAGE#2") if kind in BISON_KINDS else ("TRUE", "FALSE")
    labels = Counter(parse_choice(one.messages[1].content, options) for one in asked)
    assert labels.keys() == set(options)
    assert min(labels.values()) >= 15


@pytest.mark.parametrize("kind", ["forced_choices", "forced_empty"])
def test_a_forced_choice_is_between_images_that_match_alike_and_both_answers_occur(kind: str) -> None:
    rng = random.Random(5)
    shares = {"forced_choices": 0.0, kind: 1.0}
    asked = [random_conversation(rng, dialogues=0.0, **shares) for _ in range(60)]
    answers = Counter()
    for conversation in asked:
        if conversation.kind == "caption":
            continue
        assert conversation.kind == "forced"
        said = conversation.messages[1].content
        first, second, _ = said.split(". ")
        assert first.rpartition(" ")[2] == second.rpartition(" ")[2]
        assert said.count("nothing") == (2 if kind == "forced_empty" else 0)
        answers[parse_choice(said, ("IMAGE#1", "IMAGE#2"))] += 1
    assert answers.keys() == {"IMAGE#1", "IMAGE#2"}
    assert min(answers.values()) >= 15


def test_further_questions_about_a_pair_are_answered_truly(oracle: Oracle) -> None:
    rng = random.Random(4)
    checked = 0
    while checked < 60:
        conversation = random_conversation(rng, dialogues=0.0)
        for asked, said in zip(conversation.messages[2::2], conversation.messages[3::2], strict=True):
            quoted = re.fullmatch(
                r"Is this statement true: '(.*)'\?|Is it true that (.*)\?|True or false: '(.*)'\?",
                asked.content,
            )
            if quoted:
                (text,) = filter(None, quoted.groups())
                _, _, truth = oracle(text, (conversation.scenes[0], conversation.scenes[1]))
                assert parse_choice(said.content, ("TRUE", "FALSE")) == str(truth).upper()
                checked += 1
