import numpy as np
import pytest

from sparkles.eval.length_control import length_controlled


def test_a_score_that_only_length_makes_is_nothing_at_equal_length() -> None:
    rng = np.random.default_rng(0)
    words = rng.normal(30, 40, 300)  # longer answers, by 30 words on average
    scores = np.tanh(words / words.std()) + rng.normal(0, 0.1, 300)
    found = length_controlled(scores.tolist(), words.tolist())
    assert found is not None
    assert scores.mean() > 0.3
    assert found.value == pytest.approx(0.0, abs=0.03)
    assert found.slope == pytest.approx(1.0, abs=0.05)
    assert found.interval.low < 0 < found.interval.high
    assert found.p_value > 0.05


def test_a_score_that_length_does_not_make_stays() -> None:
    words = [float(n - 10) for n in range(40)]
    found = length_controlled([2.0 + (n % 2) for n in range(40)], words)
    assert found is not None
    assert found.value == pytest.approx(2.5, abs=0.15)
    assert found.p_value < 0.001


@pytest.mark.parametrize(
    "words", [[1.0, -1.0], [5.0] * 20, [float(n + 1) for n in range(20)], [float(-n - 1) for n in range(20)]]
)
def test_nothing_is_said_of_lengths_that_were_not_seen(words: list[float]) -> None:
    assert length_controlled([1.0] * len(words), words) is None
