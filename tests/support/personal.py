"""A participant with local tensors."""

import logging
from typing import Any

import numpy as np

import fedround


class Personal(fedround.NumPyParticipant):
    """A participant that counts its trainings in each tensor."""

    local_tensors = ("head.*", "*.running_mean")

    def __init__(self, start: float = 0) -> None:
        self._start = start
        self.keep, self.begin_with = "names of", "the user"

    def initial_weights(self) -> dict[str, Any]:
        return {name: np.full(2, self._start, "f4") for name in ("body.w", "head.w", "bn.running_mean")}

    def train_round(self, weights: Any, /) -> fedround.Update:
        tensors = self.initial_weights() | (weights or {})
        logging.getLogger(__name__).warning("head %g came back", tensors["head.w"][0])
        return fedround.Update(1, {name: array + 1 for name, array in tensors.items()})


class Opaque(fedround.ParticipantABC[bytes, bytes]):
    """A participant with a custom format."""

    def deserialize_training_input(self, data: bytes, /) -> bytes:
        return data

    def train_round(self, training_input: bytes, /) -> bytes:
        return training_input

    def serialize_training_result(self, training_result: bytes, /) -> bytes:
        return training_result
