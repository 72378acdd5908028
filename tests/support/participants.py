"""Participants that a test controls, run in this process."""

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
"""A heartbeat period, in seconds."""


class Mean(NumPyParticipant):
    """A participant that returns its own value."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.given: list[Array | None] = []

    def train_round(self, training_input: Array | None) -> Update:
        self.given.append(None if training_input is None else training_input.copy())
        return Update(1, np.full(3, self.value))


class Training(NumPyParticipant):
    """A participant that trains with a function."""

    def __init__(self, train: Callable[[Array | None], Any]) -> None:
        self.train = train

    def train_round(self, training_input: Array | None) -> Any:
        return self.train(training_input)


class Text(ParticipantABC[str, str]):
    """A participant with a custom format."""

    def deserialize_training_input(self, data: bytes) -> str:
        assert type(data) is bytes
        return data.decode()

    def train_round(self, training_input: str) -> str:
        return training_input + "!"

    def serialize_training_result(self, training_result: str) -> memoryview:
        return memoryview(training_result.encode())


def run_all(participants: Sequence[NumPyParticipant], url: str, **options: Any) -> None:
    """Run participants at the same time, until all have ended."""
    threads = [threading.Thread(target=run_participant, args=(each, url), kwargs=options) for each in participants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def running(participant: NumPyParticipant, url: str, **terms: Any) -> Iterator[Runtime]:
    """Run a participant on its own thread, and stop it at the end of the block."""
    with connected(participant, url, Terms(heartbeat_period=FAST, **terms)) as runtime:
        threading.Thread(target=runtime.run, daemon=True).start()
        yield runtime
        runtime.stop(0.0)
        assert runtime.ended.wait(20)


def outcomes(facts: list[Fact]) -> list[str]:
    return [fact.outcome for fact in facts if isinstance(fact, RoundEnded)]
