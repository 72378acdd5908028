"""Participants with a known answer: one lost or doubled update shows in the global model.

This file is also mounted into pods, without the other files of the tests.
"""

import io
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

import fedround
from fedround.participant.terms import Options
from fedround.tensors.weights import Array

if TYPE_CHECKING:
    from support.processes import Process

PARTICIPANTS = 2


class KnownAnswer(fedround.NumPyParticipant):
    """Participant k of `count`, which adds `count` to weights k, k + `count`, ...: after R rounds of all, every weight is R.

    `k` is its shard by default. `size` and `dtype` describe the model. A round takes `seconds`, and calls `before`. Each training
    adds a line to `journal`.
    """

    def __init__(
        self,
        k: int | None = None,
        count: int = PARTICIPANTS,
        *,
        size: int | None = None,
        dtype: str = "<f8",
        seconds: float = 0.0,
        journal: str | None = None,
        before: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self.k, self.count = k, count
        self.size = size or count
        self.dtype = dtype
        self.seconds = seconds
        self.journal = None if journal is None else Path(journal)
        self.before = before
        self.rounds: list[int] = []

    def train_round(self, training_input: Array | None) -> fedround.Update:
        weights = np.zeros(self.size, self.dtype) if training_input is None else training_input
        round = fedround.current_round()
        number, k = round.number, round.shard.index if self.k is None else self.k
        self.rounds.append(number)
        if self.journal is not None:
            with self.journal.open("a") as journal:
                journal.write(f"{number}\n")
        self.before(number)
        time.sleep(self.seconds)
        weights[k :: self.count] += self.count
        return fedround.Update(1, weights)


def train(pool: ThreadPoolExecutor, platform: "Process", participant: KnownAnswer, **options: Unpack[Options]) -> Future[None]:
    options.setdefault("reconnect_max", 0.1)
    return pool.submit(fedround.run_participant, participant, platform.url("COORDINATOR_PORT"), 0.05, **options)


def global_model(process: "Process", round: int | None = None) -> list[float]:
    path = "/model" if round is None else f"/model?round={round}"
    weights: list[float] = np.load(io.BytesIO(process.get("AGGREGATOR_OPS_PORT", path))).tolist()
    return weights
