from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sparkles.data.mixture import Draw, Mixture, MixtureSampler, SubsetSpec
from sparkles.types import InputError


def make_mixture(**changes: Any) -> Mixture:
    settings: dict[str, Any] = {
        "sizes": {"cc": 5, "vg": 7},
        "ratios": {"cc": 2.0, "vg": 1.0},
        "batch_size": 4,
        "seed": 3,
    }
    return Mixture(**settings | changes)


def stream(mixture: Mixture, steps: int) -> list[Draw]:
    return [draw for step in range(steps) for draw in mixture.batch_indices(step)]


@pytest.mark.parametrize("mix", ["per_sample", "per_batch"])
def test_a_batch_depends_on_seed_and_step_alone(mix: str) -> None:
    in_order = [make_mixture(mix=mix).batch_indices(step) for step in range(20)]
    mixture = make_mixture(mix=mix)
    assert [mixture.batch_indices(step) for step in reversed(range(20))] == in_order[::-1]
    assert [make_mixture(mix=mix, seed=4).batch_indices(step) for step in range(20)] != in_order


def test_shares_follow_the_ratios_whatever_the_sizes() -> None:
    mixture = make_mixture(sizes={"cc": 5, "vg": 700})
    counts = Counter(draw.subset for draw in stream(mixture, 750))
    assert mixture.shares == pytest.approx({"cc": 2 / 3, "vg": 1 / 3})
    assert counts["cc"] / counts.total() == pytest.approx(2 / 3, abs=0.03)


def test_per_sample_mixes_within_a_batch_and_per_batch_does_not() -> None:
    def subsets_in_batches(mix: str) -> set[int]:
        mixture = make_mixture(mix=mix)
        return {len({draw.subset for draw in mixture.batch_indices(step)}) for step in range(30)}

    assert subsets_in_batches("per_sample") == {1, 2}
    assert subsets_in_batches("per_batch") == {1}


@pytest.mark.parametrize("mix", ["per_sample", "per_batch"])
def test_no_sample_repeats_before_its_subset_is_used_up(mix: str) -> None:
    indices = [draw.index for draw in stream(make_mixture(mix=mix), 40) if draw.subset == "vg"]
    passes = [indices[start : start + 7] for start in range(0, len(indices) - 6, 7)]
    assert len(passes) > 3
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_serials_number_the_stream() -> None:
    assert [draw.serial for draw in stream(make_mixture(), 5)] == list(range(20))


