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
from support.known_answer import KnownAnswer
from support.xain08 import Xain08

N = 4
ROUNDS = 5


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
    return [KnownAnswer(k, N) for k in range(N)]


def once_in_round_2(action: Callable[[], None]) -> Callable[[int], None]:
    done = threading.Event()

    def before(number: int) -> None:
        if number == 2 and not done.is_set():
            done.set()
            action()

    return before


def fail() -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("race", [0, 1, 3, 10])
def test_a_heartbeat_that_crosses_an_upload_requests_nothing(race: int) -> None:
    p, participants = Xain08(ROUNDS, N, race), all_of_them()
    train(p, *participants)
    check_the_books(p, *participants)
    assert [len(one.rounds) for one in participants] == [ROUNDS] * N
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
    assert [len(one.rounds) for one in participants] == [ROUNDS] * N


def test_a_lost_update_is_sent_again_without_training() -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    p.lose = 2
    train(p, *participants, confirm_timeout=0.2)
    check_the_books(p, *participants)
    assert p.requests["upload"] == ROUNDS * N + 2
    assert [len(one.rounds) for one in participants] == [ROUNDS] * N


def test_a_participant_that_is_rejected_while_it_trains_registers_again() -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    participants[0].before = once_in_round_2(p.forget)
    train(p, *participants)
    check_the_books(p, *participants)
    assert p.requests["rendez_vous"] == N + 1


def test_after_a_lost_model_training_starts_with_an_empty_one() -> None:
    p = Xain08(ROUNDS, N)
    restart = once_in_round_2(p.restart_aggregator)
    train(p, *(KnownAnswer(k, N, before=restart) for k in range(N)))
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
        super().__init__(0, N, before=lambda number: self.held(holds.get(number, p.gone)))

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
    p, participants = Xain08(ROUNDS, N), all_of_them()
    participants[0].before = once_in_round_2(fail)
    train(p, *participants, max_failures=2)
    check_the_books(p, *participants)
    assert p.requests["rendez_vous"] == N


def test_user_code_that_keeps_failing_forfeits_the_round() -> None:
    p = Xain08(ROUNDS, 1, heartbeat_timeout=SILENCE)
    steady = Steady(p)
    steady.go.set()
    failing = KnownAnswer(1, N, before=lambda _number: fail())

    async def other() -> None:
        with pytest.raises(fedround.TrainingError):
            await fedround.arun_participant(failing, p.url, 0.02, observers=[steady.is_joined])

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

        run = fedround.arun_participant(
            KnownAnswer(1, N, before=slow), p.url, 0.02, drain_timeout=0.1, observers=[steady.is_joined]
        )
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

        task = asyncio.create_task(fedround.arun_participant(KnownAnswer(1, N), p.url, 0.02, drain_timeout=20.0, observers=[note]))
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
