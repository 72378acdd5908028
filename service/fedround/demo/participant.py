"""A participant that predicts house prices: linear regression by gradient descent, in NumPy."""

import math
import time

import numpy as np

from fedround.demo import ames
from fedround.participant.abc import NumPyParticipant, Update
from fedround.participant.round import current_round
from fedround.tensors.weights import Array

PENALTY = 0.01
"""Factor of the squared weights in the loss. It is about the best value for a silo, a federation and pooled data."""
MOMENTUM = 0.9
"""Share of the global model's last step that is repeated before training (Nesterov's acceleration over rounds)."""


class HousePrices(NumPyParticipant):
    """A participant that trains on the sales of its shard's silo.

    Args:
        epochs: Steps of gradient descent in a round, each over all training sales of the silo. More epochs need fewer rounds, but
            make the silos drift apart. With 5 the federation reaches the error of pooled data, with 50 it comes close.
        learning_rate: Length of a step. Above 0.06 training may diverge.
        epoch_seconds: Minimum seconds for an epoch. A model of this size otherwise trains too fast to watch.
    """

    def __init__(self, *, epochs: int = 5, learning_rate: float = 0.03, epoch_seconds: float = 0.0) -> None:
        self._epochs = range(epochs)
        self._learning_rate = float(learning_rate)
        self._epoch_seconds = float(epoch_seconds)
        self._before: Array | None = None

    def train_round(self, weights: Array | None) -> Update:
        round = current_round()
        silo = ames.load(round.shard.index, round.shard.count)
        features, prices = silo.training
        if weights is None:
            weights = np.zeros(features.shape[1])
        # The platform weights this by training sales. Held-out sales, a fifth of every silo, would give the same weights.
        if not math.isnan(error := silo.held_out.error(weights)):
            round.report(held_out_mse=error)
        # Every silo has the same two models, so all start from the same weights.
        before, self._before = self._before, weights.copy()
        if before is not None:
            weights += MOMENTUM * (weights - before)
        for _ in self._epochs:
            if round.cancelled:
                break
            gradient = features.T @ (features @ weights - prices) / len(prices) + PENALTY * weights
            weights -= self._learning_rate * gradient
            time.sleep(self._epoch_seconds)
        return Update(samples=len(prices), weights=weights)
