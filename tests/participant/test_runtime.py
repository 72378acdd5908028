"""Participants with our platform on loopback; proxies, and network failures."""

import subprocess
import sys
import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from fedround import events
from fedround.common.wire import START_TRAINING, RendezVous
from fedround.errors import ConfigurationError, CoordinatorUnreachable, DeserializationError, TrainingError
from fedround.events import Fact
from fedround.http.client import AggregatorClient, CoordinatorClient
from fedround.observability.health import Health
from fedround.participant.abc import Update
from fedround.participant.lifecycle import Lifecycle
from fedround.participant.moves import Policy, Reason
from fedround.participant.round import current_round
from fedround.participant.run import connected, run_participant
from fedround.participant.runtime import Runtime
from fedround.participant.shards import Shards
from fedround.participant.terms import Terms
from fedround.participant.training import Training as Steps
from fedround.participant.watch import StatusObserver
from fedround.tensors.weights import Array
from support.federation import FINISH, TOKEN, After, Answer, OldPlatform, order, our_platform, say
from support.participants import FAST, Mean, Training, outcomes, run_all, running
from support.processes import until
from support.proxy import Proxy


def test_participants_train_with_our_platform_until_it_is_finished() -> None:
    participants = [Mean(float(value)) for value in range(3)]
    with our_platform(rounds=3, min_clients=3) as p:
        run_all(participants, p.url)
        model = p.platform.aggregator.model
    assert model is not None
    assert np.frombuffer(model.buffers[1]).tolist() == [1.0, 1.0, 1.0]
    for participant in participants:
        assert [None if given is None else given.tolist() for given in participant.given] == [None, [1.0] * 3, [1.0] * 3]


def test_observers_see_every_step_of_a_round() -> None:
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


def test_without_long_polls_the_heartbeat_brings_the_whole_training_request() -> None:
    facts: list[Fact] = []
    with our_platform(rounds=1) as p:
        run_participant(Mean(), p.url, FAST, long_poll=0, observers=[facts.append])
    assert START_TRAINING not in [fact.path for fact in facts if isinstance(fact, events.ExchangeEnded)]


def test_metrics_that_user_code_reports_reach_the_coordinator() -> None:
    def train(weights: Array | None) -> Update:
        current_round().report(loss=2.0 + current_round().number)
        return Update(4, np.ones(2))

    facts: list[Fact] = []
    with our_platform(rounds=2) as p:
        run_participant(Training(train), p.url, observers=[facts.append])
        figures = [completed["figures"] for completed in p.status()["last_rounds"]]
    assert figures == [{"loss": 2.0}, {"loss": 3.0}]
    assert events.MetricsReported(0, (("loss", 2.0),)) in facts


def test_the_coordinator_assigns_the_shards() -> None:
    shards = set()

    def train(weights: Array | None) -> Update:
        shards.add(current_round().shard.of(range(4)))
        return Update(1, np.ones(2))

    facts: list[Fact] = []
    with our_platform(rounds=2, min_clients=2) as p:
        run_all([Training(train), Training(train)], p.url, shards=2, observers=[facts.append])
    assert shards == {range(0, 4, 2), range(1, 5, 2)}
    taken = [fact for fact in facts if isinstance(fact, events.ShardAssigned)]
    assert sorted((fact.index, fact.count) for fact in taken) == [(0, 2), (1, 2)], "told once, not in every round"


def test_a_failed_participant_leaves_so_that_the_others_continue() -> None:
    def fail(weights: Array | None) -> Update:
        raise ZeroDivisionError("no data")

    with our_platform(rounds=1, min_clients=1) as p:
        with pytest.raises(TrainingError, match="round 0: ZeroDivisionError: no data") as raised:
            run_participant(Training(fail), p.url)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
        assert p.status()["participants"] == []
        run_participant(Mean(), p.url)


def test_a_participant_retries_up_to_max_failures() -> None:
    left = iter([True, True, False])

    def train(weights: Array | None) -> Update:
        if next(left):
            raise ZeroDivisionError
        return Update(1, np.ones(2))

    facts: list[Fact] = []
    with our_platform(rounds=1) as p:
        run_participant(Training(train), p.url, max_failures=3, observers=[facts.append])
    assert outcomes(facts) == ["failed", "failed", "completed"]


