"""A custom participant: learns how power depends on temperature and wind, from rows that stay in the silo."""

import numpy as np

import fedround


class Power(fedround.NumPyParticipant):
    """A participant that fits a linear regression by gradient descent on the rows of its shard.

    Args:
        path: A CSV file with a header. The last column is the target.
        steps: Number of gradient steps in a round.
    """

    def __init__(self, *, path: str, steps: int = 10) -> None:
        *columns, self._target = np.loadtxt(path, delimiter=",", skiprows=1).T
        self._features = np.column_stack([*columns, np.ones(len(self._target))])
        self._steps = steps

    def train_round(self, weights: np.ndarray | None) -> fedround.Update:
        round = fedround.current_round()
        features, target = round.shard.of(self._features), round.shard.of(self._target)
        if weights is None:
            weights = np.zeros(features.shape[1])
        round.report(mse=float(np.mean((features @ weights - target) ** 2)))
        for _ in range(self._steps):
            weights -= 0.1 * features.T @ (features @ weights - target) / len(target)
        return fedround.Update(len(target), weights)
