"""What the federation has gained: its model beside those of the silos alone, and beside one of all data in one place.

All of them are trained by the same code with the same rounds and epochs, and judged by the same held-out sales. Only here, to
compare, are the silos' rows together in one process; a federation has no place like it.
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
    """Errors: the root of the mean squared error of log prices, on all held-out sales."""

    federated: float
    alone: Sequence[float]
    """By the number of the silo."""
    pooled: float

    def table(self) -> str:
        """The table, and what is to be read in it."""
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
    """Judge the model of a federation of `silos`."""
    return Result(
        error(model),
        [error(train([Shard(index, silos)], rounds, epochs)) for index in range(silos)],
        error(train([POOLED], rounds, epochs)),
    )


def error(model: Array) -> float:
    """On the held-out sales of all silos."""
    return math.sqrt(ames.load(POOLED.index, POOLED.count).held_out.error(model))


def train(shards: Sequence[Shard], rounds: int, epochs: int) -> Array:
    """Federated averaging without a federation, which is the same sums. Of a single shard: a model of its own."""
    participants = [(HousePrices(epochs=epochs), shard) for shard in shards]
    model: Array = np.zeros_like(ames.load(shards[0].index, shards[0].count).training.features[0])
    for number in range(rounds):
        updates = []
        for participant, shard in participants:
            with entered(Round(number, shard, tell=lambda _: None)):
                updates.append(participant.train_round(model.copy()))
        model = np.average([u.weights for u in updates], axis=0, weights=[u.samples for u in updates])
    return model


def name(index: int, silos: int) -> str:
    """A silo is called after the largest of its neighbourhoods; this is a name for a participant too."""
    return max(ames.neighbourhoods(silos)[index], key=ames.SALES.__getitem__).lower().replace("_", "-")