def test_an_update_that_a_proxy_refuses_is_kept_until_its_limit_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
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
        with proxy.server:
            run_participant(participant, p.url, aggregator_url=proxy.server.url, observers=[watch, raise_the_limit])
    assert len(participant.given) == 2, "it trains once in each round"
    assert outcomes(facts) == ["completed", "completed"]
    assert proxy.seen == ["GET", *["POST"] * 4, "GET", "POST"]
    (reason,) = {fact.reason for fact in facts if isinstance(fact, events.TransferLost)}
    assert reason.endswith("refuses bodies of 156 bytes (413 without our header): raise its limit, nginx `client_max_body_size`")
    assert seen["reasons"] == [reason]
    assert seen["status"]["trouble"] == reason
    assert (watch.status()["trouble"], health.reasons) == ("", [])


def test_the_coordinator_learns_why_a_participant_cannot_reach_the_aggregator() -> None:
    page = Answer(404, b"404 page not found", {"Content-Type": "text/plain"})
    with OldPlatform(heartbeat=[order(0)], download=[page]) as p, running(Mean(), p.url):
        until(lambda: [request for request in p.of("heartbeat") if "Fedround-Trouble" in request.headers])
    (told,) = {request.headers["Fedround-Trouble"] for request in p.of("heartbeat") if "Fedround-Trouble" in request.headers}
    assert told.startswith("GET 127.0.0.1:")
    assert "/{id}/{token}: 404 without our header (text/plain): a proxy or another service answers there" in told
    assert len(p.of("download")) == 1, "it does not come back at once"


def test_a_lost_contact_is_logged_with_the_likely_remedy() -> None:
    facts: list[Fact] = []
    with OldPlatform(rendez_vous=[Answer(404)]) as p, pytest.raises(CoordinatorUnreachable):
        run_participant(Mean(), p.url, observers=[facts.append], give_up_after=0.01)
    (lost,) = {fact.reason for fact in facts if isinstance(fact, events.ContactLost)}
    assert lost.endswith(
        "refused with 404: is PARTICIPANT_COORDINATOR_URL (--coordinator-url) the coordinator's port for participants,"
        " 8081 by default?"
    )


def test_a_program_without_logging_prints_that_it_waits_for_the_coordinator() -> None:
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


def test_a_lost_transfer_has_the_likely_remedy_unless_it_ends_the_round() -> None:
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


def test_a_participant_waits_for_an_unreachable_coordinator() -> None:
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


def test_a_participant_raises_after_give_up_after() -> None:
    with OldPlatform() as p:
        pass
    with pytest.raises(CoordinatorUnreachable, match="rendez_vous"):
        run_participant(Mean(), p.url, give_up_after=0.05, reconnect_max=0.01)


def test_a_model_above_max_model_size_is_not_received() -> None:
    facts: list[Fact] = []
    with OldPlatform(heartbeat=[order(0)], download=[Answer(body=bytes(1000))]) as p:
        with pytest.raises(ConfigurationError, match="model has 1000 bytes or more, PARTICIPANT_MAX_MODEL_SIZE allows 999"):
            run_participant(Mean(), p.url, FAST, max_model_size=999, max_failures=2, observers=[facts.append])
        assert len(p.of("start_training")) == 2
    assert outcomes(facts) == ["failed"] * 2


def test_the_coordinator_shows_what_a_participant_does() -> None:
    def phases() -> list[str]:
        return [participant["phase"] for participant in p.platform.coordinator.status()["participants"]]

    def train(_: Array | None) -> Update:
        until(lambda: phases() == ["training"])
        return Update(1, np.zeros(3))

    with our_platform(rounds=1) as p:
        proxy = Proxy(f"http://127.0.0.1:{p.platform.aggregator_public.port}", limit=10)
        with proxy.server, running(Training(train), p.url, aggregator_url=proxy.server.url):
            until(lambda: phases() == ["retrying"])


def test_a_failed_deregistration_does_not_hide_the_error() -> None:
    with OldPlatform(heartbeat=[order(0)], download=[Answer(body=b"no array")], leave=[Answer(500)]) as p:
        with pytest.raises(DeserializationError):
            run_participant(Mean(), p.url, FAST)
        assert len(p.of("leave")) == 1


def test_a_bug_in_any_thread_ends_the_participant_and_is_raised() -> None:
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


def test_a_participant_that_is_stopped_while_it_registers_leaves_with_its_new_id() -> None:
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
