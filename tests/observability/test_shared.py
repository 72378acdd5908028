from itertools import count

from fedround.observability.shared import BURST, RATE, Shared


def test_who_asks_now_and_then_gets_a_rendering_of_this_moment() -> None:
    now = 100.0
    shared = Shared(count().__next__, clock=lambda: now)
    for second in range(20):
        now = 100.0 + second / RATE
        assert shared() == second


def test_a_crowd_shares_a_few_renderings_a_second_and_none_is_older_than_a_quarter_of_one() -> None:
    now = 0.0
    shared = Shared(lambda: now, clock=lambda: now)
    seen = set()
    for thousandth in range(5000):
        now = thousandth / 1000
        assert now - shared() <= 1 / RATE
        seen.add(shared())
    assert len(seen) <= BURST + 5 * RATE
