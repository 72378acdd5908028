"""Participants at work, with real platforms on the loopback: ours, and one that speaks 0.8."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading
import weakref
from array import array
from collections.abc import Callable
from contextlib import closing
from ctypes import c_char
from functools import partial
from mmap import mmap
from typing import Any

import numpy as np
import pytest

from fedround import events
from fedround.common.wire import START_TRAINING, UPDATE, RendezVous
from fedround.errors import ConfigurationError, CoordinatorUnreachable, DeserializationError, SerializationError, TrainingError
from fedround.events import Fact
from fedround.http.client import AggregatorClient, CoordinatorClient
from fedround.observability.health import Health
from fedround.participant.abc import NumPyParticipant, ParticipantABC, Update
from fedround.participant.lifecycle import Lifecycle
from fedround.participant.moves import Policy, Reason
from fedround.participant.round import Round, Shard, current_round
from fedround.participant.run import connected, run_participant
from fedround.participant.runtime import Runtime
from fedround.participant.shards import Shards
from fedround.participant.terms import Terms
from fedround.participant.training import Training as Steps
from fedround.participant.watch import StatusObserver
from fedround.tensors.weights import Array
from support.federation import FINISH, REFUSED, REJECT, STAND_BY, TOKEN, After, Answer, OldPlatform, order, our_platform, say
from support.peer import Peer, Reply, answer
from support.processes import until
from support.proxy import Proxy

FAST = 0.02
"""A heartbeat period."""


class Mean(NumPyParticipant):
    """Trains by answering with its own value."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.given: list[Array | None] = []

    def train_round(self, training_input: Array | None) -> Update:
        self.given.append(None if training_input is None else training_input.copy())
        return Update(1, np.full(3, self.value))


class Training(NumPyParticipant):
    """Trains as a function says."""

    def __init__(self, train: Callable[[Array | None], Any]) -> None:
        self.train = train

    def train_round(self, training_input: Array | None) -> Any:
        return self.train(training_input)


class Text(ParticipantABC[str, str]):
    """A format of its own."""

    def deserialize_training_input(self, data: bytes) -> str:
        assert type(data) is bytes
        return data.decode()

    def train_round(self, training_input: str) -> str:
        return training_input + "!"

    def serialize_training_result(self, training_result: str) -> memoryview:
        return memoryview(training_result.encode())


def double(weights: Array | None) -> Update:
    assert weights is not None
    return Update(7, weights * 2)


def npy(array: Array) -> bytes:
    body = io.BytesIO()
    np.save(body, array)
    return body.getvalue()


def update(samples: int, array: Array) -> bytes:
    return samples.to_bytes(4, "big") + npy(array)


def outcomes(facts: list[Fact]) -> list[str]:
    return [fact.outcome for fact in facts if isinstance(fact, events.RoundEnded)]


# With our platform


def test_participants_train_with_our_platform_until_it_is_finished() -> None:
    with our_platform(rounds=3, min_clients=3) as p:
        participants = [Mean(float(value)) for value in range(3)]
        threads = [threading.Thread(target=run_participant, args=(participant, p.url)) for participant in participants]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        model = p.platform.aggregator.model
    assert model is not None
    assert np.frombuffer(model.buffers[1]).tolist() == [1.0, 1.0, 1.0]
    for participant in participants:
        assert [None if given is None else given.tolist() for given in participant.given] == [None, [1.0] * 3, [1.0] * 3]


