from itertools import count

from fedround.observability.shared import BURST, RATE, Shared


def test_a_rare_request_gets_a_new_rendering() -> None:
    now = 100.0
    shared = Shared(count().__next__, clock=lambda: now)
    for second in range(20):
        now = 100.0 + second / RATE
        assert shared() == second


def test_many_requests_share_a_few_renderings_at_most_250_ms_old() -> None:
    now = 0.0
    shared = Shared(lambda: now, clock=lambda: now)
    seen = set()
    for thousandth in range(5000):
        now = thousandth / 1000
        assert now - shared() <= 1 / RATE
        seen.add(shared())
    assert len(seen) <= BURST + 5 * RATE
