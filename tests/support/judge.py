"""A participant that evaluates models."""

import time
from typing import Any

import numpy as np

import fedround


class Judge(fedround.NumPyParticipant):
    """A participant that adds 1 to every weight. Its evaluation is the first weight plus an offset.

    Args:
        offset: Value to add to the metric.
        hang: First weight of the model with an evaluation that does not end.
        slow: First weight of the model with an evaluation that takes 2 s.
        peak: First weight at which the second metric is largest.
    """

    def __init__(self, *, offset: float = 0.0, hang: float = -1.0, slow: float = -1.0, peak: float = 0.0) -> None:
        self.offset, self.hang, self.slow, self.peak = offset, hang, slow, peak

    def evaluate(self, weights: Any, /) -> fedround.Evaluation:
        while weights[0] == self.hang:
            time.sleep(1)
        if weights[0] == self.slow:
            time.sleep(2)
        return fedround.Evaluation(1, weight=weights[0] + self.offset, peak=-abs(weights[0] - self.peak))

    def train_round(self, weights: Any, /) -> fedround.Update:
        return fedround.Update(1, (np.zeros(2) if weights is None else weights) + 1)
