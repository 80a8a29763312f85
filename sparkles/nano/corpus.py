"""The text on which the miniature's language model grows up: conversations about scenes whose pictures are words.

Instead of projected image embeddings, the model is shown each query token's fact as words (`slot_words`); their
embeddings, summed, stand in the image slots. Whoever projects pictures to these sums is understood.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sparkles.eval.prompting import load_prompt
from sparkles.nano.dialogues import Layout, image_ids, make_dialogue
from sparkles.nano.language import (
    BISON_KINDS,
    NUMBERS,
    STATEMENTS,
    bison_caption,
    bison_item,
    check_thing,
    coarse_caption,
    statement,
    therefore,
)
from sparkles.nano.world import PLACES, Scene, Split, Thing, random_scene
from sparkles.prompt_format import IMAGE_TAG, image_mention
from sparkles.types import Image, Message

Words = tuple[str, ...]


@dataclass(frozen=True)
class Conversation:
    """Messages user, assistant, ... and the scenes of their images in order."""

    messages: tuple[Message, ...]
    scenes: tuple[Scene, ...]
    kind: str = "dialogue"


def slot_words(scene: Scene) -> list[Words]:
    """The words of each query token: one for each place, then the background, then the count.

    >>> slot_words(Scene("dark", (None,) * 6))[-3:]
    [('nothing', 'bottom-right'), ('dark', 'background'), ('zero', 'objects')]
    """
    places = [
        (*(thing.words if thing else ("nothing",)), place)
        for place, thing in zip(PLACES, scene.things, strict=True)
    ]
    return [*places, (scene.background, "background"), (NUMBERS[scene.count], "objects")]


def random_conversation(
    rng: random.Random,
    split: Split = "train",
    *,
    dialogues: float = 0.5,
    forced_choices: float = 0.0,
    forced_empty: float = 0.0,
) -> Conversation:
    """A dialogue with this probability, otherwise one to three questions about a pair of images or a coarse caption.

    Args:
        forced_choices: share of the questions in which neither image, or each, matches the caption.
        forced_empty: share of those in which both images show nothing at the caption's place.
    """
    if rng.random() < dialogues:
        return _dialogue(rng, split)
    if rng.random() < 0.06:
        return _captioning(rng, split)
    if forced_choices and rng.random() < forced_choices:
        return _forced_choice(rng, split)
    if forced_empty and rng.random() < forced_empty:
        return _forced_choice(rng, split, empty=True)
    return _questions(rng, split)


def question(kind: str, rng: random.Random, split: Split) -> Conversation:
    """One benchmark item of a BISON kind or statement type, its answer balanced."""
    truth = rng.random() < 0.5
    while True:
        scenes, asked, said, label = _first_question(kind, rng, split)
        if label == truth:
            return Conversation(_turns([(asked, said)]), scenes, kind)


def _dialogue(rng: random.Random, split: Split) -> Conversation:
    images_per_turn = (rng.choice((1, 2, 2, 3)), 2 if rng.random() < 0.2 else 1)
    # Data sets number their images through; a person who chats starts at one.
    total = sum(images_per_turn)
    numbered = rng.random() < 0.7
    ids = (
        image_ids(rng.randrange(1000, 10000), total)
        if numbered
        else [str(number + 1) for number in range(total)]
    )
    shown = [(image_id, random_scene(rng, split)) for image_id in ids]
    layout: Layout = "sentence" if rng.random() < 0.12 else "word"
    dialogue = make_dialogue(shown, images_per_turn, rng, layout=layout)
    return Conversation(dialogue.messages, tuple(scene for _, scene in shown))


CAPTION_REQUESTS = ("What is in this picture?", "What does the picture show?", "Say briefly what you see.")


def _captioning(rng: random.Random, split: Split) -> Conversation:
    scene = random_scene(rng, split)
    asked = f"{IMAGE_TAG} {rng.choice(CAPTION_REQUESTS)}"
    said = coarse_caption(scene.at.values())
    messages = (
        Message(role="user", content=asked, images=(Image(image_id=1),)),
        Message(role="assistant", content=said),
    )
    return Conversation(messages, (scene,), "caption")


def _first_question(
    kind: str, rng: random.Random, split: Split
) -> tuple[tuple[Scene, Scene], str, str, bool]:
    """Scenes, the prompt as the benchmark words it, the answer, and its label (first image, or true)."""
    while True:
        if kind in BISON_KINDS:
            item = bison_item(
                random_scene(rng, split), kind, rng.randrange(2), rng, (image_mention(1), image_mention(2))
            )
            if item:
                return (
                    item.scenes,
                    load_prompt("bison").substitute(caption=item.caption),
                    item.reasoning,
                    item.label == 0,
                )
        else:
            scenes = (random_scene(rng, split), random_scene(rng, split))
            if rng.random() < 0.25:  # pairs that share much, or "the same" would be rare
                scenes = (scenes[0], Scene(scenes[0].background, scenes[1].things))
            if all(scene.split == split for scene in scenes) and (made := statement(kind, scenes, rng)):
                return scenes, load_prompt("nlvr2").substitute(sentence=made.text), made.reasoning, made.truth


def _questions(rng: random.Random, split: Split) -> Conversation:
    if rng.random() < 0.3:
        first = _unlike_pair(rng, split)
    else:
        first = question(rng.choice((*BISON_KINDS, *BISON_KINDS, *STATEMENTS, "relation")), rng, split)
    turns = [(first.messages[0].content, first.messages[1].content)]
    left, right = first.scenes
    for _ in range(rng.choice((0, 1, 2, 2))):
        if rng.random() < 0.35:
            further = _another_caption((left, right), rng)
        else:
            further = _another_statement((left, right), rng)
        if further:
            turns.append(further)
    return Conversation(_turns(turns), first.scenes, first.kind)


def _unlike_pair(rng: random.Random, split: Split) -> Conversation:
    """BISON's question about two scenes that have nothing in common.

    Of a BISON pair three attributes out of four are as asked, so a model could do well by repeating the question
    instead of looking; here that fails.
    """
    while True:
        scenes = (random_scene(rng, split), random_scene(rng, split))
        if asked := _another_caption(scenes, rng, prompts=(_BISON_PROMPT,)):
            return Conversation(_turns([asked]), scenes, "unlike")


def _forced_choice(rng: random.Random, split: Split, *, empty: bool = False) -> Conversation:
    """BISON's question where neither image, or each, matches: any of the two is as good, but it has to be one.

    A model that misreads its pictures often believes so. It should still answer the question. Places that are
    `empty` in both images are kept apart, since many of them teach a model to expect nothing where it looks.
    """
    while True:
        scenes = (random_scene(rng, split), random_scene(rng, split))
        place, thing = rng.choice(list(random_scene(rng, split).at.items()))
        if not empty and rng.random() < 0.3:
            scenes = (scenes[0].put(place, thing), scenes[1].put(place, thing))
        first, second = (scene.at.get(place) for scene in scenes)
        alike = not (first or second) if empty else first and second and (first == thing) == (second == thing)
        if alike and all(scene.split == split for scene in scenes):
            asked = _which_image(scenes, thing, place, rng.randrange(2), rng, (_BISON_PROMPT,))
            return Conversation(_turns([asked]), scenes, "forced")


_BISON_PROMPT = load_prompt("bison").template.replace("$caption", "{}")
_STATEMENT_QUESTIONS = ("Is this statement true: '{}'?", "Is it true that {}?", "True or false: '{}'?")
_CAPTION_QUESTIONS = (
    "Which image matches the caption: '{}'?",
    "Which of the two images shows {}?",
    "Is it IMAGE#1 or IMAGE#2 that has {}?",
)


def _another_caption(
    scenes: tuple[Scene, Scene], rng: random.Random, prompts: Sequence[str] = _CAPTION_QUESTIONS
) -> tuple[str, str] | None:
    """A question which of the two scenes shows some object."""
    label = rng.randrange(2)
    scene, other = scenes[label], scenes[1 - label]
    place = rng.choice([place for place in scene.at if place in other.at] or list(scene.at))
    thing = scene.at[place]
    if other.at.get(place) == thing:
        return None
    return _which_image(scenes, thing, place, label, rng, prompts)


def _which_image(
    scenes: tuple[Scene, Scene],
    thing: Thing,
    place: str,
    label: int,
    rng: random.Random,
    prompts: Sequence[str],
) -> tuple[str, str]:
    """The question which scene shows a thing at a place, and the way to the answer `label`."""
    lines = [check_thing(image_mention(i + 1), s, thing, place)[0] for i, s in enumerate(scenes)]
    asked = rng.choice(prompts).format(bison_caption(thing, place, rng))
    return asked, " ".join([*lines, therefore(image_mention(label + 1))])


def _another_statement(scenes: tuple[Scene, Scene], rng: random.Random) -> tuple[str, str] | None:
    """A further question whether some statement is true."""
    made = statement(rng.choice(list(STATEMENTS)), scenes, rng)
    return (rng.choice(_STATEMENT_QUESTIONS).format(made.text), made.reasoning) if made else None


def _turns(turns: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """Messages of a conversation whose first question shows both images."""
    messages: list[Message] = []
    for index, (asked, said) in enumerate(turns):
        images = (Image(image_id=1), Image(image_id=2)) if index == 0 else ()
        messages += [
            Message(role="user", content=asked, images=images),
            Message(role="assistant", content=said),
        ]
    return tuple(messages)
