"""Running a participant within a program, with or without an event loop."""

import asyncio
import os
import signal
import threading
import time
from typing import Any, Unpack

import numpy as np
import pytest

from fedround.common.settings import ParticipantSettings
from fedround.errors import ConfigurationError, TrainingError
from fedround.participant.abc import NumPyParticipant, Update
from fedround.participant.round import current_round
from fedround.participant.run import arun_participant, run_participant
from fedround.participant.signals import signals
from fedround.participant.terms import Options, Terms
from fedround.tensors.weights import Array
from support.federation import FINISH, After, OldPlatform, order, our_platform
from support.processes import until


class Ones(NumPyParticipant):
    def __init__(self) -> None:
        self.training = threading.Event()
        self.wait = False

    def train_round(self, training_input: Array | None) -> Update:
        self.training.set()
        while self.wait and not current_round().cancelled:
            threading.Event().wait(0.005)
        return Update(1, np.ones(3))


class Deaf(Ones):
    """A participant that trains until the test releases it, even if it is cancelled."""

    def __init__(self, free: threading.Event) -> None:
        super().__init__()
        self.free = free

    def train_round(self, training_input: Array | None) -> Update:
        self.training.set()
        self.free.wait(30)
        return Update(1, np.ones(3))


async def test_a_program_with_an_event_loop_runs_several_participants() -> None:
    with our_platform(rounds=2, min_clients=3) as p:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(arun_participant(Ones(), p.url))
        assert p.status()["state"] == "complete"


async def cancel(participant: Ones, url: str, *, times: int = 1, **options: Unpack[Options]) -> float:
    """Run a participant, and cancel it while it trains. Return the seconds until it has ended."""
    task = asyncio.create_task(arun_participant(participant, url, **options))
    await asyncio.to_thread(participant.training.wait)
    began = time.monotonic()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    return time.monotonic() - began


async def test_a_cancelled_participant_delivers_its_round_and_leaves() -> None:
    participant = Ones()
    participant.wait = True
    with our_platform(rounds=2) as p:
        await cancel(participant, p.url)
        assert p.status()["participants"] == []
        await asyncio.to_thread(until, lambda: [completed["counted"] for completed in p.status()["last_rounds"]] == [1])


async def test_a_participant_that_is_cancelled_twice_ends_immediately() -> None:
    free = threading.Event()
    with our_platform(rounds=2) as p:
        assert await cancel(Deaf(free), p.url, times=2) < 5
        free.set()


async def test_a_cancelled_participant_does_not_wait_for_code_that_does_not_return() -> None:
    free = threading.Event()
    with our_platform(rounds=2) as p:
        assert 1.1 < await cancel(Deaf(free), p.url, drain_timeout=0.1) < 10
        assert p.status()["participants"] == []
        free.set()


async def test_a_failure_is_raised_where_the_participant_is_awaited() -> None:
    class Broken(Ones):
        def train_round(self, training_input: Array | None) -> Update:
            raise ZeroDivisionError

    with our_platform(rounds=1) as p, pytest.raises(TrainingError):
        await arun_participant(Broken(), p.url)


def test_the_library_handles_signals_only_on_request() -> None:
    seen: list[object] = []

    class Looking(Ones):
        def train_round(self, training_input: Array | None) -> Update:
            seen.append(signal.getsignal(signal.SIGTERM))
            return super().train_round(training_input)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for handle_signals in (False, True):
        with OldPlatform(heartbeat=After("upload", order(0), FINISH)) as p:
            run_participant(Looking(), p.url, 0.02, handle_signals=handle_signals)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (seen[0] is before[0], seen[1] is before[0]) == (True, False)


def test_a_signal_is_noticed_on_another_thread() -> None:
    noticed = threading.Event()
    with signals(noticed.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert noticed.wait(10)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "Silo 1"}, "name must be 1 to 63 of the characters a-z, 0-9, '.' and '-'"),
        ({"name": None}, "name must be 1 to 63"),
        ({"token": "a b"}, "the token must consist of visible ASCII characters"),
        ({"long_poll": -1.0}, "long_poll must be a number of seconds, 0 or more"),
        ({"long_poll": "5s"}, "long_poll must be a number of seconds"),
        ({"shard": (3, 0)}, r"shard must be \(index, count\), whole numbers from 0 and from 1, or None"),
        ({"shard": (-1, 3)}, "shard must be"),
        ({"shard": 3}, "shard must be"),
        ({"shards": 0}, "shards must be a whole number, 1 or more"),
        ({"shards": 2.5}, "shards must be a whole number"),
        ({"aggregator_url": "aggregator:8082"}, "aggregator_url must be as http://host:port or https://host, or None"),
        ({"max_model_size": 0}, "max_model_size must be a whole number, 1 or more"),
        ({"reconnect_max": 0.0}, "reconnect_max must be a number of seconds, more than 0"),
        ({"give_up_after": -1.0}, "give_up_after must be a number of seconds, 0 or more, or None"),
        ({"max_failures": 0}, "max_failures must be a whole number, 1 or more"),
        ({"confirm_timeout": float("nan")}, "confirm_timeout must be a number of seconds"),
        ({"drain_timeout": float("inf")}, "drain_timeout must be a number of seconds"),
        ({"observers": print}, "observers must be a list of functions"),
        ({"heartbeat_period": 0}, "heartbeat_period must be a number of seconds, more than 0"),
        ({"shards": 0, "max_failures": 0}, "shards must be a whole number, 1 or more, or None; max_failures must be"),
        ({"long_pol": 5, "drain_timout": 60}, "unknown option long_pol, drain_timout; the options are name, token, tls_ca_file, "),
    ],
)
def test_a_wrong_argument_is_a_configuration_error_before_any_request(options: Any, complaint: str) -> None:
    with OldPlatform() as p:
        with pytest.raises(ConfigurationError, match=f"^{complaint}"):
            run_participant(Ones(), p.url, **options)
        assert p.requests == []


def test_numpy_numbers_are_accepted_as_arguments() -> None:
    options: Any = {"shards": np.int64(2), "long_poll": np.float32(0), "give_up_after": np.inf}
    with OldPlatform(heartbeat=[FINISH]) as p:
        run_participant(Ones(), p.url, **options)


def test_the_service_and_the_library_have_the_same_options_and_defaults() -> None:
    settings = ParticipantSettings(coordinator_url="http://coordinator", class_="mine:Silo")
    same = set(Options.__annotations__) - {"observers"}
    assert same <= set(ParticipantSettings.model_fields)
    differ = {name for name in same | {"heartbeat_period"} if getattr(Terms(), name) != getattr(settings, name)}
    assert differ == {"max_failures"}, "a program wants to see the first one"


def test_an_object_that_is_not_a_participant_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="int is not a subclass"):
        run_participant(5, "http://localhost:1")  # type: ignore[arg-type]  # that is what is tested
