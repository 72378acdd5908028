"""Our participant on a strict platform of 0.8, whose faults it has to live with."""

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Unpack

import numpy as np
import pytest

import fedround
from fedround.participant.terms import Options
from fedround.weights import Array
from support.xain08 import Xain08

N = 4
ROUNDS = 5


class KnownAnswer(fedround.NumPyParticipant):
    """Number k adds N to weight k only: after R rounds every weight is R. `before` is called in each round."""

    def __init__(self, k: int, before: Callable[[int], None] = lambda _number: None) -> None:
        self.k, self.before, self.trained = k, before, 0

    def train_round(self, training_input: Array | None) -> fedround.Update:
        weights = np.zeros(N) if training_input is None else training_input
        self.trained += 1
        self.before(fedround.current_round().number)
        weights[self.k] += N
        return fedround.Update(1, weights)


def train(p: Xain08, *participants: KnownAnswer, **options: Unpack[Options]) -> None:
    """Until everybody was told `finish`."""
    options.setdefault("reconnect_max", 0.05)

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            for one in participants:
                tasks.create_task(fedround.arun_participant(one, p.url, 0.02, **options))

    with p.serving():
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
def test_a_heartbeat_that_crosses_an_upload_orders_nothing(race: int) -> None:
    p, participants = Xain08(ROUNDS, N, race), all_of_them()
    train(p, *participants)
    check_the_books(p, *participants)
    assert [one.trained for one in participants] == [ROUNDS] * N
    assert p.requests["upload"] == ROUNDS * N


def test_a_coordinator_that_cannot_reach_its_aggregator_is_waited_for() -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    p.down = 7
    train(p, *participants)
    check_the_books(p, *participants)


@pytest.mark.parametrize("kind", ["rendez_vous", "heartbeat", "start_training", "download", "upload"])
def test_connections_that_are_closed_without_an_answer_are_lived_with_and_nothing_counts_twice(kind: str) -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    p.close[kind] = 5
    train(p, *participants)
    check_the_books(p, *participants)
    assert [one.trained for one in participants] == [ROUNDS] * N


def test_an_update_that_the_platform_lost_is_sent_again_without_training() -> None:
    p, participants = Xain08(ROUNDS, N), all_of_them()
    p.lose = 2
    train(p, *participants, confirm_timeout=0.2)
    check_the_books(p, *participants)
    assert p.requests["upload"] == ROUNDS * N + 2
    assert [one.trained for one in participants] == [ROUNDS] * N


def test_who_is_rejected_in_mid_training_comes_again_as_somebody_new() -> None:
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


def test_an_aggregator_that_lost_its_model_begins_with_an_empty_one() -> None:
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


def test_everything_at_once() -> None:
    p, participants = Xain08(ROUNDS, N, race=2), all_of_them()
    p.down = 3
    for kind in ("rendez_vous", "heartbeat", "start_training", "download", "upload"):
        p.close[kind] = 3
    train(p, *participants)
    check_the_books(p, *participants)
