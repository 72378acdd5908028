"""Server optimisers: strategies that move the round's model towards the weighted average. A protocol core: no I/O.

The *pseudo-gradient* is `average - model`. Each optimiser computes its step from the pseudo-gradient and its state. Sources:
Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2; Hsu et al., "Measuring the Effects of Non-Identical Data
Distribution for Federated Visual Classification", 2019.

Only float tensors are optimised. Integers, such as counters, get the average, and so does every tensor in the first round of a
training that begins without a model. The arithmetic is float64. The state is float64 for float64 tensors, and float32 for others.

Memory in addition to the sums of the weighted average: the state, and while a result is computed also the new state.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from fedround.aggregator.averages import WeightedAverage, rounded
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Spec

Fields = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""The dtype and shape of each array of a state."""


class ServerOptimiser(WeightedAverage, ABC):
    """The base of the optimisers: keeps the state, and steps block by block."""

    PER_WEIGHT: ClassVar[tuple[str, ...]]
    """Names of the state's arrays with a number for each weight. They begin at 0."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self._model: Array | None = None
        self._before: Mapping[str, Array] = {}
        self._after: dict[str, Array] = {}

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        """See `strategies.Remembering`. Raises `ValueError` if another strategy made the state."""
        found, expected = {name: (array.dtype, array.shape) for name, array in state.items()}, self._fields()
        if found and found != expected:
            raise ValueError(f"it has {_shown(found)}, but {type(self).__name__} needs {_shown(expected)}")
        self._model, self._before = model, state

    def state(self) -> Mapping[str, Array]:
        """See `strategies.Remembering`."""
        return self._after

    def result(self) -> Array:
        """See `strategies.Strategy`."""
        average = self.average()
        if self._model is not None and self._spec.floating:
            self._after = {name: np.zeros(shape, dtype) for name, (dtype, shape) in self._fields().items()}
            self._begin_step()
            with np.errstate(over="ignore", invalid="ignore"):  # later checks refuse a model that is not finite, with its state
                for start in range(0, average.size, BLOCK):
                    self._step_block(average, self._model, slice(start, start + BLOCK))
        return rounded(average, self._spec)

    def _step_block(self, average: Array, before: Array, part: slice) -> None:
        """Replace a block of the average by the new model's block."""
        model = before[part].astype(np.float64)
        numbers = [(self._before or self._after)[name][part].astype(np.float64) for name in self.PER_WEIGHT]
        average[part] = model + self._step(average[part] - model, *numbers)
        for name, array in zip(self.PER_WEIGHT, numbers, strict=True):
            self._after[name][part] = array

    def _begin_step(self) -> None:
        """Prepare the step for all blocks. The arrays of `_after` are 0."""

    @abstractmethod
    def _step(self, gradient: Array, /, *numbers: Array) -> Array:
        """Return the step for a block of the pseudo-gradient, and update the blocks of `PER_WEIGHT` in place."""

    def _fields(self) -> Fields:
        if not self._spec.floating:
            return {}
        dtype = np.dtype("<f8" if self._spec.dtype.itemsize == 8 else "<f4")
        return dict.fromkeys(self.PER_WEIGHT, (dtype, (self._spec.count,)))


class FedAvgM(ServerOptimiser):
    """FedAvg with server momentum (Hsu et al. 2019): it steps along `momentum = server_momentum * momentum + gradient`.

    Memory: 4 bytes a weight, 8 for float64.

    Args:
        spec: Spec of the tensor.
        server_learning_rate: The factor of each step; 1 as in Hsu et al. and Flower.
        server_momentum: From 0, the plain average, to below 1. 0.9 as in Hsu et al.; Flower's default is 0.
    """

    PER_WEIGHT = ("momentum",)

    def __init__(self, spec: Spec, *, server_learning_rate: float = 1.0, server_momentum: float = 0.9) -> None:
        super().__init__(spec)
        self._rate = _positive("server_learning_rate", server_learning_rate)
        self._decay = _decay("server_momentum", server_momentum)

    def _step(self, gradient: Array, /, *numbers: Array) -> Array:
        (momentum,) = numbers
        momentum *= self._decay
        momentum += gradient
        return self._rate * momentum