def test_a_round_with_our_platform_tells_its_whole_story() -> None:
    facts: list[Fact] = []
    with our_platform(rounds=1) as p:
        run_participant(Mean(), p.url, observers=[facts.append])
    story = [fact for fact in facts if not isinstance(fact, events.ExchangeEnded | events.PhaseBegan | events.ContactMade)]
    assert [fact.state if isinstance(fact, events.StateChanged) else type(fact).__name__ for fact in story] == [
        *("registering", "Registered", "waiting", "RoundJoined", "training"),
        *("PhaseEnded", "ShardAssigned"),
        *["PhaseEnded"] * 5,
        *("RoundEnded", "waiting", "finished"),
    ]
    phases = [fact.phase for fact in facts if isinstance(fact, events.PhaseEnded)]
    assert phases == ["download", "decode", "train", "encode", "check", "upload"]
    assert [fact.phase for fact in facts if isinstance(fact, events.PhaseBegan)] == phases
    assert outcomes(facts) == ["completed"]


def test_who_does_not_want_to_be_held_is_told_all_of_its_order_too() -> None:
    facts: list[Fact] = []
    with our_platform(rounds=1) as p:
        run_participant(Mean(), p.url, FAST, long_poll=0, observers=[facts.append])
    assert START_TRAINING not in [fact.path for fact in facts if isinstance(fact, events.ExchangeEnded)]


def test_what_user_code_reports_reaches_the_platform() -> None:
    def train(weights: Array | None) -> Update:
        current_round().report(loss=2.0 + current_round().number)
        return Update(4, np.ones(2))

    facts: list[Fact] = []
    with our_platform(rounds=2) as p:
        run_participant(Training(train), p.url, observers=[facts.append])
        figures = [completed["figures"] for completed in p.status()["last_rounds"]]
    assert figures == [{"loss": 2.0}, {"loss": 3.0}]
    assert events.MetricsReported(0, (("loss", 2.0),)) in facts


def test_participants_get_the_numbers_of_their_shards_from_our_platform() -> None:
    shards = set()

    def train(weights: Array | None) -> Update:
        shards.add(current_round().shard.of(range(4)))
        return Update(1, np.ones(2))

    facts: list[Fact] = []
    options: Any = {"shards": 2, "observers": [facts.append]}
    with our_platform(rounds=2, min_clients=2) as p:
        threads = [threading.Thread(target=run_participant, args=(Training(train), p.url), kwargs=options) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert shards == {range(0, 4, 2), range(1, 5, 2)}
    taken = [fact for fact in facts if isinstance(fact, events.ShardAssigned)]
    assert sorted((fact.index, fact.count) for fact in taken) == [(0, 2), (1, 2)], "told once, not in every round"


def test_a_participant_of_a_fleet_leaves_when_it_fails_so_that_the_others_go_on() -> None:
    def fail(weights: Array | None) -> Update:
        raise ZeroDivisionError("no data")

    with our_platform(rounds=1, min_clients=1) as p:
        with pytest.raises(TrainingError, match="round 0: ZeroDivisionError: no data") as raised:
            run_participant(Training(fail), p.url)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        assert p.status()["participants"] == []
        run_participant(Mean(), p.url)


def test_a_participant_may_fail_as_often_as_it_is_allowed_to() -> None:
    left = iter([True, True, False])

    def train(weights: Array | None) -> Update:
        if next(left):
            raise ZeroDivisionError
        return Update(1, np.ones(2))

    facts: list[Fact] = []
    with our_platform(rounds=1) as p:
        run_participant(Training(train), p.url, max_failures=3, observers=[facts.append])
    assert outcomes(facts) == ["failed", "failed", "completed"]


# With a platform of 0.8


def test_a_participant_trains_with_a_platform_of_0_8() -> None:
    model = np.arange(3, dtype=np.float32)
    with OldPlatform(heartbeat=After("upload", [STAND_BY, order(4)], order(5), FINISH), download=[Answer(body=npy(model))]) as p:
        facts: list[Fact] = []
        run_participant(Training(double), p.url, FAST, observers=[facts.append])
    assert [request.body for request in p.of("upload")] == [update(7, model * 2)] * 2
    assert {request.path for request in p.of("upload")} == {p.of("download")[0].path}
    # Unconfirmed where the next heartbeat overtakes the upload's answer, which says nothing.
    assert len(outcomes(facts)) == 2
    assert set(outcomes(facts)) <= {"completed", "unconfirmed"}


def test_any_format_travels() -> None:
    with OldPlatform(heartbeat=After("upload", order(0), FINISH), download=[Answer(body=b"hello")]) as p:
        run_participant(Text(), p.url, FAST)
    assert p.of("upload")[0].body == b"hello!"


BYTES = update(1, np.arange(3.0))


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
    "make", [bytes, bytearray, memoryview, partial(array, "B"), mapped, (c_char * len(BYTES)).from_buffer_copy]
)
def test_whatever_has_bytes_is_sent_from_where_it_is(make: Callable[[bytes], Any]) -> None:
    assert parts_of(make(BYTES)) == [BYTES]


