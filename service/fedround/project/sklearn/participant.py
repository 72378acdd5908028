"""A participant that trains a linear classifier with scikit-learn.

Load the trained model: model = estimator(); fedround.sklearn.load(model, safetensors.numpy.load_file("model.safetensors"))
"""

import functools

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

import fedround
import fedround.sklearn


# ---------------------------------------------------------------- YOUR DATA: replace the lines of these two functions.
@functools.cache  # once, not in each round
def load_data(shard: fedround.Shard) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and the labels of this silo.

    These are handwritten digits, different ones in each shard. A silo with its own file needs no shard:
    *columns, label = np.loadtxt("/silo/data.csv", delimiter=",", skiprows=1).T
    """
    x, y = load_digits(return_X_y=True)
    return shard.of(x / 16), shard.of(y)


def estimator() -> SGDClassifier:
    """Return the model that all participants begin with: it has the classes of all silos."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01, random_state=0)
    return fedround.sklearn.begun(model, features=64, classes=range(10))


# ----------------------------------------------------------------


class Participant(fedround.NumPyParticipant):
    """A participant that trains the classifier by stochastic gradient descent.

    Args:
        epochs: Passes over the data in a round.
    """

    def __init__(self, *, epochs: int = 2) -> None:
        self.model, self.epochs = estimator(), epochs

    def initial_weights(self) -> dict[str, np.ndarray]:
        return fedround.sklearn.tensors(self.model)

    def evaluate(self, weights: dict[str, np.ndarray]) -> fedround.Evaluation:
        x, y = load_data(fedround.current_round().shard)
        fedround.sklearn.load(self.model, weights)
        loss = log_loss(y, self.model.predict_proba(x), labels=self.model.classes_)
        return fedround.Evaluation(len(y), loss=loss, accuracy=self.model.score(x, y))

    def train_round(self, weights: dict[str, np.ndarray] | None) -> fedround.Update:
        round = fedround.current_round()
        x, y = load_data(round.shard)
        if weights is not None:  # in the first round there is no global model
            fedround.sklearn.load(self.model, weights)
        for _ in range(self.epochs):
            if round.cancelled:
                break
            self.model.partial_fit(x, y)
        return fedround.Update(samples=len(y), weights=fedround.sklearn.tensors(self.model))
