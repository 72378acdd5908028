"""A comparison of the federation's model with the model of each silo alone, and with a model of all data pooled.

The same code trains all models with the same rounds and epochs, and tests them on the same held-out sales. Only this comparison
reads the rows of all silos in one process; a federation never does.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from fedround.demo import ames
from fedround.demo.participant import HousePrices
from fedround.participant.round import Round, Shard, entered
from fedround.tensors.weights import Array

POOLED = Shard(0, 1)


class Result(NamedTuple):
    """Root mean squared errors of log prices on all held-out sales."""

    federated: float
    alone: Sequence[float]
    """Errors by index of the silo."""
    pooled: float

    def table(self) -> str:
        """Return a table of the errors, and two conclusions."""
        best = min(range(len(self.alone)), key=self.alone.__getitem__)
        middle = median(self.alone)
        lines = [
            ("federated", self.federated),
            ("median silo alone", middle),
            (f"best silo alone ({name(best, len(self.alone))})", self.alone[best]),
            ("all data pooled", self.pooled),
        ]
        return "\n".join(
            [
                f"{'':44}  RMSE of log price  off by about",
                *(f"{title:44}  {error:17.4f}  {math.expm1(error):12.1%}" for title, error in lines),
                "",
                _verdict("within 5 % of pooled", self.federated, 1.05 * self.pooled, self.pooled),
                _verdict("better than the median silo", self.federated, middle, middle),
            ]
        )


def _verdict(claim: str, error: float, limit: float, other: float) -> str:
    return f"federated is {claim}: {'yes' if error < limit else 'NO'} ({error / other - 1:+.1%})"


def compare(model: Array, silos: int, rounds: int, epochs: int) -> Result:
    """Compare the model of a federation of `silos` with the alternatives."""
    return Result(
        error(model),
        [error(train([Shard(index, silos)], rounds, epochs)) for index in range(silos)],
        error(train([POOLED], rounds, epochs)),
    )


def error(model: Array) -> float:
    """Return the error on the held-out sales of all silos."""
    return math.sqrt(ames.load(POOLED.index, POOLED.count).held_out.error(model))


def train(shards: Sequence[Shard], rounds: int, epochs: int) -> Array:
    """Run federated averaging in this process, which computes the same sums. A single shard trains alone."""
    participants = [(HousePrices(epochs=epochs), shard) for shard in shards]
    model: Array = np.zeros_like(ames.load(shards[0].index, shards[0].count).training.features[0])
    for number in range(rounds):
        updates = []
        for participant, shard in participants:
            with entered(Round(number, shard, on_report=lambda _: None)):
                updates.append(participant.train_round(model.copy()))
        model = np.average([u.weights for u in updates], axis=0, weights=[u.samples for u in updates])
    return model


def name(index: int, silos: int) -> str:
    """Return a silo's name, which is also a valid participant's name: that of its largest neighbourhood."""
    return max(ames.neighbourhoods(silos)[index], key=ames.SALES.__getitem__).lower().replace("_", "-")
