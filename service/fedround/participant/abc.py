"""The classes that users subclass to write a participant. No I/O."""

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
"""An update as it is sent: one bytes-like object, or several to be concatenated."""


class ParticipantABC(ABC, Generic[TrainingInput, TrainingResult]):
    """A participant with a custom format for weights: bytes in, bytes out.

    All methods run on the thread that called `run_participant`. Arguments are positional: choose their names.
    """

    takes_buffers: ClassVar[bool] = False
    """Whether `deserialize_training_input` gets the writable buffer that the model was received in, instead of bytes."""
    evaluates: ClassVar[bool] = False
    """Whether to call the method `evaluate` with each new global model. `NumPyParticipant` ignores this and always calls it."""

    @abstractmethod
    def train_round(self, training_input: TrainingInput, /) -> TrainingResult:
        """Train on the local data, and return the result.

        Args:
            training_input: The global model, as `deserialize_training_input` returned it.
        """
        raise NotImplementedError

    @abstractmethod
    def serialize_training_result(self, training_result: TrainingResult, /) -> Payload:
        """Return the bytes to send to the aggregator: one bytes-like object, or several to be concatenated.

        Args:
            training_result: A result of `train_round`.
        """
        raise NotImplementedError

    @abstractmethod
    def deserialize_training_input(self, data: bytes, /) -> TrainingInput:
        """Return the argument of `train_round`.

        Args:
            data: The bytes of the global model. Empty before the first aggregation.
        """
        raise NotImplementedError

    def check_training_result(self, training_result: TrainingResult, /) -> None:
        """Raise an exception if a result must not be sent. The default accepts everything."""


class Update(NamedTuple):
    """The result of a round of training. A plain tuple of both values works too."""

    samples: int
    """Number of training samples, 0 to 2**32 - 1: the weight of this update in the average. If all are 0, a plain mean is used."""
    weights: Any
    """Weights like the global model: an array, a mapping of names to arrays, or a list of arrays, with the names "0", "1", ..."""


class NumPyParticipant(ParticipantABC[Any, "Update | tuple[int, Any]"]):
    """A participant that exchanges NumPy arrays. fedround does not copy them, and checks every update before it sends it.

    Implement `train_round`. It gets the global model, or None before the first aggregation, and returns an `Update`. A model is

    - one array: float16 and float32 are sent unchanged, other dtypes as float64; or
    - a `dict` of names to arrays, such as a state dict. Each keeps its shape and dtype (floats, bfloat16, integers, booleans).

    The arrays are writable, and you may train in place. The round fails, and the update is not sent, if it has NaN, infinity, or
    other names, shapes or dtypes than the global model. An element of a named tensor that is not finite in the global model may
    stay unchanged.

    If the class has a method `evaluate(self, weights)`, it is called with each new global model before training, and returns an
    `Evaluation`. It must not change the weights.
    """

    takes_buffers = True
    local_tensors: Sequence[str] = ()
    """Name patterns (`fnmatch`) of tensors that stay in this participant. They are not sent, and persist across rounds."""
    _persist_local: Callable[[Mapping[str, Array]], None] | None = None
    """Function that persists the local tensors of an update after its check. A service sets it."""
    _layout: codec.Layout | None = None
    _constants: Mapping[str, Array] = {}
    _local: Mapping[str, Array] = {}
    _sent: tuple[int, Weights, Mapping[str, Array]] | None = None
    """The serialized result until its check, because an iterator can only be read once."""

    def initial_weights(self) -> Weights | Sequence[Array]:
        """Return initial weights for `fedround model --init`: an array, a mapping of names to arrays, or a list of arrays.

        Raises:
            NotImplementedError: The class has none, which is the default.
        """
        raise NotImplementedError

    def _restore_local(self, local: Mapping[str, Array]) -> None:
        """Add these local tensors, by name, to the next global model."""
        self._local = {name: array for name, array in local.items() if matches(name, self.local_tensors)}

    def deserialize_training_input(self, data: bytes, /) -> Any:
        """Return the weights in `data`, an `.npy` or safetensors file, without a copy; None if it is empty."""
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
        """Raise `WeightsError` for weights that the aggregator would reject, or that would damage the average."""
        _, weights, local = self._sent or self._update(training_result)
        self._sent = None
        if self._layout is not None:
            self._layout.check(codec.Layout.of(weights))
        values.check_values(weights, self._constants)
        self._local = local
        if local and self._persist_local is not None:
            self._persist_local(local)

    def serialize_training_result(self, training_result: Update | tuple[int, Any], /) -> Payload:
        """Return the number of samples and the weights' memory, which must not change until the next round."""
        self._sent = samples, weights, _ = self._update(training_result)
        return codec.encode_update(samples, weights)

    def _update(self, result: Any) -> tuple[int, Weights, dict[str, Array]]:
        """Return a result's number of samples, its shared weights, and its local tensors. Raises `WrongWeights`."""
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
    """Return the weights to send, and copies of the tensors that stay local.

    Args:
        weights: An array, a mapping of names to arrays, or a list of arrays.
        local: Name patterns (`fnmatch`) of local tensors.
        one_array: Whether the global model is one array, so that a list is one too.

    Raises:
        WrongWeights: The weights are neither an array nor named arrays. The message shows what to return instead.
    """
    if not isinstance(weights, Mapping):
        if one_array or not (isinstance(weights, list | tuple) and weights and all(isinstance(a, np.ndarray) for a in weights)):
            return _array(weights), {}
        weights = {str(number): array for number, array in enumerate(weights)}
    shared, private = dict[str, Array](), dict[str, Array]()
    for name, value in weights.items():
        if not isinstance(name, str):
            raise WrongWeights(f"the name of a tensor must be a string, not {_kind(name)}")
        array = _array(value, name)
        if matches(name, local):
            private[name] = array.copy()
        else:
            shared[name] = array
    if private and not shared:
        raise WrongWeights("all tensors are local tensors: none is left to send")
    return shared, private


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name matches one of the patterns (`fnmatch`)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _array(value: Any, name: str = "") -> Array:
    where = f"{shown(name)}: " if name else ""
    if isinstance(value, np.ma.MaskedArray):
        raise WrongWeights(f"{where}a masked array would lose its mask: return array.filled(value)")
    try:
        array = np.asarray(value)
    except ValueError:
        raise WrongWeights(f"{where}weights are lists of different lengths: return a list of arrays, or a mapping") from None
    except (TypeError, RuntimeError) as error:  # a tensor on a GPU, or one that needs gradients
        raise WrongWeights(f"{where}{_kind(value)} is not a NumPy array: {error}") from None
    if array.dtype.hasobject and array is not value:  # None, a dict, or the model itself
        raise WrongWeights(f"{where}{_kind(value)} is not a NumPy array: {HOW}")
    return array


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
