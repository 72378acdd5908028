"""The queue of telemetry: rates, sizes, and batches."""

from hypothesis import given
from hypothesis import strategies as st

from fedround.common import wire
from fedround.coordinator.backlog import BURST, MOST_BATCH, MOST_BYTES, MOST_OF_ONE, MOST_SERIES, TABLE, WINDOW, Backlog

METRICS, TRACES = wire.OTLP_METRICS, wire.OTLP_TRACES
HALF = bytes(MOST_OF_ONE // 2)


def test_a_participant_sends_one_message_at_a_time() -> None:
    backlog = Backlog()
    assert backlog.begin(METRICS, "anna", 0.0)
    assert not backlog.begin(METRICS, "anna", 0.0)
    assert backlog.begin(METRICS, "berta", 0.0)
    assert backlog.begin(TRACES, "anna", 0.0), "spans and metrics do not wait for each other"
    backlog.end(METRICS, "anna")
    assert backlog.begin(METRICS, "anna", 0.0)


def test_the_messages_of_a_participant_are_limited() -> None:
    backlog = Backlog()

    def sent(name: str, now: float) -> bool:
        if not backlog.begin(METRICS, name, now):
            return False
        backlog.end(METRICS, name)
        return True

    assert sum(sent("anna", 0.0) for _ in range(100)) == BURST
    assert sent("berta", 0.0)
    assert sent("anna", 1.0)


def test_the_series_of_a_participant_are_limited_per_hour() -> None:
    backlog = Backlog()
    assert backlog.add_series("anna", {1: MOST_SERIES - 1}, 0.0)
    assert backlog.add_series("anna", {1: MOST_SERIES - 1, 2: 1}, 1.0), "what is known does not count twice"
    assert not backlog.add_series("anna", {3: 1}, 2.0)
    assert backlog.add_series("anna", {2: 1}, 3.0), "what was refused was not taken note of"
    assert backlog.add_series("berta", {3: 1}, 3.0)
    assert backlog.add_series("anna", {3: 1}, WINDOW)


def test_the_number_of_remembered_participants_is_bounded() -> None:
    backlog = Backlog()
    for number in range(TABLE + 1):
        assert backlog.add_series(f"silo-{number}", {1: MOST_SERIES}, 0.0)
    assert backlog.add_series("silo-0", {2: 1}, 0.0), "the first one was forgotten"
    assert not backlog.add_series(f"silo-{TABLE}", {2: 1}, 0.0)


def test_one_participant_cannot_fill_the_queue() -> None:
    backlog = Backlog()
    assert [backlog.add(METRICS, "anna", HALF) for _ in range(3)] == [True, True, False]
    assert backlog.add(TRACES, "berta", HALF)
    backlog.batch(METRICS)
    assert backlog.add(METRICS, "anna", HALF)


def test_the_queue_is_bounded() -> None:
    backlog = Backlog()
    taken = [backlog.add(METRICS, f"silo-{number}", HALF) for number in range(2 * MOST_BYTES // MOST_OF_ONE + 1)]
    assert taken == [True] * (len(taken) - 1) + [False]
    assert backlog.size == MOST_BYTES


def test_a_batch_has_one_path_and_a_bounded_size() -> None:
    backlog = Backlog()
    assert not backlog.batch(METRICS)
    for name, path, size in [("a", METRICS, 10), ("b", TRACES, 10), ("c", METRICS, MOST_BATCH - 10), ("d", METRICS, 1)]:
        assert backlog.add(path, name, bytes(size))
    assert [each.name for each in backlog.batch(METRICS)] == ["a", "c"]
    assert [each.name for each in backlog.batch(METRICS)] == ["d"]
    assert [each.name for each in backlog.batch(TRACES)] == ["b"]
    assert (backlog.size, backlog.batch(METRICS)) == (0, [])


@given(st.lists(st.tuples(st.sampled_from(wire.OTLP), st.sampled_from("abc"), st.integers(1, MOST_BATCH * 2))))
def test_each_message_is_sent_once_and_in_order(messages: list[tuple[str, str, int]]) -> None:
    backlog = Backlog()
    waiting = [each for each in messages if backlog.add(each[0], each[1], bytes(each[2]))]
    assert backlog.size == sum(size for _, _, size in waiting) <= MOST_BYTES
    for path in wire.OTLP:
        sent = []
        while batch := backlog.batch(path):
            assert len(batch) == 1 or sum(len(each.message) for each in batch) <= MOST_BATCH
            sent += [(path, each.name, len(each.message)) for each in batch]
        assert sent == [each for each in waiting if each[0] == path]
    assert backlog.size == 0
