"""Checks of fedround.keras, for a Python that has Keras. A failed check raises an exception."""

import keras  # type: ignore[import-not-found]  # in an environment of its own
import ml_dtypes
import numpy as np

import fedround.keras
from fedround.errors import WrongWeights
from fedround.participant.round import Round, Shard, entered
from fedround.tensors.weights import Array

NAMES = {
    "conv2d/kernel": (3, 3, 1, 4),
    "conv2d/bias": (4,),
    "batch_normalization/gamma": (4,),
    "batch_normalization/beta": (4,),
    "batch_normalization/moving_mean": (4,),
    "batch_normalization/moving_variance": (4,),
    "dense/kernel": (144, 4),
    "dense/bias": (4,),
    "dense_1/kernel": (4, 2),
    "dense_1/bias": (2,),
}


def network() -> "keras.Model":
    layers = keras.layers
    body = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dropout(0.5), layers.Dense(4)]
    return keras.Sequential([keras.Input((8, 8, 1)), *body, layers.Dense(2, dtype="bfloat16")])


def complaint(model: "keras.Model", tensors: dict[str, Array]) -> str:
    try:
        fedround.keras.load(model, tensors)
    except WrongWeights as error:
        return str(error)
    return ""


def functional() -> "keras.Model":
    """Build layers with and without names, in a model within a model."""
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), keras.layers.Dense(3, name="named")], name="inner")
    start = keras.Input((3,))
    return keras.Model(start, keras.layers.Dense(1)(inner(keras.layers.Dense(3)(start))))


class Subclassed(keras.Model):  # type: ignore[misc, unused-ignore]
    """A model of the given layers, which has weights from its first call on."""

    def __init__(self, *layers: "keras.Layer") -> None:
        super().__init__()
        self.steps = list(layers)

    def call(self, x: "keras.KerasTensor") -> "keras.KerasTensor":
        for step in self.steps:
            x = step(x)
        return x


def main() -> None:
    """Run all checks."""
    model, other = network(), network()
    other.compile(optimizer="adam", loss="mse")
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype("f4")
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, np.ones((5, 2)), verbose=0)  # an optimiser and metrics have variables too
    found = fedround.keras.tensors(model)
    assert {name: array.shape for name, array in found.items()} == NAMES, found.keys()
    assert found["dense_1/kernel"].dtype == ml_dtypes.bfloat16
    copies = {name: array.copy() for name, array in found.items()}
    fedround.keras.load(other, copies)
    assert np.array_equal(model.predict(x, verbose=0), other.predict(x, verbose=0))
    again = fedround.keras.tensors(other)
    assert all(np.array_equal(array, again[name]) for name, array in copies.items())
    other.fit(x, np.ones((5, 2)), verbose=0)

    wrong = {name: array + array.dtype.type(1) for name, array in copies.items()}
    del wrong["dense/bias"]
    text = complaint(model, wrong | {"dense_1/bias": np.zeros(5), "head": np.zeros(1)})
    for part in ("dense/bias is missing", "head is not in the model", "dense_1/bias has shape (5,), the model (2,)"):
        assert part in text, text
    assert "dense/bias is int64, but the model has floats there" in complaint(model, wrong | {"dense/bias": np.arange(4)})
    assert all(np.array_equal(copies[name], array) for name, array in fedround.keras.tensors(model).items())

    round = Round(0, Shard(0, 1), lambda _figures: None)
    round.local_tensors = ("batch_normalization/*",)
    body = {name: array for name, array in copies.items() if not name.startswith("batch")}
    assert "batch_normalization/beta is missing" in complaint(model, body)
    with entered(round):
        assert complaint(model, body) == ""

    names = [list(fedround.keras.tensors(functional())) for _ in range(2)]
    assert names[0] == names[1] == [f"{path}/{kind}" for path in PATHS for kind in ("kernel", "bias")], names
    subclassed = Subclassed(keras.layers.Dense(2), keras.layers.Dense(2))
    assert "not built" in complaint(subclassed, {})
    subclassed(np.ones((1, 2)))
    assert list(fedround.keras.tensors(subclassed)) == ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]
    doubled = Subclassed(keras.layers.Dense(2, name="same"), keras.layers.Dense(2, name="same"))
    doubled(np.ones((1, 2)))
    assert "two variables of this model have the path" in complaint(doubled, {})
    print("all of it")


PATHS = ("dense", "inner/dense", "inner/named", "dense_1")

if __name__ == "__main__":
    main()
