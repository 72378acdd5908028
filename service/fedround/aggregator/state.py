"""The state that strategies keep from one round to the next: named arrays for each tensor of the model.

A state belongs to the model that was made with it. Its file has the format safetensors. In the file, the array `m` of the tensor
`layer.weight` has the name `layer.weight/m`; if the model is one array, `/m`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedround.errors import WrongWeights
from fedround.tensors import safetensors
from fedround.tensors.safetensors import shown
from fedround.tensors.weights import Array, decode, encode_model


@dataclass(frozen=True, slots=True)
class State:
    """The state of a model's strategies."""

    tensors: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    """Read-only arrays by the name of the tensor and the name of the array."""
    buffers: tuple[memoryview, ...] = ()
    """The content of the file: a header, and the memory of the arrays. Empty: there is no state."""
    restored: bool = False
    """Whether it comes from a file, which another strategy may have written."""

    @classmethod
    def of(cls, tensors: Mapping[str, Mapping[str, Array]]) -> "State":
        """Return the state with these arrays, which are results of `checked`. Raises `WrongWeights` if no file can store them."""
        named = {f"{tensor}/{name}": array for tensor, arrays in tensors.items() for name, array in arrays.items()}
        return cls(tensors, tuple(encode_model(named))) if named else cls()

    @classmethod
    def read(cls, data: memoryview) -> "State":
        """Return the state in a file with this content. Raises `WeightsError`."""
        found = decode(data)
        if not isinstance(found, Mapping):
            raise WrongWeights("the state of a strategy must be named tensors")
        tensors: dict[str, dict[str, Array]] = {}
        for path, array in found.items():
            tensor, _, name = path.rpartition("/")
            tensors.setdefault(tensor, {})[name] = read_only(array)
        return cls(tensors, restored=True)


def checked(tensor: str, found: object) -> dict[str, Array]:
    """Return the result of a strategy's `state()` as read-only arrays. Raises `WrongWeights` if no file can store it."""
    where = f"{shown(tensor)}: " if tensor else ""
    if not isinstance(found, Mapping):
        raise WrongWeights(f"{where}state() of the strategy returned {_kind(found)} instead of a mapping of names to arrays")
    arrays = {}
    for name, value in found.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise WrongWeights(f"{where}state() of the strategy returned the name {name!r:.80}: a name is text without a slash")
        if not isinstance(value, np.ndarray | np.generic):
            raise WrongWeights(f"{where}{shown(name)} in the state of the strategy is {_kind(value)} instead of an array")
        try:
            dtype = safetensors.tensor_of(f"{tensor}/{name}", value.dtype, value.shape).dtype
        except WrongWeights as error:
            raise WrongWeights(f"cannot store the state of the strategy: {error}") from error
        arrays[name] = read_only(np.asarray(value, dtype, order="C"))
    return arrays


def read_only(array: Array) -> Array:
    """Return a read-only view of an array."""
    view = array.view()
    view.flags.writeable = False
    return view


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