class FedAdagrad(ServerOptimiser):
    """Adagrad without momentum (Reddi et al. 2021): weights with large past gradients take smaller steps.

    Memory: 4 bytes a weight, 8 for float64.

    Args:
        spec: Spec of the tensor.
        eta: The server's learning rate; 0.1 as in Flower 1.42.
        tau: Added to the square root of `v`: the smaller, the more adaptive. 0.001 as in the paper and in Flower.
    """

    PER_WEIGHT = ("v",)

    def __init__(self, spec: Spec, *, eta: float = 0.1, tau: float = 1e-3) -> None:
        super().__init__(spec)
        self._eta, self._tau = _positive("eta", eta), _positive("tau", tau)

    def _step(self, gradient: Array, /, *numbers: Array) -> Array:
        (v,) = numbers
        v += gradient**2
        return _adaptive(self._eta, gradient, v, self._tau)


class FedYogi(ServerOptimiser):
    """Yogi (Reddi et al. 2021): like FedAdam, but only the newest gradient determines how far `v` moves.

    Memory: 8 bytes a weight, 16 for float64.

    Args:
        spec: Spec of the tensor.
        eta: The server's learning rate; 0.01 as in Flower 1.42.
        beta_1: Decay of `m`, the mean of the gradients, in each round; 0.9 as in the paper.
        beta_2: Decay of `v`, the mean of their squares, in each round; 0.99 as in the paper.
        tau: Added to the square root of `v`: the smaller, the more adaptive. 0.001 as in the paper and in Flower.
    """

    PER_WEIGHT = ("m", "v")

    def __init__(self, spec: Spec, *, eta: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3) -> None:
        super().__init__(spec)
        self._eta, self._tau = _positive("eta", eta), _positive("tau", tau)
        self._beta_1, self._beta_2 = _decay("beta_1", beta_1), _decay("beta_2", beta_2)

    def _step(self, gradient: Array, /, *numbers: Array) -> Array:
        m, v = numbers
        m *= self._beta_1
        m += (1 - self._beta_1) * gradient
        self._square(gradient**2, v)
        return _adaptive(self._eta, m, v, self._tau)

    def _square(self, square: Array, v: Array) -> None:
        v -= (1 - self._beta_2) * square * np.sign(v - square)


class FedAdam(FedYogi):
    """Adam (Reddi et al. 2021): the step is the mean of the gradients, divided by the root of the mean of their squares.

    Memory: 8 bytes a weight, 16 for float64.

    Args:
        spec: Spec of the tensor.
        eta: The server's learning rate; 0.1 as in Flower 1.42.
        beta_1: Decay of `m`, the mean of the gradients, in each round; 0.9 as in the paper.
        beta_2: Decay of `v`, the mean of their squares, in each round; 0.99 as in the paper.
        tau: Added to the square root of `v`: the smaller, the more adaptive. 0.001 as in the paper and in Flower.
        bias_correction: Correct both means for their start at 0 (Kingma and Ba, "Adam", ICLR 2015, section 2). The paper does
            not; Flower does, with an exponent that is larger by one.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        eta: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        bias_correction: bool = False,
    ) -> None:
        super().__init__(spec, eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau)
        if not isinstance(bias_correction, bool):
            raise ValueError(f"bias_correction must be true or false, not {bias_correction!r}")
        self._correct = bias_correction

    def _begin_step(self) -> None:
        rounds = int(self._before.get("rounds", 0)) + 1
        self._after["rounds"][()] = rounds
        if self._correct:
            self._eta *= sqrt(1 - self._beta_2**rounds) / (1 - self._beta_1**rounds)

    def _square(self, square: Array, v: Array) -> None:
        v *= self._beta_2
        v += (1 - self._beta_2) * square

    def _fields(self) -> Fields:
        fields = super()._fields()
        return fields | {"rounds": (np.dtype("<i8"), ())} if fields else fields


def _adaptive(eta: float, direction: Array, v: Array, tau: float) -> Array:
    root = np.sqrt(v)
    root += tau
    step: Array = direction / root
    step *= eta
    return step


def _positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number, not {value}")
    return value


def _decay(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, not {value}")
    return value


def _shown(fields: Fields) -> str:
    return ", ".join(f"{name} ({dtype} of shape {shape})" for name, (dtype, shape) in sorted(fields.items())) or "nothing"
