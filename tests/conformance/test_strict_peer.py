"""Our participant on a strict platform of 0.8, with the faults of that platform."""

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine
from typing import Unpack

import numpy as np
import pytest

import fedround
from fedround import events
from fedround.events import Fact
from fedround.participant.terms import Options
from fedround.tensors.weights import Array
from support.xain08 import Xain08

N = 4
ROUNDS = 5


class KnownAnswer(fedround.NumPyParticipant):
    """Participant k, which adds N to weight k only: after R rounds every weight is R. It calls `before` in each round."""

    def __init__(self, k: int, before: Callable[[int], None] = lambda _number: None) -> None:
        self.k, self.before, self.trained = k, before, 0

    def train_round(self, training_input: Array | None) -> fedround.Update:
        weights = np.zeros(N) if training_input is None else training_input
        self.trained += 1
        self.before(fedround.current_round().number)
        weights[self.k] += N
        return fedround.Update(1, weights)


def train(p: Xain08, *participants: KnownAnswer, **options: Unpack[Options]) -> None:
    """Train until every participant got `finish`."""
    options.setdefault("reconnect_max", 0.05)

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for one in participants:
                tasks.create_task(fedround.arun_participant(one, p.url, 0.02, **options))

    with p.server:
        asyncio.run(run())


def check_the_books(p: Xain08, *participants: KnownAnswer) -> None:
    assert p.faults == []
    assert p.round == ROUNDS
    assert set(p.counted.values()) == {1}
    assert sum(p.counted.values()) == ROUNDS * len(participants)
    assert np.load(io.BytesIO(p.model)).tolist() == [float(ROUNDS)] * N


def all_of_them() -> list[KnownAnswer]:
    return [KnownAnswer(k) for k in range(N)]


@pytest.mark.parametrize("race", [0, 1, 3, 10])
def test_a_heartbeat_that_crosses_an_upload_requests_nothing(race: int) -> None:
    p, participants = Xain08(ROUNDS, N, race), all_of_them()
    train(p, *participants)
    check_the_books(p, *participants)
    assert [one.trained for one in participants] == [ROUNDS] * N
    assert p.requests["upload"] == ROUNDS * N


def test_a_participant_waits_while_the_coordinator_cannot_reach_its_aggregator() -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    p.down = 7
    train(p, *participants)
    check_the_books(p, *participants)


@pytest.mark.parametrize("kind", ["rendez_vous", "heartbeat", "start_training", "download", "upload"])
def test_closed_connections_are_survived_and_no_update_counts_twice(kind: str) -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    p.close[kind] = 5
    train(p, *participants)
    check_the_books(p, *participants)
    assert [one.trained for one in participants] == [ROUNDS] * N


def test_a_lost_update_is_sent_again_without_training() -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    p.lose = 2
    train(p, *participants, confirm_timeout=0.2)
    check_the_books(p, *participants)
    assert p.requests["upload"] == ROUNDS * N + 2
    assert [one.trained for one in participants] == [ROUNDS] * N


def test_a_participant_that_is_rejected_while_it_trains_registers_again() -> None:
    p = Xain08(ROUNDS, N)
    forgotten = threading.Event()

    def in_round_2(number: int) -> None:
        if number == 2 and not forgotten.is_set():
            forgotten.set()
            p.forget()

    participants = [KnownAnswer(0, in_round_2), *(KnownAnswer(k) for k in range(1, N))]
    train(p, *participants)
    check_the_books(p, *participants)
    assert p.requests["rendez_vous"] == N + 1


def test_after_a_lost_model_training_starts_with_an_empty_one() -> None:
    p = Xain08(ROUNDS, N)
    restarted = threading.Event()

    def in_round_2(number: int) -> None:
        if number == 2 and not restarted.is_set():
            restarted.set()
            p.restart_aggregator()

    participants = [KnownAnswer(k, in_round_2) for k in range(N)]
    train(p, *participants)
    assert p.faults == []
    assert p.round == ROUNDS
    assert set(p.counted.values()) == {1}


# Rounds that are given up


SILENCE = 1.0
"""Seconds without a heartbeat after which the platform removes an id."""


