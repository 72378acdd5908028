"""A participant that trains a neural network with Keras.

Load the trained model: model = network(); fedround.keras.load(model, safetensors.numpy.load_file("model.safetensors"))
"""

import functools
import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # what requirements.txt installs

import keras
import numpy as np

import fedround
import fedround.keras


# ---------------------------------------------------------------- YOUR DATA: replace the lines of these two functions.
@functools.cache  # once, not in each round
def load_data(shard: fedround.Shard) -> tuple[np.ndarray, np.ndarray]:
    """Return the features and the targets of this silo.

    These rows are generated, and differ for each `shard.index`. A silo with its own file needs no shard:
    *columns, target = np.loadtxt("/silo/data.csv", delimiter=",", skiprows=1, dtype="float32").T
    """
    x = np.random.default_rng(shard.index).normal(size=(200, 3)).astype("float32")
    return x, np.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:]


def network() -> keras.Model:
    """Return the model with the weights that all participants begin with."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse")
    return model


# ----------------------------------------------------------------


class Participant(fedround.NumPyParticipant):
    """A participant that trains the network by stochastic gradient descent.

    Args:
        epochs: Passes over the data in a round.
    """

    def __init__(self, *, epochs: int = 2) -> None:
        self.model, self.epochs = network(), epochs

    def evaluate(self, weights: dict[str, np.ndarray]) -> fedround.Evaluation:
        x, y = load_data(fedround.current_round().shard)
        fedround.keras.load(self.model, weights)
        return fedround.Evaluation(len(y), loss=self.model.evaluate(x, y, verbose=0))

    def train_round(self, weights: dict[str, np.ndarray] | None) -> fedround.Update:
        round = fedround.current_round()
        x, y = load_data(round.shard)
        if weights is not None:  # in the first round there is no global model
            fedround.keras.load(self.model, weights)
        for _ in range(self.epochs):
            if round.cancelled:
                break
            self.model.fit(x, y, batch_size=20, verbose=0)
        return fedround.Update(samples=len(y), weights=fedround.keras.tensors(self.model))
