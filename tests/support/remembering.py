"""Strategies that use the round's model and a state."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedround.aggregator.service import AggregatorService
from fedround.aggregator.strategies import WeightedAverage
from fedround.common.durable import Disk
from fedround.tensors.weights import Array, Spec
from support.aggregating import built


class Adding(WeightedAverage):
    """A strategy that adds up all averages. A weight of -1 spoils the result after the state was made."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.total = np.zeros(spec.count)
        self.model: Array | None = None

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        self.model = model
        if state:
            self.total = self.total + state["total"]

    def result(self) -> Array:
        average = super().result()
        self.total = self.total + average
        return average if average[0] != -1 else np.full_like(average, np.nan)

    def state(self) -> Mapping[str, Array]:
        return {"total": self.total}


class Combined:
    """The same for all updates together."""

    def __init__(self, spec: Spec) -> None:
        self.adding = Adding(spec)
        self.begin, self.state = self.adding.begin, self.adding.state

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        for count, update in zip(samples, updates, strict=True):
            self.adding.fold(count, [update])
        return self.adding.result()


class Words:
    """The same for bytes: the model is the longest update, and the state counts the rounds."""

    codec = "bytes"

    def __init__(self, spec: Spec) -> None:
        self.rounds = 0

    def begin(self, model: memoryview | None, state: Mapping[str, Array]) -> None:
        self.model, self.rounds = model, int(state.get("rounds", 0))

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> bytes:
        return bytes(self.model or b"") + bytes(max(updates, key=len))

    def state(self) -> Mapping[str, Any]:
        return {"rounds": np.int64(self.rounds + 1)}


class Seeing(WeightedAverage):
    """A strategy with `begin` but without a state: a round moves no weight by more than 1."""

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        assert not state
        self.model = model

    def result(self) -> Array:
        average = super().result()
        return average if self.model is None else np.clip(average, self.model - 1, self.model + 1)


class Choosy(Adding):
    """A strategy that rejects every state unless its name is `other`."""

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        if state:
            self.total = self.total + state["other"]

    def state(self) -> Mapping[str, Array]:
        return {"other": self.total}


class Nonsense(WeightedAverage):
    """A strategy with the state `NONSENSE`, once there is a model."""

    found: Any = None

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        self.first = model is None

    def state(self) -> Any:
        return {} if self.first else self.found


class Unmethodical(WeightedAverage):
    state = 7

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        pass


class Forgetful(Adding):
    """A strategy that cannot begin with its own state."""

    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        if state:
            raise RuntimeError("nothing but trouble")


def build(strategy: Callable[[Spec], Any], disk: Disk | None = None) -> AggregatorService:
    return built(f"{__name__}:{strategy.__name__}", disk)


def state(aggregator: AggregatorService) -> dict[str, dict[str, Any]]:
    assert aggregator.model is not None
    tensors = aggregator.model.state.tensors
    return {tensor: {name: array.tolist() for name, array in arrays.items()} for tensor, arrays in tensors.items()}


def array(*weights: float) -> Array:
    return np.array(weights, "<f4")


def of_two_kinds(spec: Spec) -> WeightedAverage:
    return Adding(spec) if spec.name == "w" else WeightedAverage(spec)


class WeightedAverage_(WeightedAverage):  # noqa: N801 of this module, and without memory
    pass


class Starved(Adding):
    def begin(self, model: Array | None, state: Mapping[str, Array]) -> None:
        if state:
            raise MemoryError


class OfToday:
    """A strategy from before states existed: its attribute `state` has another purpose."""

    def __init__(self, spec: Spec) -> None:
        self.state = np.zeros(spec.count)
        self.updates = 0

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        for block in blocks:
            self.state[: block.size] += block
        self.updates += 1

    def result(self) -> Array:
        return (self.state / self.updates).astype("<f4")
