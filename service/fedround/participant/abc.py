"""What a participant is: the classes that users subclass. No I/O."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from operator import index
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from fedround.errors import WrongWeights
from fedround.tensors import values
from fedround.tensors import weights as codec
from fedround.tensors.safetensors import shown
from fedround.tensors.weights import Array, Weights

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
    evaluates: ClassVar[bool] = False
    """Whether a method `evaluate` is to be called with each new global model; see `NumPyParticipant`, where it always is."""

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
        """Raise where a result must not be sent. By default everything may be."""
        return


class Update(NamedTuple):
    """What a round of training gives. A plain tuple of the two does as well."""

    samples: int
    """How many samples it was trained on, 0 to 2**32 - 1: the weight of this update in the average. All of them 0: a plain mean."""
    weights: Any
    """Like the global model: an array, a mapping of names to arrays, or a list of arrays, which are called "0", "1", ..."""


class NumPyParticipant(ParticipantABC[Any, "Update | tuple[int, Any]"]):
    """A participant whose weights are NumPy arrays: nothing is copied on its way, and what is sent is checked.

    Write `train_round`. It is given the global model, or None before the first aggregation, and returns an `Update`. A model is

    - one array: float16 and float32 travel as such, all else as float64; or
    - a `dict` of names to arrays, such as a state dict: each keeps its shape and its dtype (floats, bfloat16, integers, booleans).

    The arrays are writable and yours: train in place if you like. An update is not sent, and the round fails, if it has NaN,
    infinity, or other names, shapes or dtypes than the global model. An element of a named tensor that is not finite in the global
    model may stay as it is.

    A method `evaluate(self, weights)` is called with each new global model before training, and returns an `Evaluation`. It must
    not change the weights.
    """

    takes_buffers = True
    local_tensors: Sequence[str] = ()
    """Patterns (`fnmatch`) of the names of tensors that stay in this participant: they are not sent, and kept across rounds."""
    _keep_local: Callable[[Mapping[str, Array]], None] | None = None
    """Is called with the local tensors of each update, after it was checked. A service sets it."""
    _layout: codec.Layout | None = None
    _constants: Mapping[str, Array] = {}
    _local: Mapping[str, Array] = {}
    _sent: tuple[int, Weights, Mapping[str, Array]] | None = None
    """The result that is serialized, until it is checked: an iterator can be read once."""

    def initial_weights(self) -> Weights | Sequence[Array]:
        """Return the weights that a training can begin with, for `fedround model --init`. There are none by default."""
        raise NotImplementedError

    def _begin_with_local(self, local: Mapping[str, Array]) -> None:
        """Put these local tensors, by name, into the next global model."""
        self._local = {name: array for name, array in local.items() if matches(name, self.local_tensors)}

    def deserialize_training_input(self, data: bytes, /) -> Any:
        """Return the weights in `data`, an `.npy` or safetensors file, without a copy; None when it is empty."""
        self._layout, self._constants = None, {}
        if not len(data):
            return None
        weights = codec.decode(data)
        self._layout = codec.Layout.of(weights)
        if isinstance(weights, dict):
            self._constants = values.constants_of(weights)
            weights |= {name: array.copy() for name, array in self._local.items()}
        return weights

    def check_training_result(self, training_result: Update | tuple[int, Any], /) -> None:
        """Raises `WeightsError` for what an aggregator would refuse, or average all the same."""
        _, weights, local = self._sent or self._update(training_result)
        self._sent = None
        if self._layout is not None:
            self._layout.check(codec.Layout.of(weights))
        values.check_values(weights, self._constants)
        self._local = local
        if local and self._keep_local is not None:
            self._keep_local(local)

    def serialize_training_result(self, training_result: Update | tuple[int, Any], /) -> Payload:
        """Return the number of samples and the weights' own memory, which must not change until the next round."""
        self._sent = samples, weights, _ = self._update(training_result)
        return codec.encode_update(samples, weights)

    def _update(self, result: Any) -> tuple[int, Weights, dict[str, Array]]:
        """Return what is sent of a result, and its local tensors. Raises `WrongWeights`, which says what to return instead."""
        try:
            samples, weights = result
        except (TypeError, ValueError):
            raise WrongWeights(f"train_round returned {_kind(result)}: {HOW}") from None
        try:
            count = index(samples)
        except TypeError:
            raise WrongWeights(f"samples is {_kind(samples)}, not a whole number: {HOW}") from None
        one_array = self._layout is not None and not self._layout.named
        return count, *shared_tensors(weights, self.local_tensors, one_array=one_array)


HOW = "return fedround.Update(samples=..., weights=...)"


def shared_tensors(weights: Any, local: Sequence[str] = (), *, one_array: bool = False) -> tuple[Weights, dict[str, Array]]:
    """Return what users handed over as weights: what is sent, and copies of the tensors whose names match a pattern of `local`.

    Raises:
        WrongWeights: It is neither an array nor named arrays. The message says what to hand over instead.
    """
    if not isinstance(weights, Mapping):
        if one_array or not (isinstance(weights, list | tuple) and weights and all(isinstance(a, np.ndarray) for a in weights)):
            return _array(weights), {}
        weights = {str(number): array for number, array in enumerate(weights)}
    named, kept = dict[str, Array](), dict[str, Array]()
    for name, value in weights.items():
        if not isinstance(name, str):
            raise WrongWeights(f"the name of a tensor is a string, not {_kind(name)}")
        array = _array(value, name)
        if matches(name, local):
            kept[name] = array.copy()
        else:
            named[name] = array
    if kept and not named:
        raise WrongWeights("all tensors are local tensors: nothing is left to be sent")
    return named, kept


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name matches one of the patterns (`fnmatch`)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _array(value: Any, name: str = "") -> Array:
    where = f"{shown(name)}: " if name else ""
    if isinstance(value, np.ma.MaskedArray):
        raise WrongWeights(f"{where}a masked array would lose its mask: hand over array.filled(value)")
    try:
        return np.asarray(value)
    except ValueError:
        raise WrongWeights(f"{where}weights are lists of several lengths: hand over a list of arrays, or a mapping") from None
    except (TypeError, RuntimeError) as error:  # a tensor on a GPU, or one that needs gradients
        raise WrongWeights(f"{where}{_kind(value)} is no NumPy array: {error}") from None


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
