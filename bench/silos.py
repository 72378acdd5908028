"""The tasks of `bench.strategies`: house prices and digits, with stochastic gradient descent in NumPy."""

import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

import fedround
from fedround.demo import ames
from fedround.tensors.weights import Array
from support import venvs

Model = dict[str, Array]
EPOCHS, BATCH = 5, 16


class Data(NamedTuple):
    """Samples. Row i of both arrays is sample i."""

    x: Array
    y: Array


class Split(NamedTuple):
    """The data of a silo."""

    training: Data
    held_out: Data


@dataclass(frozen=True)
class Task:
    """A network of one layer, or of several with ReLU between them. `x` has a column of ones instead of biases."""

    title: str
    splits: Callable[[int], Iterator[Split]]
    """Returns the data of all silos for a seed."""
    layers: Sequence[int]
    """Number of inputs of each layer, and of outputs of the last."""
    rate: float
    """Learning rate of the silos."""
    output: Callable[[Array], Array]
    """Returns predictions from the last layer's outputs. The gradient of the loss there is `prediction - y`."""
    quality: Callable[[Array, Array], float]
    """Returns the mean quality of predictions."""
    metric: str
    shown: Callable[[float], float]
    """Returns the metric from the mean quality."""
    mark: float
    sign: int
    """1 if a higher metric is better, -1 if a lower one is."""

    def initial(self, seed: int) -> Model:
        random = np.random.default_rng(seed)
        *hidden, last = pairwise(self.layers)
        layers = [*(random.normal(0, shape[0] ** -0.5, shape) for shape in hidden), np.zeros(last)]
        return {f"layer.{number}": layer for number, layer in enumerate(layers)}

    def rounds_to_mark(self, curve: Sequence[float]) -> float:
        return next((rounds for rounds, value in enumerate(curve, 1) if self.sign * value >= self.sign * self.mark), math.inf)


class Silo(fedround.NumPyParticipant):
    """A participant. It multiplies its change of the model by `factor`; `mu` is that of FedProx."""

    def __init__(self, task: Task, split: Split, seed: tuple[int, int], mu: float) -> None:
        self.task, self.split, self.mu = task, split, mu
        self.random = np.random.default_rng(seed)
        self.factor = 1

    def evaluate(self, weights: Model) -> fedround.Evaluation:
        x, y = self.split.held_out
        quality = self.task.quality(self.task.output(forward(weights, x)[1]), y) if len(y) else 0.0
        return fedround.Evaluation(len(y), quality=quality)

    def train_round(self, weights: Model) -> fedround.Update:
        x, y = self.split.training
        anchor = {name: array.copy() for name, array in weights.items()}
        for _ in range(EPOCHS):
            for batch in np.split(self.random.permutation(len(y)), range(BATCH, len(y), BATCH)):
                gradient = backward(weights, x[batch], y[batch], self.task.output)
                for name, pull in fedround.proximal_gradient(weights, anchor).items():
                    weights[name] -= self.task.rate * (gradient[name] + self.mu * pull)
        return fedround.Update(len(y), {name: old + self.factor * (weights[name] - old) for name, old in anchor.items()})


def forward(weights: Model, x: Array) -> tuple[list[Array], Array]:
    """Return the inputs of all layers, and the outputs of the last."""
    *hidden, last = (weights[name] for name in sorted(weights))
    inputs = [x]
    for layer in hidden:
        inputs.append(np.maximum(inputs[-1] @ layer, 0))
    return inputs, inputs[-1] @ last


def backward(weights: Model, x: Array, y: Array, output: Callable[[Array], Array]) -> Model:
    """Return the gradient of the mean loss."""
    inputs, outputs = forward(weights, x)
    error = (output(outputs) - y) / len(y)
    gradient = {}
    for name, given in zip(sorted(weights, reverse=True), reversed(inputs), strict=True):
        gradient[name] = given.T @ error
        error = error @ weights[name].T * (given > 0)
    return gradient


def softmax(outputs: Array) -> Array:
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def neighbourhoods(seed: int) -> Iterator[Split]:
    """Yield the silos of the demo, one per neighbourhood. They do not depend on the seed."""
    for index in range(len(ames.SALES)):
        silo = ames.load(index, len(ames.SALES))
        yield Split(*(Data(sales.features.reshape(-1, FEATURES), sales.prices.reshape(-1, 1)) for sales in silo))


def digits(seed: int) -> Iterator[Split]:
    """Yield ten silos with two digits each. Each digit is in two silos, which have half of its images each."""
    file = venvs.CACHE / "digits.npz"
    with venvs.alone("digits.lock"):
        if not file.exists():
            program = "import numpy, sys; from sklearn.datasets import load_digits; numpy.savez(sys.argv[1], **load_digits())"
            subprocess.run([venvs.python(*venvs.SKLEARN), "-c", program, str(file)], check=True)
    with np.load(file) as arrays:
        x, labels = np.insert(arrays["data"] / 16, 0, 1, axis=1), arrays["target"]
    random = np.random.default_rng(seed)
    halves = [np.array_split(random.permutation(np.flatnonzero(labels == label)), 2) for label in random.permutation(10)]
    for one, other in zip(halves, [*halves[1:], halves[0]], strict=True):
        mine = np.concatenate([one[0], other[1]])
        held_out = np.arange(len(mine)) % 5 == 2
        yield Split(*(Data(x[some], np.eye(10)[labels[some]]) for some in (mine[~held_out], mine[held_out])))


FEATURES = ames.load(0, 1).training.features.shape[1]

TASKS = {
    "houses": Task(
        title="House prices in 28 neighbourhoods",
        splits=neighbourhoods,
        layers=(FEATURES, 1),
        rate=0.01,
        output=np.asarray,
        quality=lambda predictions, y: float(np.square(predictions - y).mean()),
        metric="RMSE",
        shown=math.sqrt,
        mark=0.15,
        sign=-1,
    ),
    "digits": Task(
        title="Digits in 10 silos with 2 labels each",
        splits=digits,
        layers=(65, 32, 10),
        rate=0.1,
        output=softmax,
        quality=lambda predictions, y: float((predictions.argmax(axis=1) == y.argmax(axis=1)).mean()),
        metric="accuracy",
        shown=float,
        mark=0.85,
        sign=1,
    ),
}
