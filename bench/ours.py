"""The benchmark's participant for fedround. As a program, it has no ops port."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from bench.model import trained

from fedround import NumPyParticipant, Update
from fedround.tensors.weights import Array

TENSORS = 200


class Ours(NumPyParticipant):
    """A participant whose training takes at least `seconds` per round."""

    def __init__(self, k: int, size: int, seconds: float = 0.0) -> None:
        self.k, self.size, self.seconds = k, size, seconds

    def train_round(self, training_input: Array | None) -> Update:
        time.sleep(self.seconds)
        return Update(1, trained(self.k, self.size, training_input))


class Added(NumPyParticipant):
    """A participant that adds 1 to `size` float32 weights, in place."""

    def __init__(self, k: int, size: int, seconds: float = 0.0) -> None:
        self.size = size

    def train_round(self, training_input: Array | None) -> Update:
        weights = np.zeros(self.size, "f4") if training_input is None else training_input
        weights += 1
        return Update(1, weights)


class AddedNamed(Added):
    """A participant that adds 1 to 200 tensors of the same total size: float32, some float16 and int64."""

    def train_round(self, training_input: Any) -> Update:
        weights = training_input or dict(self._initial())
        for tensor in weights.values():
            tensor += 1
        return Update(1, weights)

    def _initial(self) -> Iterator[tuple[str, Array]]:
        for number in range(TENSORS):
            dtype = np.dtype("f2" if number % 10 == 0 else "i8" if number % 10 == 5 else "f4")
            yield f"layer{number}.weight", np.zeros(self.size * 4 // TENSORS // dtype.itemsize, dtype)


if __name__ == "__main__":
    from fedround import run_participant

    k, size, seconds, url, period = sys.argv[1:]
    run_participant(Ours(int(k), int(size), float(seconds)), url, float(period))
