"""Participants with a known answer: one lost or doubled update shows in the global model."""

import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Unpack

import numpy as np

import fedround
from fedround.participant.run import Options
from fedround.weights import Array
from support.processes import Process

PARTICIPANTS = 2


class KnownAnswer(fedround.NumPyParticipant):
    """Number k of n adds n to weight k only: after R rounds of all n every weight is R. `before` is called in each round."""

    def __init__(self, k: int, before: Callable[[int], None] = lambda _number: None) -> None:
        self.k = k
        self.before = before
        self.rounds: list[int] = []

    def train_round(self, training_input: Array | None) -> fedround.Update:
        weights = np.zeros(PARTICIPANTS) if training_input is None else training_input
        number = fedround.current_round().number
        self.rounds.append(number)
        self.before(number)
        weights[self.k] += PARTICIPANTS
        return fedround.Update(1, weights)


def train(pool: ThreadPoolExecutor, platform: Process, participant: KnownAnswer, **options: Unpack[Options]) -> Future[None]:
    options.setdefault("reconnect_max", 0.1)
    return pool.submit(fedround.run_participant, participant, platform.url("COORDINATOR_PORT"), 0.05, **options)


def global_model(process: Process, round: int | None = None) -> list[float]:
    path = "/model" if round is None else f"/model?round={round}"
    weights: list[float] = np.load(io.BytesIO(process.get("AGGREGATOR_OPS_PORT", path))).tolist()
    return weights
