"""Weights as bytes and back, without copies.

The weights of a model are one array, sent as `.npy`, or named tensors, sent as safetensors. An update is the number of samples (4
bytes, big-endian), followed by the weights. `decode` returns writable views of the buffer that received a model. `encode_update`
returns a short prefix and the memory of the arrays. This module never unpickles.
"""

import math
import mmap
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from fedround.errors import WeightsError, WrongWeights
from fedround.tensors import npy, safetensors
from fedround.tensors.safetensors import shown

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Array | Mapping[str, Array]
"""The weights of a model: one array, or named tensors."""

SAMPLES_BYTES = 4
FIRST_BYTES = 16
"""Bytes at the start of weights that determine the size of their header. See `header_size`."""
_SLACK = 4096
"""Bytes by which a safetensors header of another library may be longer than ours."""
_LISTED = 3
"""Maximum number of tensors that a message names."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of a model: little-endian dtype, shape and name. The name of a single array is empty."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    name: str = ""

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    @property
    def floating(self) -> bool:
        """Whether its dtype is a float type, including bfloat16."""
        return self.dtype.kind not in "iub"

    @property
    def averaged(self) -> bool:
        """Whether a strategy averages it. Booleans must be equal in all updates instead."""
        return self.dtype.kind != "b" and self.count > 0

    @property
    def result(self) -> np.dtype[Any]:
        """The dtype in which a strategy returns it. Integers and bfloat16 are rounded afterwards."""
        return self.dtype if self.dtype.kind == "f" else np.dtype("<f8")

    def __str__(self) -> str:
        return f"{self.dtype.name} weights of shape {self.shape}"


@dataclass(frozen=True, slots=True)
class Layout:
    """The structure of the weights of a training: its tensors, in the order of our files."""

    tensors: tuple[Spec, ...]
    named: bool = False
    """Whether the weights are named tensors, not one array."""

    @classmethod
    def of(cls, weights: Weights) -> "Layout":
        """Return the layout of a model that is made from updates like `weights`. Raises `WeightsError`."""
        if isinstance(weights, Mapping):
            tensors = safetensors.ordered(safetensors.tensor_of(n, a.dtype, a.shape) for n, a in weights.items())
            return cls._of_tensors(tensors)
        return cls((Spec(result_dtype(weights.dtype), npy.check_shape(weights.shape)),))

    @classmethod
    def _of_tensors(cls, tensors: Iterable[safetensors.Tensor]) -> "Layout":
        layout = cls(tuple(Spec(tensor.dtype, tensor.shape, tensor.name) for tensor in tensors), named=True)
        if not layout.count:
            raise WrongWeights("these tensors hold no weights")
        return layout

    @property
    def count(self) -> int:
        """Number of elements."""
        return sum(spec.count for spec in self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.tensors)

    @property
    def measured(self) -> tuple[Spec, ...]:
        """The tensors that norms and statistics cover: floats. Integers, such as counters, do not describe training."""
        return tuple(spec for spec in self.tensors if spec.floating and spec.count) or tuple(s for s in self.tensors if s.averaged)

    @property
    def dtype(self) -> str:
        """Names of the dtypes."""
        return ", ".join(dict.fromkeys(spec.dtype.name for spec in self.tensors))

    @property
    def largest_update(self) -> int:
        """Maximum size of an update of this model in bytes. No dtype of an update in one array is wider than the model's."""
        header = len(encode_header(self)) + _SLACK if self.named else npy.MAX_PREFIX
        return SAMPLES_BYTES + header + self.nbytes

    def check(self, other: "Layout") -> None:
        """Raise `WrongWeights` with the differences unless the layout of an update, `other`, is equal."""
        if self != other:
            raise WrongWeights("; ".join(_differences(self, other)))

    def __str__(self) -> str:
        if not self.named:
            return str(self.tensors[0])
        return f"{self.count} weights ({self.dtype}) in {len(self.tensors)} named tensors"


