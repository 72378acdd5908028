"""Handwritten digits with scikit-learn: a linear classifier. Silos have some of the ten digits each."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

import fedround
import fedround.sklearn


def estimator() -> SGDClassifier:
    """Return the estimator that all participants begin with. It has all ten classes, whichever of them a silo has."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01, random_state=0)
    return fedround.sklearn.begun(model, features=64, classes=range(10))


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return data.data / 16, data.target


class Digits(fedround.NumPyParticipant):
    """A participant that trains on the digits of its silo. Silo k of n has the labels k, k + n, k + 2n, ..."""

    def __init__(self, *, epochs: int = 1) -> None:
        self.model, self.epochs = estimator(), epochs
        x, y = digits()
        tested = np.arange(len(y)) % 5 == 0
        self.test, self.train = (x[tested], y[tested]), (x[~tested], y[~tested])

    def initial_weights(self):
        return fedround.sklearn.tensors(self.model)

    def evaluate(self, weights, /):
        fedround.sklearn.load(self.model, weights)
        return fedround.Evaluation(len(self.test[1]), accuracy=self.model.score(*self.test))

    def train_round(self, weights, /):
        round, (x, y) = fedround.current_round(), self.train
        if weights is not None:
            fedround.sklearn.load(self.model, weights)
        mine = y % round.shard.count == round.shard.index
        for _ in range(self.epochs):
            self.model.partial_fit(x[mine], y[mine])
        return fedround.Update(int(mine.sum()), fedround.sklearn.tensors(self.model))
