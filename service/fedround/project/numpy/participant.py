"""A participant that trains a linear model with NumPy.

Load the trained model: weights = numpy.load("model.npy")
"""

import functools

import numpy as np

import fedround


# ---------------------------------------------------------------- YOUR DATA: replace the lines of this function.
@functools.cache  # once, not in each round
def load_data(shard: fedround.Shard) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and the targets of this silo.

    These rows are generated, and differ for each `shard.index`. A silo with its own file needs no shard:
    *columns, target = np.loadtxt("/silo/data.csv", delimiter=",", skiprows=1).T
    """
    random = np.random.default_rng(shard.index)
    x = random.normal(size=(200, 3))
    return x, x @ [2.0, -1.0, 0.5] + 3.0 + random.normal(scale=0.1, size=200)


# ----------------------------------------------------------------


class Participant(fedround.NumPyParticipant):
    """A participant that fits a linear regression by gradient descent.

    Args:
        steps: Gradient steps in a round.
    """

    def __init__(self, *, steps: int = 5) -> None:
        self.steps = steps

    def evaluate(self, weights: np.ndarray) -> fedround.Evaluation:
        x, y = load_data(fedround.current_round().shard)
        x = np.column_stack([x, np.ones(len(x))])
        return fedround.Evaluation(len(y), loss=np.mean((x @ weights - y) ** 2))

    def train_round(self, weights: np.ndarray | None) -> fedround.Update:
        round = fedround.current_round()
        x, y = load_data(round.shard)
        x = np.column_stack([x, np.ones(len(x))])
        if weights is None:  # in the first round there is no global model
            weights = np.zeros(x.shape[1])
        for _ in range(self.steps):
            if round.cancelled:
                break
            weights -= 0.1 * x.T @ (x @ weights - y) / len(y)
        return fedround.Update(samples=len(y), weights=weights)
