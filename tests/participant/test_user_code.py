"""The user's training code: its thread, its formats, its errors, its memory."""

import gc
import os
import signal
import threading
import weakref
from array import array
from collections.abc import Callable
from ctypes import c_char
from functools import partial
from mmap import mmap
from typing import Any

import numpy as np
import pytest

from fedround import events
from fedround.errors import DeserializationError, SerializationError, TrainingError
from fedround.events import Fact
from fedround.participant.abc import NumPyParticipant, Update
from fedround.participant.round import Round, Shard, current_round
from fedround.participant.run import connected, run_participant
from fedround.participant.terms import Terms
from fedround.participant.training import Training as Steps
from fedround.tensors.weights import Array
from support.federation import FINISH, STAND_BY, After, Answer, OldPlatform, order, our_platform
from support.participants import FAST, Mean, Text, Training, outcomes
from support.updates import npy, update


def test_a_participant_may_have_its_own_format() -> None:
    with OldPlatform(heartbeat=After("upload", order(0), FINISH), download=[Answer(body=b"hello")]) as p:
        run_participant(Text(), p.url, FAST)
    assert p.of("upload")[0].body == b"hello!"


BYTES = update(1, 0, 1, 2)


def mapped(data: bytes) -> mmap:
    found = mmap(-1, len(data))
    found.write(data)
    return found


def parts_of(result: Any) -> list[bytes]:
    class Own(Text):
        def serialize_training_result(self, training_result: str) -> Any:
            return result

    round = Round(0, Shard(0, 1), lambda figures: None)
    return [bytes(part) for part in Steps(Own(), lambda fact: None)(round, [memoryview(b"")])]


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        memoryview,
        partial(array, "B"),
        mapped,
        (c_char * len(BYTES)).from_buffer_copy,
        lambda data: [data[:4], np.frombuffer(data[4:], np.uint8)],
    ],
)
def test_a_result_may_be_any_buffer_or_a_list_of_them(make: Callable[[bytes], Any]) -> None:
    assert b"".join(parts_of(make(BYTES))) == BYTES


def test_an_array_of_any_dtype_is_sent_as_its_bytes() -> None:
    for kind in ("u1", ">f8", "?", "i4,f8"):
        result = np.zeros((2, 3), kind)
        assert parts_of(result) == [result.tobytes()]


@pytest.mark.parametrize(("result", "complaint"), [("text", "bytes-like"), (5, "int"), (np.ones((3, 3))[:, 0], "contiguous")])
def test_a_result_that_is_not_a_contiguous_buffer_is_an_error(result: Any, complaint: str) -> None:
    with pytest.raises(SerializationError, match=complaint):
        parts_of(result)


def test_user_code_always_runs_on_the_callers_thread() -> None:
    threads = set()

    class Bound(Text):
        def deserialize_training_input(self, data: bytes) -> str:
            threads.add(threading.current_thread())
            return super().deserialize_training_input(data)

        def train_round(self, training_input: str) -> str:
            threads.add(threading.current_thread())
            return training_input

        def serialize_training_result(self, training_result: str) -> memoryview:
            threads.add(threading.current_thread())
            return memoryview(b"")

    with OldPlatform(heartbeat=After("upload", order(0), order(1), order(2), FINISH)) as p:
        run_participant(Bound(), p.url, FAST)
    assert threads == {threading.current_thread()}


def test_heartbeats_continue_while_user_code_trains() -> None:
    with OldPlatform(heartbeat=[order(0)] * 6 + [FINISH]) as p:

        def train(weights: Array | None) -> Update:
            p.seen("heartbeat", 5)
            return Update(1, np.ones(1))

        run_participant(Training(train), p.url, FAST)
    assert [beat.headers["Prefer"] for beat in p.of("heartbeat")[:3]] == ["wait=15", "wait=0", "wait=0"]


def test_user_code_can_see_that_its_round_was_cancelled() -> None:
    def train(weights: Array | None) -> Update:
        while not current_round().cancelled:
            p.seen("heartbeat", len(p.of("heartbeat")) + 1)
        return Update(1, np.ones(1))

    facts: list[Fact] = []
    with OldPlatform(heartbeat=[order(0), order(0), STAND_BY, STAND_BY, STAND_BY, STAND_BY, FINISH]) as p:
        run_participant(Training(train), p.url, FAST, long_poll=0, observers=[facts.append])
    assert outcomes(facts) == ["abandoned"]
    assert p.of("upload") == []


def test_an_error_in_a_cancelled_round_is_ignored() -> None:
    def train(weights: Array | None) -> Update:
        p.seen("heartbeat", 4)
        raise InterruptedError

    with OldPlatform(heartbeat=[order(0), STAND_BY, STAND_BY, STAND_BY, FINISH]) as p:
        run_participant(Training(train), p.url, FAST)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_raised_after_the_participant_left(interruption: type[BaseException]) -> None:
    def train(weights: Array | None) -> Update:
        raise interruption

    with our_platform() as p:
        with pytest.raises(interruption):
            run_participant(Training(train), p.url)
        assert p.status()["participants"] == []


def test_an_interruption_during_the_start_is_raised_after_the_participant_left() -> None:
    def interrupt(fact: Fact) -> None:
        if fact == events.StateChanged("registering", None, draining=False):
            os.kill(os.getpid(), signal.SIGINT)

    with OldPlatform() as p:
        with (
            connected(Mean(), p.url, Terms(heartbeat_period=FAST, observers=[interrupt])) as runtime,
            pytest.raises(KeyboardInterrupt),
        ):
            runtime.run()
        assert runtime.ended.is_set()
        assert len(p.of("leave")) == len(p.of("rendez_vous"))