def test_a_subset_of_ratio_zero_is_never_drawn() -> None:
    mixture = make_mixture(sizes={"cc": 5, "vg": 0}, ratios={"cc": 1, "vg": 0})
    assert {draw.subset for draw in stream(mixture, 10)} == {"cc"}


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_together_get_the_batches_of_one(world_size: int) -> None:
    whole = list(MixtureSampler(make_mixture(), batches_per_epoch=6))
    shares = [
        list(MixtureSampler(make_mixture(), batches_per_epoch=6, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part) for part in parts} == {4 // world_size}
        assert sorted((draw for part in parts for draw in part), key=lambda draw: draw.serial) == batch


def test_an_iteration_runs_from_the_position_to_the_end_of_its_epoch() -> None:
    mixture = make_mixture()
    sampler = MixtureSampler(mixture, batches_per_epoch=6)
    sampler.position = 8
    assert list(sampler) == [mixture.batch_indices(step) for step in range(8, 12)]
    assert len(sampler) == 6


def test_a_sampler_resumes_from_its_state() -> None:
    sampler = MixtureSampler(make_mixture(), batches_per_epoch=6)
    whole = list(sampler)
    sampler.position = 2
    resumed = MixtureSampler(make_mixture(), batches_per_epoch=6)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == whole[2:]


def tokens_of(draw: Draw) -> int:
    """Lengths that have nothing to do with the order of a subset."""
    return 7919 * (draw.index + 1) % (101 if draw.subset == "cc" else 103)


def sampler_by_length(**changes: Any) -> MixtureSampler:
    settings: dict[str, Any] = {"batches_per_epoch": 12, "length_window": 5, "length_of": tokens_of}
    mixture = make_mixture(sizes={"cc": 50, "vg": 70})
    return MixtureSampler(mixture, **settings | changes)


def test_batches_by_length_hold_the_samples_of_the_mixture_with_less_padding() -> None:
    def padding(batches: list[list[Draw]]) -> int:
        return sum(max(map(tokens_of, batch)) - tokens_of(draw) for batch in batches for draw in batch)

    plain, by_length = list(sampler_by_length(length_window=1)), list(sampler_by_length())
    assert [len(batch) for batch in by_length] == [4] * 12
    for start in (0, 5):  # the last window goes beyond the epoch
        window = slice(start, start + 5)
        drawn, chosen = ({draw for batch in some[window] for draw in batch} for some in (plain, by_length))
        assert chosen == drawn
    assert padding(by_length) < padding(plain) / 3
    longest = [max(map(tokens_of, batch)) for batch in by_length[:5]]
    assert longest != sorted(longest), "short batches do not come first"


def test_batches_by_length_depend_on_seed_and_step_alone() -> None:
    whole = list(sampler_by_length())
    resumed = sampler_by_length()
    for position in (0, 3, 7):
        resumed.load_state_dict(resumed.state_dict() | {"position": position})
        assert list(resumed) == whole[position:]
    shares = [list(sampler_by_length(rank=rank, world_size=2)) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part) for part in parts} == {2}
        assert {draw for part in parts for draw in part} == set(batch)


def test_resuming_without_the_batches_by_length_is_refused() -> None:
    with pytest.raises(InputError, match="length_window was 5, now None"):
        sampler_by_length(length_window=1).load_state_dict(sampler_by_length().state_dict())
    with pytest.raises(InputError, match="length_window was None, now 5"):
        sampler_by_length().load_state_dict(sampler_by_length(length_window=1).state_dict())


def test_resuming_with_another_mixture_says_what_differs() -> None:
    state = MixtureSampler(make_mixture(), batches_per_epoch=6).state_dict()
    other = MixtureSampler(make_mixture(batch_size=8, sizes={"cc": 6, "vg": 7}), batches_per_epoch=6)
    with pytest.raises(ValueError, match=r"sizes was .*'cc': 5.*, now .*'cc': 6.*; batch_size was 4, now 8"):
        other.load_state_dict(state)


def test_a_batch_that_processes_cannot_share_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"batch_size=4 is not divisible by 3 processes; set data.batch_size"
    ):
        MixtureSampler(make_mixture(), batches_per_epoch=6, world_size=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": {"cc": 0, "vg": 0}}, "the mixture is empty: none of cc, vg has a ratio above 0"),
        ({"sizes": {}, "ratios": {}}, "the mixture is empty: none of no subsets"),
        ({"sizes": {"cc": 0, "vg": 7}}, "subsets without samples: cc"),
        ({"mix": "by_hand"}, "mix must be 'per_sample' or 'per_batch', got 'by_hand'"),
    ],
)
def test_an_empty_or_unknown_mixture_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mixture(**changes)


def test_a_negative_ratio_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"subset 'vg_turn2': expected 0 .* or more, got -1"):
        SubsetSpec(name="vg_turn2", annotations=Path("a.json"), images=Path("images"), ratio=-1)


def test_a_subset_takes_its_values_as_configuration_gives_them() -> None:
    settings: dict[str, Any] = {
        "annotations": "a.json",
        "images": "images",
        "image_patterns": ["{image_id}.webp"],
    }
    spec = SubsetSpec(name="cc", **settings)
    assert spec.annotations == Path("a.json")
    assert spec.folder.patterns == ("{image_id}.webp",)
    assert hash(spec)
