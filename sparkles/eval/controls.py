"""Controls: the same items with something about their pictures changed, and what that tells.

They change what is asked, not who answers: a model of this process and an endpoint are held to the same. A judge still
reads the questions as they were meant, true captions included.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

from sparkles.eval import matching
from sparkles.eval.benchmark import BenchmarkError, Item, Metrics, Prediction
from sparkles.eval.compare import compare_runs
from sparkles.eval.significance import proportion_interval
from sparkles.prompt_format import IMAGE_TAG, image_mention, strip_tags
from sparkles.types import Image, Message

Control = Literal["swap", "blank", "wrong", "caption", "no_image"]
"""swap: pictures in reverse order; blank: one even colour; wrong: pictures of other items; caption: words in place of
pictures; no_image: neither."""

BLANK = Image(image_id="blank", caption="an even grey", path=Path(__file__).parent / "blank.png")
"""The mean colour of what the vision encoder was trained on (`data.images.CLIP_MEAN`), 224 x 224 pixels."""

_SHOWN = re.compile(rf"(?:\b(?:left|right|first|second) )?IMAGE#\w+{re.escape(IMAGE_TAG)}")
"""An image where it is shown, with the word that says which it is."""


def controlled(items: Sequence[Item], control: Control | None, *, seed: int = 0) -> list[Item]:
    """The items as the control shows them.

    Args:
        seed: which item's pictures another gets, for `wrong`.

    Raises:
        BenchmarkError: an item has no order to reverse, or there are no other pictures to show.
        RequestError: an image has no caption to stand in its place.
    """
    match control:
        case None:
            return list(items)
        case "swap":
            return [_swapped(item) for item in items]
        case "blank":
            return [_repainted(item, [BLANK] * len(item.images)) for item in items]
        case "wrong":
            return _with_wrong_pictures(items, seed)
        case "caption":
            return [_captioned(item) for item in items]
        case "no_image":
            return [
                _reworded(item, [strip_tags(asked.content) for asked in item.questions]) for item in items
            ]


def effect(control: Control, plain: Sequence[Prediction], shown: Sequence[Prediction]) -> Metrics:
    """What a control tells beside the same items asked plainly: metrics without the benchmark's name.

    * wrong: `grounding_gap`, the plain score minus that with wrong pictures; `<control>_gap` of others likewise;
    * swap: `swap_consistency`, the share of items that are answered the same in both orders (unscored is not), and
      where the order is the answer `position_bias`, how much more than half of all answers name the first image.

    Raises:
        InputError: the two have no item in common, or none that a judge could rate in both.
    """
    if control == "swap":
        return _order_effect(plain, shown)
    [comparison] = compare_runs({control: plain}, {control: shown}, "id")
    name = "grounding_gap" if control == "wrong" else f"{control}_gap"
    interval = comparison.difference.interval
    return {
        name: comparison.difference.value,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
        f"{name}_num": comparison.num,
    }


def _order_effect(plain: Sequence[Prediction], shown: Sequence[Prediction]) -> Metrics:
    pairs = matching.match(plain, shown, "id").pairs
    if not pairs:
        raise BenchmarkError("swap: no item in both runs; eval.plain names a run of the same benchmark")
    # The label follows the pictures; of two options, equally right is therefore the same answer.
    same = [
        None not in (one.score.answer, other.score.answer) and one.score.correct == other.score.correct
        for one, other in pairs
    ]
    interval = proportion_interval(same, matching.shared_content([one for one, _ in pairs]))
    metrics: Metrics = {
        "swap_consistency": sum(same) / len(same),
        "swap_consistency_low": interval.low,
        "swap_consistency_high": interval.high,
        "swap_consistency_num": len(same),
    }
    answers = [one.score.answer for pair in pairs for one in pair if one.score.answer is not None]
    if answers and all(one.label != other.label for one, other in pairs):
        metrics["position_bias"] = answers.count(image_mention(1)) / len(answers) - 0.5
    return metrics


def _swapped(item: Item) -> Item:
    """The pictures in reverse order.

    Where the answer is an image, the pictures change places under the names, and the label goes with its picture.
    Elsewhere the text may speak of an image by its name or side, so what shows an image moves together with its name.
    """
    if item.label is None:
        raise BenchmarkError(
            f"item {item.item_id}: eval.control=swap reverses images among which a label decides, and there is none; "
            "choose other benchmarks, such as benchmark=[bison,nlvr2]"
        )
    names = [image_mention(image.image_id) for image in item.images]
    if item.label in names:
        label = names[::-1][names.index(item.label)]
        return replace(_repainted(item, item.images[::-1]), label=label)
    return _asked_as(item, [_reversed(question) for question in item.questions])


def _reversed(question: Message) -> Message:
    shown = iter(_SHOWN.findall(question.content)[::-1])
    content = _SHOWN.sub(lambda _: next(shown), question.content)
    return replace(question, content=content, images=question.images[::-1])


def _with_wrong_pictures(items: Sequence[Item], seed: int) -> list[Item]:
    """Each item with the pictures of the next one in a drawn round, and of the one after that if it has too few."""
    order = random.Random(seed).sample(range(len(items)), len(items))
    wrong: dict[int, Item] = {}
    for place, index in enumerate(order):
        item = items[index]
        own = {_picture(image) for image in item.images}
        others = islice(cycle(order), place + 1, place + len(order))
        foreign = (image for other in others for image in items[other].images if _picture(image) not in own)
        pictures = list(islice(foreign, len(item.images)))
        if len(pictures) < len(item.images):
            raise BenchmarkError(
                f"item {item.item_id}: eval.control=wrong shows {len(item.images)} pictures of other items, and "
                f"these {len(items)} items have {len(pictures)}; ask more of them, benchmark.num=..."
            )
        wrong[index] = _repainted(item, pictures)
    return [wrong[index] for index in range(len(items))]


def _picture(image: Image) -> Path | str:
    """What tells pictures apart; boxes of one file are one picture."""
    return image.path or image.caption


def _repainted(item: Item, pictures: Sequence[Image]) -> Item:
    """The item with the content of these pictures under the names of its own."""
    contents = iter(pictures)
    return _asked_as(
        item,
        [
            replace(
                question,
                images=tuple(replace(next(contents), image_id=image.image_id) for image in question.images),
            )
            for question in item.questions
        ],
    )


def _captioned(item: Item) -> Item:
    from sparkles.llm_client import chat_messages  # imports the client of endpoints, which few runs need

    messages = chat_messages(item.questions, captions=True)
    return _reworded(item, ["".join(map(str, message.content)) for message in messages])


def _reworded(item: Item, contents: Sequence[str]) -> Item:
    """The item in these words, without images."""
    return _asked_as(item, [Message(role="user", content=content) for content in contents])


def _asked_as(item: Item, questions: Sequence[Message]) -> Item:
    """Other questions to the responder; those that the judge reads stay."""
    return replace(item, questions=tuple(questions), judged=item.questions)
