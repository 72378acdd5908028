"""House prices with Keras: a small neural network, on the sales of some neighbourhoods each."""

import keras

import fedround
import fedround.keras
from fedround.demo import ames


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((80,)),  # a house, as fedround.demo.ames describes it
        keras.layers.Dense(32, activation="relu", kernel_regularizer=keras.regularizers.L2(0.001)),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer=keras.optimizers.Adam(0.003), loss="mse", metrics=["mse"])
    return model


class HousePrices(fedround.NumPyParticipant):
    """A participant that trains on the sales of its shard.

    Args:
        epochs: Number of epochs in a round.
    """

    def __init__(self, *, epochs: int = 5) -> None:
        self.model, self.epochs = network(), epochs

    def initial_weights(self):
        return fedround.keras.tensors(self.model)

    def evaluate(self, weights, /):
        round = fedround.current_round()
        held_out = ames.load(round.shard.index, round.shard.count).held_out
        fedround.keras.load(self.model, weights)
        _, error = self.model.evaluate(*held_out, verbose=0)
        return fedround.Evaluation(len(held_out.prices), held_out_mse=error)

    def train_round(self, weights, /):
        round = fedround.current_round()
        silo = ames.load(round.shard.index, round.shard.count)
        if weights is not None:
            fedround.keras.load(self.model, weights)
        self.model.fit(*silo.training, epochs=self.epochs, verbose=0, callbacks=[StopEarly(round)])
        return fedround.Update(len(silo.training.prices), fedround.keras.tensors(self.model))


class StopEarly(keras.callbacks.Callback):
    """Stops training early when the coordinator revokes the participant's part in the round, or the process stops."""

    def __init__(self, round: fedround.Round) -> None:
        super().__init__()
        self._round = round

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = self._round.cancelled
