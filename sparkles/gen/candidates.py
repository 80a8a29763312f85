"""What is drawn for a reply: images to choose from and dialogues to take as an example.

A draw depends on the seed and its number alone, so that a run that goes on, or that is made longer, asks what it
asked before.
"""

import random
import sys
from collections import Counter, defaultdict
from collections.abc import Container, Sequence

from sparkles.types import Dialogue, Image, InputError

Shape = tuple[int, ...]
"""How many images each turn of a dialogue brings: (2, 1)."""


class Candidates:
    """Draws of `size` images from a pool of captioned ones.

    Args:
        reuse: draw from the whole pool each time; otherwise no image is in two draws.
        shuffle: without reuse, draw in random order; false keeps the pool's.

    Raises:
        InputError: two images have one id, an image has no caption, or there are not enough.
    """

    def __init__(
        self, *, images: Sequence[Image], size: int, reuse: bool = False, shuffle: bool = True, seed: int = 0
    ) -> None:
        if not 1 <= size <= len(images):
            raise InputError(
                f"candidates.size must be between 1 and {len(images)}, the images there are, got {size}"
            )
        twice = [id_ for id_, count in Counter(str(image.image_id) for image in images).items() if count > 1]
        if twice:
            raise InputError(
                f"{len(twice)} image ids are there more than once, such as {', '.join(twice[:3])}"
            )
        if bare := [image for image in images if not image.caption.strip()]:
            raise InputError(
                f"{len(bare)} images have no caption, such as {bare[0].image_id}; the writer sees nothing but captions"
            )
        self.images = images
        self.size = size
        self.reuse = reuse
        self.shuffle = shuffle
        self.seed = seed
        self._order = list(range(len(images)))
        if shuffle:
            random.Random(f"{seed}/order").shuffle(self._order)

    @property
    def num_draws(self) -> int:
        """How many there are; with reuse, as many as one likes."""
        return sys.maxsize if self.reuse else len(self.images) // self.size

    def without(self, image_ids: Container[int | str]) -> "Candidates":
        """The same, from a pool that lacks some images.

        Raises:
            InputError: there are not enough others.
        """
        rest = [image for image in self.images if image.image_id not in image_ids]
        if len(rest) < self.size:
            raise InputError(
                f"{len(rest)} of {len(self.images)} images may be used, fewer than the {self.size} candidates of "
                "one call; give a source with more captions"
            )
        return Candidates(images=rest, size=self.size, reuse=self.reuse, shuffle=self.shuffle, seed=self.seed)

    def draw(self, number: int) -> tuple[Image, ...]:
        """Draw `number`, counted from 0."""
        if self.reuse:
            return tuple(random.Random(f"{self.seed}/candidates/{number}").sample(self.images, self.size))
        if number >= self.num_draws:
            raise IndexError(f"draw {number} of {self.num_draws}")
        chosen = self._order[number * self.size : (number + 1) * self.size]
        return tuple(self.images[index] for index in chosen)


class Demonstrations:
    """Dialogues that show the writer what is wanted of it, drawn by how many images they begin with (paper, F and G).

    Args:
        per_dialogue: of each dialogue that is to be written.
        pool_size: draw among the first so many of each number of images; None for all.
    """

    def __init__(
        self,
        *,
        dialogues: Sequence[Dialogue],
        per_dialogue: int = 1,
        pool_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.per_dialogue = per_dialogue
        self.seed = seed
        pools: defaultdict[int, list[Dialogue]] = defaultdict(list)
        for dialogue in dialogues:
            pools[shape_of(dialogue)[0]].append(dialogue)
        self._pools = {num_images: pool[:pool_size] for num_images, pool in sorted(pools.items())}

    def check(self, shapes: Sequence[Shape]) -> None:
        """Raise InputError where there are too few demonstrations of a shape."""
        for num_images in sorted({first for first, *_ in shapes}):
            if (found := len(self._pools.get(num_images, []))) < self.per_dialogue:
                has = (
                    ", ".join(f"{len(pool)} with {number}" for number, pool in self._pools.items()) or "none"
                )
                raise InputError(
                    f"{found} demonstrations have {num_images} images in their first turn, expected at least "
                    f"{self.per_dialogue}; the file has {has}: add some, or ask for other dialogues"
                )

    def draw(self, shapes: Sequence[Shape], number: int) -> tuple[Dialogue, ...]:
        """For each shape, different dialogues that begin with as many images."""
        rng = random.Random(f"{self.seed}/demonstrations/{number}")
        return tuple(
            dialogue for first, *_ in shapes for dialogue in rng.sample(self._pools[first], self.per_dialogue)
        )


def shape_of(dialogue: Dialogue) -> Shape:
    """How many images each turn brings."""
    return tuple(len(message.images) for message in dialogue.messages if message.role == "user")