def test_an_interruption_that_wakes_another_thread_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(fact: Fact) -> None:
        if fact == events.StateChanged("waiting", None, draining=False):
            # This thread takes the signal, and the one that Python handles it on sleeps on.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("fedround.participant.runtime.TURN", 0.1)
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with (
            OldPlatform() as p,
            connected(Mean(), p.url, Terms(heartbeat_period=FAST, observers=[interrupt])) as runtime,
            pytest.raises(KeyboardInterrupt),
        ):
            runtime.run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@pytest.mark.parametrize(
    ("model", "result", "complaint"),
    [
        (np.ones(3), Update(1, np.array([1.0, np.nan, 1.0])), "NaN in 1"),
        (np.ones(3), Update(1, np.ones(4)), "shape"),
        (np.ones(3, np.float32), Update(1, np.ones(3)), "float64"),
        (np.ones(3), Update(-1, np.ones(3)), "-1"),
        (np.ones(3), Update(2**32, np.ones(3)), "4294967296"),
        (np.ones(3), (1, np.array([None, None, None])), "dtype"),
        (np.ones(3), None, "train_round returned None"),
    ],
)
def test_an_invalid_update_is_not_sent(model: Array, result: Any, complaint: str) -> None:
    with OldPlatform(heartbeat=[order(0), order(0)], download=[Answer(body=npy(model))]) as p:
        with pytest.raises(SerializationError, match=complaint):
            run_participant(Training(lambda weights: result), p.url, FAST)
        assert [request.body for request in p.of("upload")] == [b""], "the round is forfeited"


def test_nan_in_an_update_that_is_not_sent_is_reported() -> None:
    facts: list[Fact] = []
    participant = Training(lambda weights: Update(1, np.array([np.nan, 1.0, np.inf])))
    with OldPlatform(heartbeat=[order(0), order(0)], download=[Answer(body=npy(np.ones(3)))]) as p:
        runtime = connected(participant, p.url, Terms(heartbeat_period=FAST, observers=[facts.append]), measure=True)
        with pytest.raises(SerializationError, match="NaN in 1"), runtime as ready:
            ready.run()
        assert [request.body for request in p.of("upload")] == [b""]
    measured = {fact.source: fact.statistics for fact in facts if isinstance(fact, events.WeightsMeasured)}
    assert (measured["global"].nonfinite, measured["local"].nonfinite) == (0, 2)


def test_an_invalid_model_fails_the_round() -> None:
    with OldPlatform(heartbeat=[order(0)], download=[Answer(body=b"no array")]) as p:
        with pytest.raises(DeserializationError, match=r"numpy\.save"):
            run_participant(Mean(), p.url, FAST)
        assert len(p.of("leave")) == 1


def test_an_error_with_a_circular_cause_or_context_ends_the_round() -> None:
    def of_itself(weights: Array | None) -> Update:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as error:
            raise error from error

    def in_a_ring(weights: Array | None) -> Update:
        first, second = ZeroDivisionError(), KeyError()
        first.__context__, second.__context__ = second, first
        raise first

    for train in (of_itself, in_a_ring):
        with OldPlatform(heartbeat=[order(0)]) as p, pytest.raises(TrainingError, match="ZeroDivisionError"):
            run_participant(Training(train), p.url, FAST)


def test_models_and_updates_are_freed_before_the_next_download() -> None:
    alive: list[weakref.ref[Array]] = []
    seen: list[int] = []
    model = Answer(body=npy(np.ones(1000)))

    def fetch() -> Answer:
        gc.collect()
        seen.append(sum(array() is not None for array in alive))
        return model

    def train(weights: Array | None) -> Update:
        assert weights is not None
        assert weights.flags.writeable
        alive.append(weakref.ref(weights))
        result = weights + 1
        alive.append(weakref.ref(result))
        return Update(1, result)

    with OldPlatform(heartbeat=After("upload", order(0), order(1), order(2), FINISH), download=[fetch]) as p:
        run_participant(Training(train), p.url, FAST)
    assert seen == [0, 0, 0]
    assert not any(array() is not None for array in alive)


def test_only_user_code_holds_the_model() -> None:
    class Freeing(NumPyParticipant):
        def train_round(self, training_input: Array | None) -> Update:
            assert training_input is not None
            model = weakref.ref(training_input)
            del training_input
            assert model() is None
            return Update(1, np.ones(1000))

    with OldPlatform(heartbeat=After("upload", order(0), FINISH), download=[Answer(body=npy(np.ones(1000)))]) as p:
        run_participant(Freeing(), p.url, FAST)


def test_a_failure_does_not_hold_the_model() -> None:
    alive: list[weakref.ref[Array]] = []
    failing = iter([True, False])

    def lose(weights: Array) -> None:
        raise KeyError

    def train(weights: Array | None) -> Update:
        assert weights is not None
        gc.collect()
        assert not any(array() is not None for array in alive)
        alive.append(weakref.ref(weights))
        if next(failing):
            try:
                lose(weights)
            except KeyError:
                raise ZeroDivisionError from ValueError("another cause than its context")
        return Update(1, weights)

    with OldPlatform(heartbeat=After("upload", order(0), FINISH), download=[Answer(body=npy(np.ones(1000)))]) as p:
        run_participant(Training(train), p.url, FAST, max_failures=2)
    assert len(alive) == 2