def test_an_array_of_any_kind_is_its_bytes() -> None:
    for kind in ("u1", ">f8", "?", "i4,f8"):
        result = np.zeros((2, 3), kind)
        assert parts_of(result) == [result.tobytes()]


def test_several_are_sent_one_behind_the_other() -> None:
    assert parts_of([BYTES[:4], np.frombuffer(BYTES[4:], np.uint8)]) == [BYTES[:4], BYTES[4:]]


@pytest.mark.parametrize(("result", "complaint"), [("text", "bytes-like"), (5, "int"), (np.ones((3, 3))[:, 0], "contiguous")])
def test_what_has_no_bytes_in_a_row_is_not_sent(result: Any, complaint: str) -> None:
    with pytest.raises(SerializationError, match=complaint):
        parts_of(result)


def test_the_same_round_right_after_an_upload_is_neither_trained_nor_sent_again() -> None:
    participant = Mean()
    with OldPlatform(
        heartbeat=After("upload", order(0), [order(0), order(0), order(0), order(1)], [order(1), order(1), FINISH])
    ) as p:
        run_participant(participant, p.url, FAST)
    assert len(participant.given) == len(p.of("upload")) == 2


def test_an_update_that_stays_unconfirmed_is_sent_again_without_training() -> None:
    participant = Mean()
    facts: list[Fact] = []
    with OldPlatform(heartbeat=After("upload", order(0), order(0), order(1), FINISH)) as p:
        run_participant(participant, p.url, 0.05, confirm_timeout=0.12, observers=[facts.append])
    first, second, _ = p.of("upload")
    assert first.body == second.body
    assert (len(p.of("upload")), len(participant.given)) == (3, 2)
    assert outcomes(facts) == ["completed", "completed"]


def test_a_dead_token_is_replaced_and_the_kept_update_delivered() -> None:
    participant = Mean()
    with OldPlatform(heartbeat=After("upload", order(0), order(0), FINISH), upload=[Answer(405), Answer()]) as p:
        run_participant(participant, p.url, FAST)
    assert len(p.of("start_training")) == len(p.of("upload")) == 2
    assert len(participant.given) == 1


def test_an_order_for_a_kept_update_asks_whether_the_model_is_still_the_same() -> None:
    participant = Mean()
    old, new = Answer(headers={"ETag": '"0"'}), Answer(body=npy(np.ones(3)), headers={"ETag": '"1"'})
    with OldPlatform(
        heartbeat=After("upload", order(0), order(0), order(0), order(1), FINISH),
        download=[old, Answer(304, headers={"ETag": '"0"'}), new],
        upload=[Answer(409), Answer(409), Answer(200, headers={"Fedround-Update": "counted"})],
    ) as p:
        run_participant(participant, p.url, FAST)
    assert [request.headers.get("If-None-Match") for request in p.of("download")] == [None, '"0"', '"0"', None]
    assert len(p.of("upload")) == 4
    assert len(participant.given) == 3


