"""House prices with Keras: a list of arrays inside, one flat array on its way."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import fedround
from fedround.demo import ames


class HousePrices(fedround.NumPyParticipant):
    """Trains a small neural network on the sales of its shard.

    Args:
        epochs: In a round, over all training sales of the silo.
        learning_rate: Adam's, which begins each round afresh.
    """

    def __init__(self, *, epochs: int = 3, learning_rate: float = 0.001) -> None:
        keras.utils.set_random_seed(0)  # all silos begin with the same model
        self._epochs = epochs
        self._learning_rate = learning_rate
        self._model = keras.Sequential(
            [
                keras.Input((ames.FEATURES,)),
                keras.layers.Dense(32, activation="relu", kernel_regularizer=keras.regularizers.L2(0.001)),
                keras.layers.Dense(1),
            ]
        )

    def train_round(self, weights: np.ndarray | None) -> fedround.Update:
        round = fedround.current_round()
        silo = ames.load(round.shard.index, round.shard.count)
        if weights is not None:
            self._model.set_weights(fedround.unflatten(weights, like=self._model.get_weights()))
        stop_early = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda _epoch, _logs: setattr(self._model, "stop_training", round.cancelled)
        )
        self._model.compile(optimizer=keras.optimizers.Adam(self._learning_rate), loss="mse", metrics=["mse"])
        round.report(held_out_mse=self._model.evaluate(*silo.held_out, verbose=0)[1])
        self._model.fit(*silo.training, epochs=self._epochs, batch_size=32, verbose=0, callbacks=[stop_early])
        return fedround.Update(len(silo.training.prices), fedround.flatten(self._model.get_weights()))
