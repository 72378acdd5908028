from itertools import islice, pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fedround.common.backoff import delays


def test_ceilings_double_up_to_the_maximum() -> None:
    assert list(islice(delays(lambda: 0.0, first=0.1, most=1.5), 7)) == [0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5]


def test_the_spread_determines_the_random_part() -> None:
    assert list(islice(delays(lambda: 0.5, first=1, most=4, spread=0.5), 3)) == [0.75, 1.5, 3.0]
    assert list(islice(delays(lambda: 0.5, first=1, most=4, spread=0.0), 3)) == [1, 2, 4]


def test_a_first_delay_above_the_maximum_is_reduced() -> None:
    assert next(delays(lambda: 0.0, first=10, most=2)) == 2


@given(st.integers(), st.floats(0.001, 100), st.floats(0.001, 100), st.floats(0, 1))
def test_delays_are_positive_and_at_most_the_maximum(seed: int, first: float, most: float, spread: float) -> None:
    drawn = list(islice(delays(Random(seed).random, first=first, most=most, spread=spread), 30))
    assert all(0 < delay <= most for delay in drawn)


def test_two_simultaneous_failures_have_different_delays() -> None:
    one, other = (list(islice(delays(Random(seed).random, first=1, most=20), 10)) for seed in (1, 2))
    assert not set(one) & set(other)
    assert all(a != b for a, b in pairwise(one))