def test_a_refused_order_and_a_rejection_are_survived() -> None:
    with OldPlatform(
        heartbeat=After("upload", [order(0), REJECT, order(0)], FINISH),
        start_training=[REFUSED, say({"url": "http://nowhere.invalid", "token": TOKEN, "ok": True})],
    ) as p:
        run_participant(Mean(), p.url, FAST, aggregator_url=p.url)
    assert len(p.of("rendez_vous")) == 2
    assert len(p.of("upload")) == 1


def test_the_name_the_token_and_the_wish_to_be_held_are_sent() -> None:
    with OldPlatform(heartbeat=[FINISH]) as p:
        run_participant(Mean(), p.url, name="silo-1", token="secret", long_poll=7)
    register, beat = p.requests
    assert (register.headers["Fedround-Participant"], register.headers["Authorization"]) == ("silo-1", "Bearer secret")
    assert beat.headers["Prefer"] == "wait=7"


def test_a_finished_training_accepts_nobody() -> None:
    with OldPlatform(rendez_vous=[say({"id": None, "ok": False})]) as p:
        run_participant(Mean(), p.url)


def test_an_upload_whose_connection_is_refused_is_sent_again_at_once() -> None:
    """Nothing can have arrived: it is not taken for an update that a 0.8 platform has not confirmed."""
    closed: list[str] = []
    reopened: list[Peer] = []

    def train(weights: Array | None) -> Update:
        first.__exit__(None, None, None)
        closed.append(first.address)
        return Update(1, np.ones(2))

    def reopen(fact: Fact) -> None:
        if isinstance(fact, events.Retrying) and fact.path == UPDATE and closed:
            reopened.append(Peer(answer("200 OK"), port=int(closed.pop().partition(":")[2])).__enter__())

    with OldPlatform(heartbeat=[order(0)]) as p:
        first = Peer(Reply(answer("200 OK", Connection="close"), close=True)).__enter__()
        observers = [reopen]
        with connected(
            Training(train), p.url, Terms(heartbeat_period=FAST, aggregator_url=first.url, observers=observers)
        ) as runtime:
            threading.Thread(target=runtime.run, daemon=True).start()
            until(lambda: reopened and reopened[0].requests)
            runtime.stop(0.0)
            assert runtime.ended.wait(20)
    (second,) = reopened
    second.__exit__(None, None, None)
    assert second.requests[0].body == update(1, np.ones(2))


# Proxies in between


def test_an_update_that_a_proxy_refuses_is_kept_until_somebody_raises_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.participant.runtime.INTERCEPTED_PAUSE", 0.1)
    facts: list[Fact] = []
    participant, health = Mean(), Health()
    watch = StatusObserver("silo", health, within=5.0)
    seen: dict[str, Any] = {}

    def raise_the_limit(fact: Fact) -> None:
        facts.append(fact)
        if isinstance(fact, events.TransferLost) and sum(isinstance(one, events.TransferLost) for one in facts) == 3:
            seen.update(reasons=health.reasons, status=watch.status())
            proxy.limit = 1000

    with our_platform(rounds=2) as p:
        proxy = Proxy(f"http://127.0.0.1:{p.platform.aggregator_public.port}", limit=100)
        with proxy.serving():
            run_participant(participant, p.url, aggregator_url=proxy.url, observers=[watch, raise_the_limit])
    assert len(participant.given) == 2, "it trains once in each round"
    assert outcomes(facts) == ["completed", "completed"]
    assert proxy.seen == ["GET", *["POST"] * 4, "GET", "POST"]
    (reason,) = {fact.reason for fact in facts if isinstance(fact, events.TransferLost)}
    assert reason.endswith("refuses bodies of 156 bytes (413 without our header): raise its limit, nginx `client_max_body_size`")
    assert seen["reasons"] == [reason]
    assert seen["status"]["trouble"] == reason
    assert (watch.status()["trouble"], health.reasons) == ("", [])