def _differences(model: Layout, update: Layout) -> Iterator[str]:
    if not (model.named and update.named):
        yield f"these are {update}, but the global model has {model}"
        return
    ours, theirs = ({spec.name: spec for spec in layout.tensors} for layout in (model, update))
    kinds = {
        "missing": sorted(ours.keys() - theirs.keys()),
        "not in the global model": sorted(theirs.keys() - ours.keys()),
        "different": [
            f"{name} (this is {theirs[name]}, the global model has {ours[name]})"
            for name in sorted(ours.keys() & theirs.keys())
            if ours[name] != theirs[name]
        ],
    }
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            yield f"tensors {kind}: {', '.join(map(shown, names[:_LISTED]))}{more}"


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of a global model in one array: float16 and float32 stay, all others become float64 (as in 0.8)."""
    little = dtype.newbyteorder("<")
    return little if little.str in ("<f2", "<f4") else np.dtype("<f8")


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a tensor from the start of the weights, and its memory order."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, memory: Any, start: int = 0) -> Array:
        """Return a view of `memory`, in which the weights begin at byte `start`."""
        return np.ndarray(self.shape, self.dtype, memory, start + self.offset, order="F" if self.fortran else "C")


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed header of weights: their layout, and the place of each tensor, in the same order."""

    layout: Layout
    places: tuple[Place, ...]
    size: int
    """Size of header and data in bytes."""
    metadata: Mapping[str, str]

    def check_size(self, size: int) -> None:
        """Raise `WrongWeights` unless header and data have `size` bytes."""
        if size != self.size:
            data = sum(place.nbytes for place in self.places)
            raise WrongWeights(f"the header announces {data} bytes of weights, but {size - self.size + data} follow it")


def header_size(first: bytes | bytearray | memoryview) -> int:
    """Return the maximum size of the header in bytes, given the first `FIRST_BYTES`. Raises `WeightsError`."""
    return safetensors.header_size(first) if safetensors.is_safetensors(first) else npy.MAX_PREFIX


def parse_head(prefix: bytes | bytearray | memoryview) -> Head:
    """Parse a header of either format. Raises `WeightsError`."""
    if not safetensors.is_safetensors(prefix):
        header = npy.parse_header(prefix)
        place = Place(header.dtype, header.shape, header.offset, header.fortran)
        spec = Spec(result_dtype(header.dtype), header.shape)
        return Head(Layout((spec,)), (place,), header.offset + place.nbytes, {})
    found = safetensors.parse_header(prefix)
    tensors = safetensors.ordered(found.tensors)
    places = tuple(Place(tensor.dtype, tensor.shape, found.offset + tensor.begin) for tensor in tensors)
    return Head(Layout._of_tensors(tensors), places, found.offset + found.nbytes, found.metadata)


