"""A participant for processes under test. A file sets its behaviour from round to round."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import fedround
from fedround.tensors.weights import Array

EXAMINER = "EXAMINER_MOOD"
"""The variable with the file that sets the behaviour of `examine`: nothing, `raise` or `hang`."""


class Moody(fedround.NumPyParticipant):
    """A participant that adds about 1 to every weight. The file `mood` may have `large`, `heavy`, `nan`, `slow`, `hang` or `raise`.

    A round takes `seconds`, a slow one 10 times as long. The participant reports its `loss`, and this many other `figures`.
    """

    def __init__(self, *, size: int, mood: str, seconds: float = 0.3, figures: int = 0, loss: float = 0.5) -> None:
        self.size = size
        self.mood = Path(mood)
        self.seconds = seconds
        self.figures = figures
        self.loss = loss

    def train_round(self, training_input: Array | None) -> fedround.Update:
        mood = self.mood.read_text()
        if mood == "raise":
            raise ValueError("this model has no layer 7")
        time.sleep({"slow": 10 * self.seconds, "hang": 3600}.get(mood, self.seconds))
        weights = np.zeros(self.size) if training_input is None else training_input
        weights += 50 if mood == "large" else 1
        if mood == "nan":
            weights[:3] = np.nan
        fedround.current_round().report(loss=self.loss, **{f"figure_{n}": n / 7 for n in range(self.figures)})
        return fedround.Update(50 if mood == "heavy" else 1, weights)

    def check_training_result(self, training_result: object) -> None:
        """Accept everything: the update is sent without a check."""


class Judge(Moody):
    """A participant that also evaluates the global model."""

    def evaluate(self, weights: Array) -> fedround.Evaluation:
        return fedround.Evaluation(1, accuracy=self.loss)


def examine(weights: Array) -> Mapping[str, float]:
    """Evaluate a model at the aggregator."""
    mood = Path(os.environ[EXAMINER])
    while mood.read_text() == "hang":
        time.sleep(0.1)
    if mood.read_text() == "raise":
        raise ValueError("no test set")
    return {"mean": float(weights.mean())}
