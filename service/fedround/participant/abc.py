"""What a participant is: the classes that users subclass. No I/O."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import index
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from fedround import weights as codec
from fedround.errors import WrongWeights
from fedround.weights import Array

TrainingInput = TypeVar("TrainingInput")
TrainingResult = TypeVar("TrainingResult")

Buffer = bytes | bytearray | memoryview | Array
Payload = Buffer | Sequence[Buffer]
"""What is sent: bytes of any kind, or several that belong one behind the other."""


class ParticipantABC(ABC, Generic[TrainingInput, TrainingResult]):
    """A participant whose weights travel in a format of its own: bytes in, bytes out.

    All methods are called on one thread, the one that called `run_participant`. Name their arguments as you like.
    """

    takes_buffers: ClassVar[bool] = False
    """Whether `deserialize_training_input` takes the very buffer that the model was received in, writable, instead of bytes."""

    @abstractmethod
    def train_round(self, training_input: TrainingInput, /) -> TrainingResult:
        """Train on the local data, beginning with the global model that `deserialize_training_input` returned."""
        raise NotImplementedError

    @abstractmethod
    def serialize_training_result(self, training_result: TrainingResult, /) -> Payload:
        """What is sent to the aggregator for the result of `train_round`."""
        raise NotImplementedError

    @abstractmethod
    def deserialize_training_input(self, data: bytes, /) -> TrainingInput:
        """What `train_round` is given for the global model. `data` is empty before the first aggregation."""
        raise NotImplementedError

    def check_training_result(self, training_result: TrainingResult, /) -> None:
        """Raise where a result must not leave the house. By default everything may."""
        return


class Update(NamedTuple):
    """What a round of training gives. A plain tuple of the two does as well."""

    samples: int
    """How many samples it was trained on, 0 to 2**32 - 1: the weight of this update in the average. All of them 0: a plain mean."""
    weights: Array
    """Of the global model's shape. float16 and float32 travel as such, all else as float64."""


class NumPyParticipant(ParticipantABC[Array | None, "Update | tuple[int, Array]"]):
    """A participant whose weights are one NumPy array: nothing is copied on its way, and what leaves is checked.

    Write `train_round`. It is given the global model, a writable array that is yours (train in place if you like), or None
    before the first aggregation; it returns an `Update`. `fedround.flatten` and `unflatten` turn lists of arrays into one and back.

    An update with NaN or infinity, or of another shape or precision than the global model, is not sent: the round fails.
    """

    takes_buffers = True
    _spec: codec.Spec | None = None

    def deserialize_training_input(self, data: bytes, /) -> Array | None:
        """The weights in `data`, which is the format of `numpy.save`, without a copy; None when it is empty."""
        self._spec = None
        if not len(data):
            return None
        weights = codec.decode(data)
        self._spec = _spec(weights)
        return weights

    def check_training_result(self, training_result: Update | tuple[int, Array], /) -> None:
        """Raises `WeightsError` for what an aggregator would refuse, or average all the same."""
        weights = np.asarray(training_result[1])
        if self._spec not in (None, spec := _spec(weights)):
            raise WrongWeights(f"these are {spec}, but the global model has {self._spec}")
        flat = weights.reshape(-1, order="A")
        for start in range(0, flat.size if flat.dtype.kind == "f" else 0, codec.BLOCK):
            codec.check_finite(flat[start : start + codec.BLOCK])

    def serialize_training_result(self, training_result: Update | tuple[int, Array], /) -> Payload:
        """The number of samples and the weights' own memory, which must not change until the next round."""
        samples, weights = _update(training_result)
        return codec.encode_update(samples, weights)


HOW = "return fedround.Update(samples=..., weights=...)"


def _update(result: Any) -> tuple[int, Array]:
    """What people return by mistake is named, and what to return instead. Raises `WrongWeights`."""
    try:
        samples, weights = result
    except (TypeError, ValueError):
        raise WrongWeights(f"train_round returned {_kind(result)}: {HOW}") from None
    try:
        count = index(samples)
    except TypeError:
        raise WrongWeights(f"samples is {_kind(samples)}, not a whole number: {HOW}") from None
    try:
        return count, np.asarray(weights)
    except ValueError:
        raise WrongWeights("weights are arrays of several shapes: make one array of them with fedround.flatten") from None


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _spec(weights: Array) -> codec.Spec:
    return codec.Spec(codec.result_dtype(weights.dtype), weights.shape)
