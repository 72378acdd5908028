"""A participant that learns what houses cost: linear regression by gradient descent, in nothing but NumPy."""

import math
import time

import numpy as np

from fedround.demo import ames
from fedround.participant.abc import NumPyParticipant, Update
from fedround.participant.round import current_round
from fedround.tensors.weights import Array

PENALTY = 0.01
"""Of the squared weights, beside the mean squared error. It is about the best for all: for a silo, a federation and pooled data."""
MOMENTUM = 0.9
"""How much of the global model's last step is made once more before training (Nesterov's acceleration, over rounds)."""


class HousePrices(NumPyParticipant):
    """Learns from the sales of its own silo, which is that of its shard.

    Args:
        epochs: Steps of gradient descent in a round, each over all training sales of the silo. More of them need fewer rounds, but
            lead the silos further apart: with 5 the federation gets to where all data in one place would, with 50 about there.
        learning_rate: The length of a step. Above 0.06 it may diverge.
        epoch_seconds: How long an epoch takes at least. A model of this size trains too fast to be watched; larger ones do not.
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
        # The platform weighs it by training sales. That is as good as by held-out sales: these are a fifth of every silo.
        if not math.isnan(error := silo.held_out.error(weights)):
            round.report(held_out_mse=error)
        # Every silo was given the same two models, so all of them begin at the same place again.
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