class Steady(KnownAnswer):
    """A participant that waits in round 0 for `joined`, in round 1 for `go`, and later until the other one is removed."""

    def __init__(self, p: Xain08) -> None:
        self.joined, self.go = threading.Event(), threading.Event()
        holds = {0: self.joined, 1: self.go}
        super().__init__(0, lambda number: self.held(holds.get(number, p.gone)))

    def is_joined(self, fact: Fact) -> None:
        """Observe the other participant."""
        if isinstance(fact, events.Registered):
            self.joined.set()

    def held(self, until: threading.Event) -> None:
        assert until.wait(20)


def train_beside(steady: Steady, p: Xain08, other: Callable[[], Coroutine[None, None, None]]) -> None:
    """Train `steady` alone in round 0, and in round 1 together with the participant that `other` runs."""

    async def run() -> None:
        registered, loop = asyncio.Event(), asyncio.get_running_loop()

        def note(fact: Fact) -> None:
            if isinstance(fact, events.Registered):
                loop.call_soon_threadsafe(registered.set)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fedround.arun_participant(steady, p.url, 0.02, observers=[note]))
            await registered.wait()
            await other()

    with p.server:
        asyncio.run(run())


def test_after_a_failure_of_user_code_it_trains_again_with_the_same_id() -> None:
    p, failed = Xain08(ROUNDS, N), threading.Event()

    def once(number: int) -> None:
        if number == 2 and not failed.is_set():
            failed.set()
            raise ZeroDivisionError

    participants = [KnownAnswer(0, once), *(KnownAnswer(k) for k in range(1, N))]
    train(p, *participants, max_failures=2)
    check_the_books(p, *participants)
    assert p.requests["rendez_vous"] == N


def test_user_code_that_keeps_failing_forfeits_the_round() -> None:
    p = Xain08(ROUNDS, 1, heartbeat_timeout=SILENCE)
    steady = Steady(p)
    steady.go.set()

    def always(_number: int) -> None:
        raise ZeroDivisionError

    async def other() -> None:
        with pytest.raises(fedround.TrainingError):
            await fedround.arun_participant(KnownAnswer(1, always), p.url, 0.02, observers=[steady.is_joined])

    train_beside(steady, p, other)
    assert (p.faults, p.round, p.requests["forfeit"]) == ([], ROUNDS, 1)


def test_a_round_that_does_not_end_in_time_is_forfeited() -> None:
    p = Xain08(ROUNDS, 1, heartbeat_timeout=SILENCE)
    steady = Steady(p)
    steady.go.set()
    stopped = threading.Event()

    async def other() -> None:
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def slow(_number: int) -> None:
            loop.call_soon_threadsafe(begun.set)
            stopped.wait(20)

        run = fedround.arun_participant(KnownAnswer(1, slow), p.url, 0.02, drain_timeout=0.1, observers=[steady.is_joined])
        task = asyncio.create_task(run)
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        stopped.set()

    train_beside(steady, p, other)
    assert (p.faults, p.round, p.requests["forfeit"]) == ([], ROUNDS, 1)


def test_asked_to_stop_after_an_upload_a_participant_stays_until_the_round_ends() -> None:
    p = Xain08(ROUNDS, 1, heartbeat_timeout=SILENCE)
    steady = Steady(p)
    longer = 3 * SILENCE

    async def other() -> None:
        delivered, loop = asyncio.Event(), asyncio.get_running_loop()
        since: list[float] = []

        def note(fact: Fact) -> None:
            steady.is_joined(fact)
            match fact:
                case events.RoundEnded():
                    since.append(loop.time())
                    loop.call_soon_threadsafe(delivered.set)
                case events.ContactMade() if since and loop.time() > since[0] + longer:
                    steady.go.set()

        task = asyncio.create_task(fedround.arun_participant(KnownAnswer(1), p.url, 0.02, drain_timeout=20.0, observers=[note]))
        await delivered.wait()
        task.cancel()
        await asyncio.wait([task])

    train_beside(steady, p, other)
    assert (p.faults, p.round, p.requests["forfeit"]) == ([], ROUNDS, 1), "it forfeits the round that it is told of next"


def test_all_faults_together_are_survived() -> None:
    p, participants = Xain08(ROUNDS, N, race=2), all_of_them()
    p.down = 3
    for kind in ("rendez_vous", "heartbeat", "start_training", "download", "upload"):
        p.close[kind] = 3
    train(p, *participants)
    check_the_books(p, *participants)
