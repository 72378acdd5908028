"""Participants that do what a test says, run in this process."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedround.events import Fact, RoundEnded
from fedround.participant.abc import NumPyParticipant, ParticipantABC, Update
from fedround.participant.run import connected, run_participant
from fedround.participant.runtime import Runtime
from fedround.participant.terms import Terms
from fedround.tensors.weights import Array

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


def run_all(participants: Sequence[NumPyParticipant], url: str, **options: Any) -> None:
    """Run them side by side, until all have ended."""
    threads = [threading.Thread(target=run_participant, args=(each, url), kwargs=options) for each in participants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def running(participant: NumPyParticipant, url: str, **terms: Any) -> Iterator[Runtime]:
    """One at work on a thread of its own, stopped at the end of the block."""
    with connected(participant, url, Terms(heartbeat_period=FAST, **terms)) as runtime:
        threading.Thread(target=runtime.run, daemon=True).start()
        yield runtime
        runtime.stop(0.0)
        assert runtime.ended.wait(20)


def outcomes(facts: list[Fact]) -> list[str]:
    return [fact.outcome for fact in facts if isinstance(fact, RoundEnded)]
