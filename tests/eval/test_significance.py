import pytest

from sparkles.eval.significance import bootstrap_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "low", "high"), [(85, 0.487, 0.643), (87, 0.500, 0.656), (150, 0.975, 1.0), (0, 0.0, 0.025)]
)
def test_wilson_intervals_of_150_items(successes: int, low: float, high: float) -> None:
    assert wilson_interval(successes, 150) == pytest.approx((low, high), abs=5e-4)


def test_a_mean_of_many_values_has_the_interval_of_its_standard_error() -> None:
    values = [float(i % 10) for i in range(400)]  # mean 4.5, standard error 0.1437
    assert bootstrap_interval(values) == pytest.approx((4.5 - 0.2816, 4.5 + 0.2816), abs=0.02)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_too_few_or_equal_values() -> None:
    assert bootstrap_interval([]) == (None, None)
    assert bootstrap_interval([3.0]) == (None, None)
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)
    assert wilson_interval(0, 0) == (None, None)
