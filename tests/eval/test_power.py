import numpy as np
import pytest
from scipy import stats

from sparkles.eval.power import (
    ALPHA,
    detectable_differences,
    detectable_paired,
    detectable_rating,
    detectable_unpaired,
    mcnemar_power,
)
from sparkles.types import InputError


def test_the_power_of_the_mcnemar_test_is_what_simulation_finds() -> None:
    num, discordance, difference = 60, 0.4, 0.2
    rng = np.random.default_rng(0)
    discordant = rng.binomial(num, discordance, 2_000)
    gained = rng.binomial(discordant, (1 + difference / discordance) / 2)
    p_values = [stats.binomtest(k, n).pvalue if n else 1.0 for k, n in zip(gained, discordant, strict=True)]
    found = mcnemar_power(num, discordance, difference)
    assert np.mean(np.array(p_values) <= ALPHA) == pytest.approx(found, abs=0.03)


def test_a_detectable_difference_has_the_power_that_it_is_said_to_have() -> None:
    difference = detectable_paired(150, 0.3)
    assert difference is not None
    assert mcnemar_power(150, 0.3, difference) == pytest.approx(0.8, abs=1e-3)


def test_more_items_and_fewer_discordant_ones_show_smaller_differences() -> None:
    found = [detectable_paired(num, share) for num, share in ((600, 0.1), (600, 0.3), (150, 0.3), (50, 0.3))]
    assert all(found)
    assert found == sorted(found, key=lambda value: value or 0)
    assert (detectable_unpaired(150, 0.5) or 0) > (detectable_paired(150, 0.3) or 0)


def test_so_few_items_show_no_difference() -> None:
    assert detectable_paired(5, 0.5) is None
    assert detectable_unpaired(3, 0.9) is None


def test_a_rating_is_detected_by_the_usual_rule() -> None:
    # (1.96 + 0.84) standard errors, with many items.
    assert detectable_rating(400, 2.0, paired=True) == pytest.approx(2.8 * 2.0 / 20, rel=0.01)
    assert detectable_rating(400, 2.0, paired=False) == pytest.approx(2.8 * 2.0 * 2**0.5 / 20, rel=0.01)


def test_ratings_are_spoken_of_where_their_deviation_is_known() -> None:
    assert len(detectable_differences(150, discordances=[0.2, 0.3])) == 3
    assert [one.comparison for one in detectable_differences(150, deviation=1.5)][1:] == [
        "rating, same items, deviation 1.5",
        "rating, different items, deviation 1.5",
    ]


@pytest.mark.parametrize(
    ("num", "settings", "message"),
    [
        (1, {}, "num=1: expected at least 2 items"),
        (150, {"accuracy": 57.0}, r"accuracy=57.0: expected a share between 0 and 1, such as accuracy=0.3"),
        (150, {"discordances": [0.0]}, "discordance=0.0: expected a share"),
    ],
)
def test_what_is_no_share_is_refused(num: int, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        detectable_differences(num, **settings)  # type: ignore[arg-type]