def test_the_coordinator_is_told_what_keeps_a_participant_from_the_aggregator() -> None:
    page = Answer(404, b"404 page not found", {"Content-Type": "text/plain"})
    with OldPlatform(heartbeat=[order(0)], download=[page]) as p, connected(Mean(), p.url, Terms(heartbeat_period=FAST)) as runtime:
        threading.Thread(target=runtime.run, daemon=True).start()
        until(lambda: [request for request in p.of("heartbeat") if "Fedround-Trouble" in request.headers])
        runtime.stop(0.0)
        assert runtime.ended.wait(20)
    (told,) = {request.headers["Fedround-Trouble"] for request in p.of("heartbeat") if "Fedround-Trouble" in request.headers}
    assert told.startswith("GET 127.0.0.1:")
    assert "/{id}/{token}: 404 without our header (text/plain): a proxy or another service answers there" in told
    assert len(p.of("download")) == 1, "it does not come back at once"


# Failures of the network


def test_a_lost_contact_says_what_is_likely_to_mend_it() -> None:
    facts: list[Fact] = []
    with OldPlatform(rendez_vous=[Answer(404)]) as p, pytest.raises(CoordinatorUnreachable):
        run_participant(Mean(), p.url, observers=[facts.append], give_up_after=0.01)
    (lost,) = {fact.reason for fact in facts if isinstance(fact, events.ContactLost)}
    assert lost.endswith(
        "refused with 404: is PARTICIPANT_COORDINATOR_URL (--coordinator-url) the coordinator's port for participants,"
        " 8081 by default?"
    )


