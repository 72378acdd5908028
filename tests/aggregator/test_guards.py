from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedround.aggregator.guards import FEW, NO_BASELINE, ROUNDS, Dominant, Guard, Limits, Outlier, Size
from fedround.errors import Implausible

SILOS = ["anna", "bert", "carl", "dora"]


def attempt(guard: Guard, updates: Sequence[Size], *, norm: float = 0.0) -> Outlier | None:
    """Run a whole attempt of updates that are plausible so far."""
    guard.open(SILOS[: len(updates)])
    for id, size in zip(SILOS, updates, strict=False):
        guard.check(id, size, lambda: norm)
        guard.count(id, size)
    return guard.close(lambda: norm)


def changes(*sizes: float) -> list[Size]:
    return [Size(10, size) for size in sizes]


def samples(*counts: int) -> list[Size]:
    return [Size(count, 1.0) for count in counts]


def refusal(guard: Guard, size: Size, *, norm: float = 0.0) -> str:
    with pytest.raises(Implausible) as refused:
        guard.check("anna", size, lambda: norm)
    return str(refused.value)


def test_absolute_limits_apply_from_the_first_update() -> None:
    guard = Guard(Limits(change=5.0))
    guard.check("anna", Size(100_000_000, 5.0), lambda: 0.0)
    assert refusal(guard, Size(4294967295)) == "4294967295 samples are more than the 100000000 of AGGREGATOR_MAX_SAMPLES"
    assert refusal(guard, Size(1, 5.1)) == "a change of 5.1 is more than the 5 of AGGREGATOR_MAX_UPDATE_NORM"


def test_an_update_that_exceeds_the_ratio_to_recent_rounds_is_refused() -> None:
    guard = Guard()
    assert attempt(guard, [Size(10, 1.0), Size(30, 2.0), Size(20, 3.0)]) is None
    guard.open(SILOS)
    guard.check("anna", Size(2000, 200.0), lambda: 0.0)
    assert refusal(guard, Size(10, 201.0)) == (
        "a change of 201 is more than 100 times the 2 of other updates, and larger than the model (AGGREGATOR_MAX_UPDATE_RATIO)"
    )
    assert refusal(guard, Size(2001, 1.0)) == (
        "2001 samples are more than 100 times the 20 of other updates (AGGREGATOR_MAX_UPDATE_RATIO)"
    )


def test_a_ratio_of_0_refuses_nothing() -> None:
    guard = Guard(Limits(ratio=0))
    assert attempt(guard, changes(1, 1, 1e9)) is None
    assert attempt(guard, changes(1, 1, 1e14)) is None


def test_a_change_that_is_smaller_than_the_model_is_never_refused() -> None:
    guard = Guard()
    attempt(guard, changes(1e-9, 1e-9, 1e-9), norm=5.0)
    assert attempt(guard, changes(5.0, 1e-9, 1e-9), norm=5.0) is None
    refusal(guard, Size(10, 5.1), norm=5.0)


def test_sample_counts_are_not_limited_for_strategies_without_weights() -> None:
    guard = Guard(Limits(weighted=False))
    assert attempt(guard, samples(1, 1, 100_000)) is None
    assert attempt(guard, samples(1, 1, 100_000_000)) is None
    assert guard.dominant() is None


@pytest.mark.parametrize(
    ("first", "odd"),
    [
        (
            changes(1, 1e14, 2),
            Outlier("bert", "a change of 1e+14 is more than 100 times the 2 of other updates, and larger than the model"),
        ),
        (samples(100, 90, 10_001, 100), Outlier("carl", "10001 samples are more than 100 times the 100 of other updates")),
    ],
)
def test_without_history_an_outlier_voids_the_attempt_once_and_is_refused_in_the_next(first: list[Size], odd: Outlier) -> None:
    guard = Guard()
    found = attempt(guard, first)
    assert found is not None
    assert (found.id, found.reason) == (odd.id, f"{odd.reason} (AGGREGATOR_MAX_UPDATE_RATIO)")
    guard.open(SILOS)
    position = SILOS.index(odd.id)
    assert refusal(guard, first[position]) == found.reason
    assert attempt(guard, [*first[:position], *first[position + 1 :]]) is None


@pytest.mark.parametrize("first", [changes(1, 1e14), samples(1, 1000), changes(0, 0, 1e14), samples(0, 0, 1000)])
def test_without_a_clear_outlier_every_update_is_accepted(first: list[Size]) -> None:
    assert attempt(Guard(), first) is None


def test_an_outlier_within_the_ratio_does_not_raise_the_limit_alone() -> None:
    guard = Guard()
    attempt(guard, [Size(100, 1.0)] * 3)
    for _ in range(2 * ROUNDS):
        attempt(guard, [Size(10_000, 100.0), Size(100, 1.0), Size(100, 1.0)])
    refusal(guard, Size(100, 101.0))
    refusal(guard, Size(10_001, 1.0))


def test_a_change_in_most_updates_resets_the_limits() -> None:
    guard = Guard()
    attempt(guard, changes(1, 1, 1, 1))
    guard.open(SILOS[:1])
    guard.admit(SILOS[1:])
    for id in SILOS[:2]:
        with pytest.raises(Implausible):
            guard.check(id, Size(10, 1000.0), lambda: 0.0)
    guard.open(SILOS)  # two of four may be liars
    for id in SILOS[:3]:
        with pytest.raises(Implausible):
            guard.check(id, Size(10, 1000.0), lambda: 0.0)
    assert attempt(guard, changes(1000, 1000, 1000, 1000)) is None


def test_the_limits_survive_a_restart_while_they_are_recent() -> None:
    guard = Guard(Limits(), [Size(10, 1.0)])
    refusal(guard, Size(10, 101.0))
    assert guard.newest == Size(10, 1.0)
    assert attempt(guard, changes(100, 100, 100)) is None
    assert guard.newest == Size(10, 100.0)
    assert attempt(Guard(Limits(), [NO_BASELINE]), changes(1, 2, 1e14)) is not None
    for _ in range(ROUNDS):
        attempt(guard, changes(1, 1, 1))
    refusal(guard, Size(10, 101.0))


def test_an_update_with_more_than_half_of_the_samples_of_three_dominates() -> None:
    guard = Guard()
    attempt(guard, samples(30, 50, 10))
    assert guard.dominant() == Dominant("bert", 50 / 90)
    for counts in ([50, 40], [50, 25, 25], [0, 0, 0]):
        attempt(guard, samples(*counts))
        assert guard.dominant() is None


honest = st.builds(Size, st.integers(10, 1000), st.floats(1.0, 100.0))


@given(st.lists(st.lists(honest, min_size=1, max_size=4), min_size=1, max_size=15))
def test_updates_within_the_multiple_of_each_other_are_always_plausible(rounds: list[list[Size]]) -> None:
    guard = Guard()
    for updates in rounds:
        assert attempt(guard, updates) is None


@given(st.lists(honest, min_size=FEW - 1, max_size=3), st.floats(10_001, 1e20), st.integers(0, 3))
def test_one_outlier_is_found_in_any_order(updates: list[Size], lie: float, position: int) -> None:
    liar = Size(10, lie)
    odd = attempt(Guard(), [*updates[:position], liar, *updates[position:]])
    assert odd is not None
    assert odd.id == SILOS[min(position, len(updates))]
    guard = Guard()
    attempt(guard, updates)
    refusal(guard, liar)
