"""Participants for processes under test. `gate` is a named pipe: the first round lasts until a test writes to it."""

import time
from pathlib import Path

import numpy as np
from opentelemetry import trace

import fedround
from fedround.tensors.weights import Array


class Plus1(fedround.NumPyParticipant):
    """A participant that adds 1 to every weight: after R rounds every weight is R."""

    def __init__(self, *, gate: str | None = None) -> None:
        self.gate = gate

    def train_round(self, training_input: Array | None) -> fedround.Update:
        if self.gate is not None:
            Path(self.gate).read_text()
            self.gate = None
        return fedround.Update(1, (np.zeros(3) if training_input is None else training_input) + 1)


class Failing(fedround.NumPyParticipant):
    """A participant that cannot train."""

    def train_round(self, training_input: Array | None) -> fedround.Update:
        raise RuntimeError("no data today")


class Hog(fedround.NumPyParticipant):
    """A participant that computes in pure Python for some seconds, and never releases the interpreter lock itself."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds

    def train_round(self, training_input: Array | None) -> fedround.Update:
        until, total = time.monotonic() + self.seconds, 0
        while time.monotonic() < until:
            total += sum(n * n for n in range(1000))
        return fedround.Update(1, np.full(3, float(total > 0)))


class TracesItself(fedround.NumPyParticipant):
    """A participant that makes a span in each training, as instrumented code does, reports its loss, and evaluates."""

    def train_round(self, training_input: Array | None) -> fedround.Update:
        with trace.get_tracer("silo").start_as_current_span("epoch", attributes={"epoch": 1}):
            fedround.current_round().report(loss=0.5)
            return fedround.Update(2, (np.zeros(3) if training_input is None else training_input) + 1)

    def evaluate(self, weights: Array) -> fedround.Evaluation:
        return fedround.Evaluation(2, level=float(weights.mean()))
