"""The platform in memory with which users test their participants."""

import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

import fedround
from fedround import events, testing
from fedround.errors import ConfigurationError, RoundFailed, TrainingError
from fedround.events import Fact
from fedround.tensors.weights import Array


class Counting(fedround.NumPyParticipant):
    """A participant that adds one, and reports it."""

    def __init__(self, samples: int = 1, step: float = 1.0) -> None:
        self.samples = samples
        self.step = step

    def train_round(self, training_input: Array | None) -> fedround.Update:
        fedround.current_round().report(step=self.step)
        return fedround.Update(self.samples, np.zeros(4) if training_input is None else training_input + self.step)


def test_a_participant_can_be_tested_without_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with testing.platform(rounds=3) as p:
        assert p.global_model is None
        p.run(Counting())
    assert p.global_model is not None
    assert p.global_model.tolist() == [2.0] * 4
    assert p.rounds == [testing.CompletedRound(number, updates=1, samples=1, metrics={"step": 1.0}) for number in range(3)]


def test_several_participants_are_averaged_by_their_samples() -> None:
    with testing.platform(rounds=2, min_clients=2) as p:
        p.run(Counting(samples=1, step=1.0), Counting(samples=3, step=5.0))
    assert p.global_model is not None
    assert p.global_model.tolist() == [4.0] * 4
    assert p.rounds[1].metrics == p.rounds[1].figures == {"step": 4.0}


def test_another_strategy_can_be_chosen() -> None:
    with testing.platform(rounds=2, min_clients=2, strategy="model_sum") as p:
        p.run(Counting(), Counting())
    assert p.global_model is not None
    assert p.global_model.tolist() == [2.0] * 4


def test_with_a_robust_strategy_one_broken_participant_does_no_harm() -> None:
    with testing.platform(rounds=3, min_clients=3, strategy="median") as p:
        p.run(Counting(samples=100, step=-1e6), Counting(step=1.0), Counting(step=2.0))
    assert p.global_model is not None
    assert p.global_model.tolist() == [2.0] * 4


@pytest.mark.parametrize("order", [1, -1])
def test_a_failed_participant_fails_the_test_and_stops_the_others(order: int) -> None:
    class Broken(Counting):
        def train_round(self, training_input: Array | None) -> fedround.Update:
            raise ZeroDivisionError

    with testing.platform(rounds=1, min_clients=2) as p, pytest.raises(TrainingError):
        p.run(*[Counting(), Broken()][::order])


class Fixed(fedround.NumPyParticipant):
    """A participant that returns the same weights in every round."""

    def __init__(self, *weights: float, dtype: str) -> None:
        self.weights = np.array(weights, dtype)

    def train_round(self, training_input: Array | None) -> fedround.Update:
        return fedround.Update(1, self.weights)


def test_updates_with_different_layouts_end_the_test_with_the_reason() -> None:
    with (
        testing.platform(min_clients=2) as p,
        pytest.raises(RoundFailed, match=r"round 0 failed 3 times: .*float(32|64)") as failed,
    ):
        p.run(Fixed(1.0, dtype="<f8"), Fixed(1.0, dtype="<f4"))
    assert failed.value.round == 0
    assert "participant-" in failed.value.reason, "it names whose update was refused"
    assert p.rounds == []


def test_a_failed_aggregation_ends_the_test_with_the_reason() -> None:
    large = [Fixed(60000.0, dtype="<f2") for _ in range(2)]
    with testing.platform(min_clients=2, strategy="model_sum") as p, pytest.raises(RoundFailed, match="cannot make a model"):
        p.run(*large)


def test_too_few_participants_are_an_immediate_error() -> None:
    with testing.platform(min_clients=2) as p, pytest.raises(ConfigurationError, match=r"min_clients=2: run.. needs as many"):
        p.run(Counting())


def test_another_run_continues_with_the_existing_model() -> None:
    with testing.platform(rounds=2, min_clients=2) as p:
        p.run(Counting(), Counting())
        p.run(Counting(), Counting(), Counting())
        p.run(Counting(), Counting())
    assert [completed.number for completed in p.rounds] == [0, 1, 2, 3, 4, 5]
    assert [completed.updates for completed in p.rounds[4:]] == [2, 2]
    assert p.global_model is not None
    assert p.global_model.tolist() == [5.0] * 4


def test_training_can_start_with_a_model() -> None:
    with testing.platform(rounds=1, initial_model=np.full(4, 7.0, np.float32)) as p:
        assert p.global_model is not None
        p.run(Counting())
    assert p.global_model.tolist() == [8.0] * 4
    assert p.global_model.dtype == np.float32


def test_a_strategy_gets_its_options() -> None:
    with testing.platform(
        rounds=1, min_clients=5, strategy="trimmed_mean", strategy_options={"trim": 0.4}, initial_model=np.zeros(4)
    ) as p:
        p.run(*[Counting(step=step) for step in (-1e6, 1.0, 2.0, 3.0, 1e6)])
    assert p.global_model is not None
    assert p.global_model.tolist() == [2.0] * 4


class Slow(Counting):
    """A participant that trains until another one has completed the round."""

    def __init__(self, samples: int = 1) -> None:
        super().__init__(samples)
        self._over = threading.Event()

    def train_round(self, training_input: Array | None) -> fedround.Update:
        self._over.wait(20)
        return super().train_round(training_input)

    def note(self, fact: Fact) -> None:
        if isinstance(fact, events.RoundEnded) and fact.outcome == "completed":
            self._over.set()


def test_a_hanging_participant_loses_its_round_after_the_time_out() -> None:
    hanging = Slow()
    with testing.platform(rounds=1, min_clients=2, participants_ratio=0.5, round_timeout=0.3) as p:
        p.run(hanging, Counting(), observers=[hanging.note])
    assert len(p.rounds) == 1


def test_a_round_with_a_quorum_does_not_wait_for_the_slowest() -> None:
    slow = Slow(samples=5)
    with testing.platform(rounds=1, min_clients=2, participants_ratio=0.5, overselect=1.0, grace=0.0, quorum=0.5) as p:
        p.run(slow, Counting(samples=3), observers=[slow.note])
    assert [(completed.updates, completed.samples) for completed in p.rounds] == [(1, 3)]


def test_training_code_gets_the_round_configuration() -> None:
    class Configured(Counting):
        def train_round(self, training_input: Array | None) -> fedround.Update:
            self.step = float(fedround.current_round().config["step"])
            return super().train_round(training_input)

    with testing.platform(rounds=3, initial_model=np.zeros(4), round_config={"step": {"0": 1.0, "2": 5.0}}) as p:
        p.run(Configured())
    assert p.global_model.tolist() == [7.0] * 4


@pytest.mark.timeout(180)
def test_the_number_of_simultaneous_heartbeats_is_bounded() -> None:
    with testing.platform(rounds=2, min_clients=300) as p:
        began = time.monotonic()
        p.run(*[Counting() for _ in range(300)])
    assert [completed.updates for completed in p.rounds] == [300, 300]
    assert time.monotonic() - began < 60


def test_only_documented_names_are_public() -> None:
    assert testing.__all__ == sorted(testing.__all__)
