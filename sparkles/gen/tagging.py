"""Image tags in text that a language model wrote: each goes behind the first mention of its image."""

import re
from collections.abc import Collection

from sparkles.prompt_format import IMAGE_TAG, image_mention, strip_tags
from sparkles.types import InputError

ImageId = int | str

_MENTION = r"(?<!\w)(?i:IMAGE)#({ids})(?!\w)"
_LOOSE_MENTION = r"(?<!\w)(?:(?i:image)\s*#?\s*|#)({ids})(?!\w)"
"""Also "image 7", "Image #7" and "#7"; counts for an image that is mentioned in no better way."""


class TaggingError(InputError):
    """A text does not mention an image that it is said to show."""


def tag_images(content: str, image_ids: Collection[ImageId]) -> tuple[str, tuple[ImageId, ...]]:
    """The text with one tag for each image, and the ids in the order of their tags. Tags that it had are set anew.

    Raises:
        TaggingError: names the images that the text does not mention.

    >>> tag_images("Is 14 in IMAGE#1417, IMAGE#14 or IMAGE#1417?", [14, 1417])
    ('Is 14 in IMAGE#1417<Img><ImageHere></Img>, IMAGE#14<Img><ImageHere></Img> or IMAGE#1417?', (1417, 14))
    """
    content = strip_tags(content)
    ends = _mention_ends(_LOOSE_MENTION, content, image_ids) | _mention_ends(_MENTION, content, image_ids)
    if missing := [str(image_id) for image_id in image_ids if image_id not in ends]:
        raise TaggingError(
            f"no mention of {', '.join(missing)}; expected {image_mention(missing[0])} in {content[:120]!r}"
        )
    for end in sorted(ends.values(), reverse=True):
        content = content[:end] + IMAGE_TAG + content[end:]
    return content, tuple(sorted(ends, key=lambda image_id: ends[image_id]))


def mentioned_ids(content: str, image_ids: Collection[ImageId]) -> tuple[ImageId, ...]:
    """Those of `image_ids` that the text mentions as IMAGE#7, in order.

    >>> mentioned_ids("Is IMAGE#14 the image 33 of IMAGE#1417?", [1417, 33, 14, 17])
    (14, 1417)
    """
    return tuple(_mention_ends(_MENTION, content, image_ids))


def _mention_ends(pattern: str, content: str, image_ids: Collection[ImageId]) -> dict[ImageId, int]:
    """Where the first mention of each image that has one ends, by id, in order."""
    names = {str(image_id): image_id for image_id in image_ids}
    if not names:
        return {}
    # The longest first, so that IMAGE#dev-12 is no mention of "dev".
    ids = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    ends: dict[ImageId, int] = {}
    for match in re.finditer(pattern.format(ids=ids), content):
        ends.setdefault(names[match[1]], match.end())
    return ends
