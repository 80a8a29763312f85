import time
from collections import Counter

import pytest

from sparkles.gen.candidates import Candidates, shape_of
from sparkles.types import Image, InputError
from tests.gen.scripted import captioned, demonstrations, dialogue


def test_without_reuse_every_image_is_drawn_at_most_once() -> None:
    candidates = Candidates(images=captioned(1_003), size=4, seed=3)
    drawn = [image.image_id for number in range(candidates.num_draws) for image in candidates.draw(number)]
    assert len(drawn) == len(set(drawn)) == 1_000
    assert drawn != sorted(drawn)
    with pytest.raises(IndexError):
        candidates.draw(250)


def test_100_000_captions_are_ready_at_once_and_none_is_drawn_twice() -> None:
    images = captioned(100_000)
    start = time.process_time()
    candidates = Candidates(images=images, size=4)
    drawn = Counter(image.image_id for number in range(25_000) for image in candidates.draw(number))
    assert time.process_time() - start < 5
    assert (len(drawn), max(drawn.values())) == (100_000, 1)


def test_unshuffled_candidates_follow_one_another() -> None:
    candidates = Candidates(images=captioned(8), size=4, shuffle=False)
    assert [image.image_id for image in candidates.draw(1)] == [104, 105, 106, 107]


@pytest.mark.parametrize("settings", [{}, {"reuse": True}, {"shuffle": False}])
def test_images_that_are_left_out_are_never_drawn(settings: dict[str, bool]) -> None:
    candidates = Candidates(images=captioned(24), size=4, seed=3, **settings).without({103, 110, 117})
    drawn = {image.image_id for number in range(5) for image in candidates.draw(number)}
    assert len(candidates.images) == 21
    assert not drawn & {103, 110, 117}
    assert (candidates.reuse, candidates.shuffle) == (
        settings.get("reuse", False),
        settings.get("shuffle", True),
    )


def test_too_few_images_left_are_refused() -> None:
    with pytest.raises(
        InputError, match="3 of 4 images may be used, fewer than the 4 candidates of one call"
    ):
        Candidates(images=captioned(4), size=4).without({100})


def test_with_reuse_a_draw_has_different_images_and_draws_share_some() -> None:
    candidates = Candidates(images=captioned(12), size=9, reuse=True)
    draws = [{image.image_id for image in candidates.draw(number)} for number in range(5)]
    assert [len(draw) for draw in draws] == [9] * 5
    assert len({frozenset(draw) for draw in draws}) > 1


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    one, same, other = (Candidates(images=captioned(50), size=4, reuse=True, seed=seed) for seed in (1, 1, 2))
    assert same.draw(7) == one.draw(7)
    assert other.draw(7) != one.draw(7)


@pytest.mark.parametrize(
    ("images", "size", "message"),
    [
        (captioned(3), 4, "size must be between 1 and 3, the images there are, got 4"),
        ([*captioned(4), Image(image_id="102", caption="again")], 4, "more than once, such as 102"),
        ([*captioned(4), Image(image_id=7)], 4, "1 images have no caption, such as 7"),
    ],
)
def test_candidates_that_cannot_be_drawn_are_refused(images: list[Image], size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Candidates(images=images, size=size)


def test_a_demonstration_begins_with_as_many_images_as_is_wanted() -> None:
    drawn = demonstrations().draw([(3, 1), (2, 2)], number=5)
    assert [shape_of(one)[0] for one in drawn] == [3, 2]
    assert demonstrations().draw([(3, 1), (2, 2)], number=5) == drawn


def test_number_and_diversity_of_demonstrations_are_settings() -> None:
    several = demonstrations(per_dialogue=2, pool_size=2)
    draws = [several.draw([(2, 1)], number) for number in range(20)]
    shown = {one.images[0].image_id for draw in draws for one in draw}
    assert (set(map(len, draws)), shown) == ({2}, {20, 21})


def test_too_few_demonstrations_are_told_apart_by_their_images() -> None:
    with pytest.raises(
        InputError, match=r"0 demonstrations have 1 images .* the file has 4 with 2, 4 with 3"
    ):
        demonstrations().check([(1, 1), (2, 1)])


def test_the_shape_of_a_dialogue() -> None:
    assert shape_of(dialogue(2, 1)) == (2, 1)
