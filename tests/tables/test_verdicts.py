import pytest

from sparkles.eval.crossed import Estimate, Part
from sparkles.tables.verdicts import Published, explain, of_finding, of_value

WORSE, BETTER = Published(value=0.46, num=150), Published(value=0.567, num=150)


def known(value: float, deviation: float) -> Estimate:
    return Estimate(value=value, parts=(Part(variance=deviation**2, freedom=1e6),))


@pytest.mark.parametrize(
    ("ours", "deviation", "word"),
    [
        (0.57, 0.005, "compatible"),
        (0.60, 0.005, "compatible"),  # the paper's own 150 items leave 8 points
        (0.70, 0.005, "different"),
        (0.57, 0.04, "cannot tell at this n"),
        (0.90, 0.04, "different"),
    ],
)
def test_a_value_is_held_against_the_papers_with_the_noise_of_both(
    ours: float, deviation: float, word: str
) -> None:
    verdict = of_value(known(ours, deviation), BETTER, "accuracy", deviation=None, seed_variance=None)
    assert verdict is not None
    assert verdict.word == word


def test_the_papers_single_seed_makes_it_less_certain() -> None:
    ours = Estimate(value=0.70, parts=(Part(variance=1e-4, freedom=1e6), Part(variance=1e-4, freedom=2)))
    found = [
        of_value(ours, BETTER, "accuracy", deviation=None, seed_variance=variance)
        for variance in (None, 3e-3)
    ]
    assert [one.word for one in found if one] == ["different", "cannot tell at this n"]


def test_a_published_rating_is_as_noisy_as_ours() -> None:
    paper = Published(value=8.56, num=150)
    for deviation, word in ((1.0, "different"), (8.0, "cannot tell at this n")):
        verdict = of_value(known(8.0, 0.05), paper, "overall", deviation=deviation, seed_variance=None)
        assert verdict is not None
        assert verdict.word == word
    assert of_value(known(8.0, 0.05), paper, "overall", deviation=None, seed_variance=None) is None


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        (0.3, "compatible"),
        (-0.3, "different"),
        (0.05, "cannot tell at this n"),
        (-0.05, "cannot tell at this n"),
    ],
)
def test_a_finding_is_held_against_the_sign_of_our_difference(ours: float, word: str) -> None:
    verdict = of_finding(known(ours, 0.05), BETTER, WORSE, "accuracy", deviation=None)
    assert verdict is not None
    assert (verdict.word, verdict.paper_unsure) == (word, True)  # 10.7 points at 150 items, unpaired: ± 11.3
    mirrored = of_finding(known(-ours, 0.05), WORSE, BETTER, "accuracy", deviation=None)
    assert mirrored is not None
    assert mirrored.word == word


def test_a_large_published_difference_is_sure() -> None:
    papers = Published(value=8.56, num=150), Published(value=3.91, num=150)
    verdict = of_finding(known(6.0, 0.1), *papers, "overall", deviation=2.0)
    assert verdict is not None
    assert not verdict.paper_unsure


def test_no_published_difference_is_no_finding() -> None:
    assert of_finding(known(0.3, 0.05), BETTER, BETTER, "accuracy", deviation=None) is None


def test_the_caption_says_what_the_words_mean() -> None:
    assert "finds of a row against SparklesChat" in explain("nano", "SparklesChat")
    assert "at most ±10 points (ratings: ±1) wide" in explain("7b", "SparklesChat")