def test_a_program_that_configures_no_logging_is_told_whom_it_waits_for() -> None:
    with OldPlatform() as p:
        url = p.url
    program = f"""
import fedround
class Mine(fedround.NumPyParticipant):
    def train_round(self, weights): ...
try:
    fedround.run_participant(Mine(), {url!r}, give_up_after=0.01)
except fedround.CoordinatorUnreachable:
    print("gave up")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "gave up\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("no contact with the coordinator: ")


def test_a_lost_transfer_is_told_with_what_is_likely_to_mend_it_unless_the_round_ends_by_it() -> None:
    facts: list[Fact] = []
    with OldPlatform(
        heartbeat=After("upload", order(0), FINISH),
        download=[Answer(401), Answer(500), Answer()],
        upload=[Answer(422)],
    ) as p:
        run_participant(Mean(), p.url, FAST, observers=[facts.append])
    lost = [fact.reason.partition(": ")[2] for fact in facts if isinstance(fact, events.TransferLost)]
    assert lost == ["refused with 401: is PARTICIPANT_TOKEN (--token) the right one?", "500"]
    assert outcomes(facts) == ["refused"]


def test_a_coordinator_that_is_away_is_waited_for() -> None:
    with OldPlatform(
        rendez_vous=[Answer(502), Answer(404), Answer(body=b"<html>"), say({"id": TOKEN, "ok": True})],
        heartbeat=After("upload", [Answer(500), Answer(429, headers={"Retry-After": "0"}), order(0)], FINISH),
        start_training=[Answer(404), say({"url": "http://unused.invalid", "token": TOKEN, "ok": True})],
        download=[Answer(503, headers={"Retry-After": "0"}), Answer()],
    ) as p:
        facts: list[Fact] = []
        run_participant(Mean(), p.url, FAST, aggregator_url=p.url, reconnect_max=0.01, observers=[facts.append])
    reasons = [(fact.path, fact.reason) for fact in facts if isinstance(fact, events.Retrying)]
    assert reasons == [
        ("/rendez_vous", "unreachable"),
        ("/rendez_vous", "refused"),
        ("/rendez_vous", "bad_answer"),
        ("/heartbeat/{id}", "unreachable"),
        ("/heartbeat/{id}", "busy"),
        ("/start_training/{id}", "unreachable"),
        ("/{id}/{token}", "busy"),
    ]


def test_a_coordinator_that_stays_away_is_given_up_if_so_wished() -> None:
    with OldPlatform() as p:
        pass
    with pytest.raises(CoordinatorUnreachable, match="rendez_vous"):
        run_participant(Mean(), p.url, give_up_after=0.05, reconnect_max=0.01)


def test_a_model_that_is_larger_than_allowed_is_not_received() -> None:
    facts: list[Fact] = []
    with OldPlatform(heartbeat=[order(0)], download=[Answer(body=bytes(1000))]) as p:
        with pytest.raises(ConfigurationError, match="model has 1000 bytes or more, PARTICIPANT_MAX_MODEL_SIZE allows 999"):
            run_participant(Mean(), p.url, FAST, max_model_size=999, max_failures=2, observers=[facts.append])
        assert len(p.of("start_training")) == 2
    assert outcomes(facts) == ["failed"] * 2


def test_the_coordinator_is_told_what_a_participant_does() -> None:
    def phases() -> list[str]:
        return [participant["phase"] for participant in p.platform.coordinator.status()["participants"]]

    def train(_: Array | None) -> Update:
        until(lambda: phases() == ["training"])
        return Update(1, np.zeros(3))

    with our_platform(rounds=1) as p:
        proxy = Proxy(f"http://127.0.0.1:{p.platform.aggregator_public.port}", limit=10)
        with proxy.serving(), connected(Training(train), p.url, Terms(heartbeat_period=FAST, aggregator_url=proxy.url)) as runtime:
            thread = threading.Thread(target=runtime.run, daemon=True)
            thread.start()
            until(lambda: phases() == ["retrying"])
            runtime.stop(0.0)
            thread.join(20)


def test_a_good_bye_that_fails_is_no_failure_of_its_own() -> None:
    with OldPlatform(heartbeat=[order(0)], download=[Answer(body=b"no array")], leave=[Answer(500)]) as p:
        with pytest.raises(DeserializationError):
            run_participant(Mean(), p.url, FAST)
        assert len(p.of("leave")) == 1


def test_a_bug_in_any_thread_ends_the_participant_and_is_told() -> None:
    class Buggy(CoordinatorClient):
        def rendez_vous(self, name: str, ordinal: int | None = None, **more: Any) -> RendezVous:
            raise NotImplementedError("a bug")

    with closing(Buggy("http://localhost:1")) as coordinator, closing(AggregatorClient(max_model_size=1)) as aggregator:
        runtime = Runtime(
            Steps(Mean(), lambda fact: None),
            coordinator,
            aggregator,
            Lifecycle(Policy(), lambda: 0.0),
            name="silo-1",
            shards=Shards(None, None, None, "silo-1"),
            observe=lambda fact: None,
        )
        with pytest.raises(NotImplementedError, match="a bug"):
            runtime.run()


def test_who_is_asked_to_stop_while_it_registers_leaves_with_the_id_that_comes() -> None:
    def register() -> Answer:
        runtime.stop(0.0)
        assert stopping.wait(20)
        return say({"id": TOKEN, "ok": True})

    def draining(fact: Fact) -> None:
        if isinstance(fact, events.StateChanged) and fact.draining:
            stopping.set()

    stopping = threading.Event()
    with OldPlatform(rendez_vous=[register]) as p:
        with connected(Mean(), p.url, Terms(heartbeat_period=FAST, observers=[draining])) as runtime:
            assert runtime.run() is Reason.STOPPED
        assert [request.path for request in p.of("leave")] == [f"/rendez_vous/{TOKEN}"]


# User code


def test_user_code_always_runs_on_the_thread_of_the_caller() -> None:
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


def test_heartbeats_go_on_while_user_code_trains() -> None:
    with OldPlatform(heartbeat=[order(0)] * 6 + [FINISH]) as p:

        def train(weights: Array | None) -> Update:
            p.seen("heartbeat", 5)
            return Update(1, np.ones(1))

        run_participant(Training(train), p.url, FAST)
    assert [beat.headers["Prefer"] for beat in p.of("heartbeat")[:3]] == ["wait=15", "wait=0", "wait=0"]


def test_user_code_can_see_that_its_round_was_given_away() -> None:
    def train(weights: Array | None) -> Update:
        while not current_round().cancelled:
            p.seen("heartbeat", len(p.of("heartbeat")) + 1)
        return Update(1, np.ones(1))

    facts: list[Fact] = []
    with OldPlatform(heartbeat=[order(0), order(0), STAND_BY, STAND_BY, STAND_BY, STAND_BY, FINISH]) as p:
        run_participant(Training(train), p.url, FAST, long_poll=0, observers=[facts.append])
    assert outcomes(facts) == ["abandoned"]
    assert p.of("upload") == []


def test_an_error_in_a_round_that_was_given_away_ends_nothing() -> None:
    def train(weights: Array | None) -> Update:
        p.seen("heartbeat", 4)
        raise InterruptedError

    with OldPlatform(heartbeat=[order(0), STAND_BY, STAND_BY, STAND_BY, FINISH]) as p:
        run_participant(Training(train), p.url, FAST)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_of_user_code_passes_when_the_participant_has_left(interruption: type[BaseException]) -> None:
    def train(weights: Array | None) -> Update:
        raise interruption

    with our_platform() as p:
        with pytest.raises(interruption):
            run_participant(Training(train), p.url)
        assert p.status()["participants"] == []


def test_an_interruption_passes_when_the_participant_has_left_even_if_it_comes_while_it_starts() -> None:
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


def test_an_interruption_is_seen_though_it_did_not_wake_the_thread_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_is_no_good_update_never_leaves_the_house(model: Array, result: Any, complaint: str) -> None:
    with OldPlatform(heartbeat=[order(0), order(0)], download=[Answer(body=npy(model))]) as p:
        with pytest.raises(SerializationError, match=complaint):
            run_participant(Training(lambda weights: result), p.url, FAST)
        assert [request.body for request in p.of("upload")] == [b""], "the round is forfeited"


def test_the_nan_of_an_update_that_is_not_sent_is_told() -> None:
    facts: list[Fact] = []
    participant = Training(lambda weights: Update(1, np.array([np.nan, 1.0, np.inf])))
    with OldPlatform(heartbeat=[order(0), order(0)], download=[Answer(body=npy(np.ones(3)))]) as p:
        runtime = connected(participant, p.url, Terms(heartbeat_period=FAST, observers=[facts.append]), measure=True)
        with pytest.raises(SerializationError, match="NaN in 1"), runtime as ready:
            ready.run()
        assert [request.body for request in p.of("upload")] == [b""]
    measured = {fact.source: fact.statistics for fact in facts if isinstance(fact, events.WeightsMeasured)}
    assert (measured["global"].nonfinite, measured["local"].nonfinite) == (0, 2)


def test_a_model_that_is_none_fails_the_round() -> None:
    with OldPlatform(heartbeat=[order(0)], download=[Answer(body=b"no array")]) as p:
        with pytest.raises(DeserializationError, match=r"numpy\.save"):
            run_participant(Mean(), p.url, FAST)
        assert len(p.of("leave")) == 1


def test_an_error_that_is_its_own_cause_or_context_ends_the_round_like_any_other() -> None:
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


# Memory


def test_nothing_holds_a_model_or_an_update_when_the_next_model_is_fetched() -> None:
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


def test_the_model_belongs_to_user_code_alone() -> None:
    class Freeing(NumPyParticipant):
        def train_round(self, training_input: Array | None) -> Update:
            assert training_input is not None
            model = weakref.ref(training_input)
            del training_input
            assert model() is None
            return Update(1, np.ones(1000))

    with OldPlatform(heartbeat=After("upload", order(0), FINISH), download=[Answer(body=npy(np.ones(1000)))]) as p:
        run_participant(Freeing(), p.url, FAST)


def test_a_failure_holds_no_model() -> None:
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
