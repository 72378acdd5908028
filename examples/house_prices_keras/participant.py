"""House prices with Keras: a list of arrays inside, one flat array on its way."""

import keras
import numpy as np

import fedround
from fedround.demo import ames


class HousePrices(fedround.NumPyParticipant):
    """Trains a small neural network on the sales of its shard.

    Args:
        epochs: In a round, over all training sales of the silo.
        learning_rate: That of Adam, whose own state stays here.
    """

    def __init__(self, *, epochs: int = 5, learning_rate: float = 0.003) -> None:
        keras.utils.set_random_seed(0)  # all participants begin with the same model
        self._epochs = epochs
        self._model = keras.Sequential(
            [
                keras.Input((80,)),  # a house, as fedround.demo.ames describes it
                keras.layers.Dense(32, activation="relu", kernel_regularizer=keras.regularizers.L2(0.001)),
                keras.layers.Dense(1),
            ]
        )
        self._model.compile(optimizer=keras.optimizers.Adam(learning_rate), loss="mse", metrics=["mse"])

    def train_round(self, weights: np.ndarray | None) -> fedround.Update:
        round = fedround.current_round()
        silo = ames.load(round.shard.index, round.shard.count)
        if weights is not None:
            self._model.set_weights(fedround.unflatten(weights, like=self._model.get_weights()))
        _, error = self._model.evaluate(*silo.held_out, verbose=0)
        round.report(held_out_mse=error)
        self._model.fit(*silo.training, epochs=self._epochs, verbose=0, callbacks=[StopEarly(round)])
        return fedround.Update(len(silo.training.prices), fedround.flatten(self._model.get_weights()))


class StopEarly(keras.callbacks.Callback):
    """Ends training when nobody waits for it any more: the round was given to others, or this process is about to end."""

    def __init__(self, round: fedround.Round) -> None:
        super().__init__()
        self._round = round

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.model.stop_training = self._round.cancelled