def encode_header(layout: Layout, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the header of named tensors."""
    tensors = (safetensors.tensor_of(spec.name, spec.dtype, spec.shape) for spec in layout.tensors)
    return safetensors.encode_header(tensors, metadata)


def view(buffer: "Buffer") -> Weights:
    """Return views of the weights in `buffer`. They may be read-only, unaligned, or of the other byte order.

    Raises:
        WeightsError: `buffer` does not contain exactly one model.
    """
    data = memoryview(buffer).cast("B")
    head = parse_head(data[: header_size(data[:FIRST_BYTES])])
    head.check_size(len(data))
    arrays = [place.array(data) for place in head.places]
    if not head.layout.named:
        return arrays[0]
    names = [spec.name for spec in head.layout.tensors]
    found = dict(zip(names, arrays, strict=True))
    # The names of a list of arrays are numbers: "2" comes before "10".
    return {name: found[name] for name in sorted(names, key=int)} if all(map(_is_index, names)) else found


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10


def decode(buffer: "Buffer") -> Any:
    """Return the weights in `buffer`: an array or a dict of named arrays, writable and in native byte order.

    The arrays are views if possible, else copies. They have the dtype, shape and memory order of the header.

    Raises:
        WeightsError: `buffer` does not contain exactly one model.
    """
    weights = view(buffer)
    return {name: _native(array) for name, array in weights.items()} if isinstance(weights, Mapping) else _native(weights)


def _native(array: Array) -> Array:
    flags = array.flags
    if flags.writeable and flags.aligned and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="), order="K")


def encode_model(weights: Weights, metadata: Mapping[str, str] | None = None) -> list[memoryview]:
    """Return the bytes of a model file: the header, and the memory of the arrays (copies of those that are not contiguous).

    Args:
        weights: One array, encoded like `numpy.save`, or named tensors.
        metadata: Metadata for the header of named tensors.

    Raises:
        WeightsError: A dtype, a shape or a name is not supported.
    """
    if isinstance(weights, Mapping):
        layout = Layout.of(weights)
        arrays = [np.ascontiguousarray(weights[spec.name], spec.dtype) for spec in layout.tensors]
        return [memoryview(encode_header(layout, metadata)), *_runs([array for array in arrays if array.size])]
    header = npy.encode_header(weights)
    if not (weights.flags.c_contiguous or weights.flags.f_contiguous):
        weights = np.ascontiguousarray(weights)
    return [memoryview(header), weights.reshape(-1, order="A").view(np.uint8).data]


def _runs(arrays: Sequence[Array]) -> Iterator[memoryview]:
    """Yield the memory of the arrays. Adjacent arrays, such as the views that `decode` returns, are one piece."""
    runs: list[tuple[Any, int, int]] = []
    for array in arrays:
        memory, start = _memory(array), array.ctypes.data
        if runs and runs[-1][0] is memory and runs[-1][2] == start:
            runs[-1] = memory, runs[-1][1], start + array.nbytes
        else:
            runs.append((memory, start, start + array.nbytes))
    for memory, start, stop in runs:
        whole = np.frombuffer(memory, np.uint8)
        yield whole[start - whole.ctypes.data : stop - whole.ctypes.data].data


def _memory(array: Array) -> Any:
    """Return the buffer that contains the array, if it is a view of one, else the bytes of the array."""
    base: Any = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return base if isinstance(base, bytearray | mmap.mmap) else array.reshape(-1).view(np.uint8)


def encode_update(samples: int, weights: Weights) -> list[memoryview]:
    """Return the bytes of an update: the number of samples (0 to 2**32 - 1) and the header, then the memory of the arrays."""
    if not 0 <= samples < 2 ** (8 * SAMPLES_BYTES):
        raise WrongWeights(f"the number of samples must be from 0 to 2**32 - 1, not {samples}")
    header, *data = encode_model(weights)
    return [memoryview(samples.to_bytes(SAMPLES_BYTES, "big") + bytes(header)), *data]


def view_update(parts: Sequence[memoryview]) -> tuple[int, Weights | None]:
    """Return the number of samples of an encoded update, and views of its weights, or None if it has another format."""
    prefix = b"".join(part[: SAMPLES_BYTES + FIRST_BYTES] for part in parts[:2])
    samples = int.from_bytes(prefix[:SAMPLES_BYTES], "big")
    try:
        size = header_size(prefix[SAMPLES_BYTES : SAMPLES_BYTES + FIRST_BYTES])
        head = parse_head(b"".join(part[: SAMPLES_BYTES + size] for part in parts[:2])[SAMPLES_BYTES:])
        head.check_size(sum(map(len, parts)) - SAMPLES_BYTES)
    except WeightsError:
        return samples, None
    starts = [0, *accumulate(map(len, parts))]
    arrays = [_locate(place, parts, starts) for place in head.places]
    if any(array is None for array in arrays):
        return samples, None
    if not head.layout.named:
        return samples, arrays[0]
    return samples, {spec.name: array for spec, array in zip(head.layout.tensors, arrays, strict=True) if array is not None}


def _locate(place: Place, parts: Sequence[memoryview], starts: Sequence[int]) -> Array | None:
    """Return a view of a tensor; None if it is not in one of the parts. `starts`: where each of them begins, and where all end."""
    begin = SAMPLES_BYTES + place.offset
    number = min(bisect_right(starts, begin), len(parts)) - 1
    if begin + place.nbytes > starts[number + 1]:
        return None
    return place.array(parts[number], begin - starts[number] - place.offset)


def flatten(arrays: Sequence[Array]) -> Array:
    """Return all weights of a list of arrays as one 1-D array.

    Do not pass a mapping: `Update(samples, weights=mapping)` preserves each tensor's name and dtype.

    Args:
        arrays: Arrays of any shapes, at least one.

    Returns:
        A copy, of the dtype that NumPy promotes the dtypes of `arrays` to.
    """
    if isinstance(arrays, Mapping):
        warnings.warn(
            "flatten() is for lists of arrays; return a mapping as it is, Update(samples, weights=mapping): "
            "this preserves each tensor's name and dtype",
            stacklevel=2,
        )
        arrays = list(arrays.values())
    return np.concatenate([np.ravel(array) for array in arrays])


def unflatten(flat: Array, like: Sequence[Array]) -> list[Array]:
    """Return the arrays that `flatten` made one array of.

    Args:
        flat: An array of all weights, of any shape.
        like: Arrays with the shapes and dtypes to return.

    Returns:
        Arrays with the shapes and dtypes of `like`. They are views of `flat` if the dtype is equal, else copies.

    Raises:
        WrongWeights: `flat` and `like` have different numbers of weights.
    """
    if isinstance(like, Mapping):
        warnings.warn("unflatten() is for lists of arrays; a mapping needs none: train_round gets one back", stacklevel=2)
        like = list(like.values())
    sizes = [array.size for array in like]
    if flat.size != sum(sizes):
        raise WrongWeights(f"expected {sum(sizes)} weights, but got {flat.size}")
    parts = np.split(flat.reshape(-1), np.cumsum(sizes)[:-1])
    return [part.reshape(array.shape).astype(array.dtype, copy=False) for part, array in zip(parts, like, strict=True)]
