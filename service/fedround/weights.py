"""Weights as bytes and back, without copies: `.npy` arrays, and updates, which are a sample count and an `.npy` array.

Down comes an `.npy`: `decode` is a writable view of the buffer that received it. Up goes an update: `encode_update` is a short
prefix and the array's own memory. The aggregator reads updates with `UpdateReader`, block by block, from memory or from a file.
Nothing here unpickles, and nothing is allocated because a header claims it.
"""

import ast
import io
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import FileIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from fedround.errors import NotFinite, WeightsError, WrongWeights
from fedround.figures import LARGEST_WEIGHT

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 1 << 16
"""Elements that are worked on at once: they stay in the processor's cache."""
SAMPLES_BYTES = 4

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_MAX_HEADER = 10_000
_MAX_PREFIX = _MAX_HEADER + 12
_MAX_DIMENSIONS = 32
"""NumPy's iterators take no more, in any of its versions."""
_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_DESCRS = {order + kind for order in ("", "<", ">", "=", "|") for kind in _KINDS}


@dataclass(frozen=True, slots=True)
class Spec:
    """What the weights of a training look like: the dtype of its global model, little-endian, and the shape."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def largest_update(self) -> int:
        """Bytes of the largest update of such a model. None of the dtypes that make a model is wider than the model's own."""
        return SAMPLES_BYTES + _MAX_PREFIX + self.count * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype.name} weights of shape {self.shape}"


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a global model made from updates of `dtype`: f2 and f4 stay, everything else becomes float64 (as 0.8 does)."""
    little = dtype.newbyteorder("<")
    return little if little.str in ("<f2", "<f4") else np.dtype("<f8")


@dataclass(frozen=True)
class Header:
    """An `.npy` header. The data begins at `offset` and is `nbytes` long."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int

    @cached_property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    @property
    def spec(self) -> Spec:
        return Spec(result_dtype(self.dtype), self.shape)

    def array(self, memory: memoryview | mmap.mmap, start: int) -> Array:
        """A view of the data, which begins at `start` of `memory`."""
        return np.ndarray(self.shape, self.dtype, memory, start, order="F" if self.fortran else "C")

    def check_size(self, size: int) -> None:
        """Raises `WrongWeights` unless `size` bytes are just this header and its data."""
        if size != self.offset + self.nbytes:
            raise WrongWeights(f"the header announces {self.nbytes} bytes of weights, but {size - self.offset} follow it")


def parse_header(prefix: bytes | bytearray | memoryview) -> Header:
    """The header at the beginning of `prefix`, of `.npy` version 1.0 to 3.0.

    Raises:
        WeightsError: it is none, or one whose data would have to be unpickled or is of a dtype that is no weight.
    """
    view = memoryview(prefix)
    if bytes(view[:6]) != _MAGIC:
        raise WeightsError(f"this is no .npy array: it begins with {bytes(view[:6])!r}, not {_MAGIC!r}; write it with numpy.save")
    if len(view) < 10:
        raise WrongWeights("the .npy ends within its header")
    version = tuple(view[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise WeightsError(f"this .npy is of version {'.'.join(map(str, version))}; versions 1.0 to 3.0 are known")
    start = 8 + _LENGTH_BYTES[version[0]]
    length = int.from_bytes(view[8:start], "little")
    if length > _MAX_HEADER:
        raise WeightsError(f"the .npy header announces {length} bytes of itself; {_MAX_HEADER} are allowed")
    if len(view) < start + length:
        raise WrongWeights("the .npy ends within its header")
    fields = _literal(bytes(view[start : start + length]))
    return Header(_dtype(fields["descr"]), _shape(fields["shape"]), _fortran(fields["fortran_order"]), start + length)


@lru_cache(maxsize=16)  # the header of a training's model is the same each time, and takes longer to read than a small model
def _literal(text: bytes) -> dict[str, Any]:
    try:
        fields = ast.literal_eval(text.decode().strip())
        repr(fields)  # a number of more digits than Python prints fails here, and not in a message about it
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise WeightsError("the .npy header is no dictionary of descr, fortran_order and shape; write it with numpy.save")
    return fields


def _dtype(descr: object) -> np.dtype[Any]:
    # The dtypes that are known, by their names: what else numpy makes of a string from a stranger does not matter then.
    if not isinstance(descr, str) or descr not in _DESCRS:
        why = " (objects are pickled, which is never accepted)" if isinstance(descr, str) and "O" in descr else ""
        raise WeightsError(f"dtype {str(descr)[:40]!r} is no dtype of weights{why}; use float16, float32, float64 or integers")
    return np.dtype(descr)


def _shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise WeightsError(f"the .npy header's shape {str(shape)[:40]!r} is none")
    if len(shape) > _MAX_DIMENSIONS:
        raise WrongWeights(f"weights have {_MAX_DIMENSIONS} dimensions at most, but these have {len(shape)}")
    if 0 in shape:
        raise WrongWeights(f"shape {shape} holds no weights")
    return shape


def _fortran(value: object) -> bool:
    if not isinstance(value, bool):
        raise WeightsError("the .npy header's fortran_order is neither True nor False")
    return value


def view(buffer: "Buffer") -> Array:
    """The array in a whole `.npy`, just as it lies there: perhaps read-only, not aligned, of the other byte order.

    Raises:
        WeightsError: `buffer` is no `.npy`, or not exactly one.
    """
    data = memoryview(buffer).cast("B")
    header = parse_header(data[:_MAX_PREFIX])
    header.check_size(len(data))
    return header.array(data, header.offset)


def decode(buffer: "Buffer") -> Array:
    """The array in a whole `.npy`: a writable view of `buffer` in native byte order, or a copy where it cannot be one.

    A view keeps the dtype, the shape and the order that the header tells.

    Raises:
        WeightsError: `buffer` is no `.npy`, or not exactly one.
    """
    array = view(buffer)
    flags = array.flags
    if flags.writeable and flags.aligned and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("="), order="K")


def encode_model(array: Array) -> tuple[bytes, memoryview]:
    """The bytes of `numpy.save`, as a header and the array's own memory (a copy's, where it is not contiguous).

    Raises:
        WeightsError: the dtype is no dtype of weights.
        WrongWeights: there are none.
    """
    _dtype(array.dtype.str if array.dtype.fields is None else "a structure")
    _shape(array.shape)
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array))
    return header.getvalue(), array.reshape(-1, order="A").view(np.uint8).data


def encode_update(samples: int, array: Array) -> tuple[bytes, memoryview]:
    """An update's bytes: the sample count (0 to 2**32 - 1) and the header, then the array's own memory."""
    if not 0 <= samples < 2 ** (8 * SAMPLES_BYTES):
        raise WrongWeights(f"a sample count is a number from 0 to 2**32 - 1, not {samples}")
    header, data = encode_model(array)
    return samples.to_bytes(SAMPLES_BYTES, "big") + header, data


def view_update(parts: Sequence[memoryview]) -> tuple[int, Array | None]:
    """The sample count of an update that was encoded, and a view of its weights: None where they are no `.npy` in one piece."""
    prefix = b"".join(part[: SAMPLES_BYTES + _MAX_PREFIX] for part in parts)
    samples = int.from_bytes(prefix[:SAMPLES_BYTES], "big")
    try:
        header = parse_header(prefix[SAMPLES_BYTES:])
        header.check_size(sum(map(len, parts)) - SAMPLES_BYTES)
    except WeightsError:
        return samples, None
    start = len(parts[-1]) - header.nbytes
    return samples, header.array(parts[-1], start) if start >= 0 else None


class UpdateReader:
    """An update that was received whole, in memory or in a file, of `size` bytes: read block by block, never as a whole.

    Raises:
        WeightsError: it is none.
    """

    def __init__(self, source: bytes | bytearray | FileIO, size: int) -> None:
        if size < SAMPLES_BYTES:
            raise WrongWeights(f"an update begins with a sample count of {SAMPLES_BYTES} bytes, but {size} came")
        self._file = source if isinstance(source, FileIO) else io.BytesIO(source)
        self._file.seek(0)
        prefix = self._file.read(SAMPLES_BYTES + _MAX_PREFIX)
        self.samples = int.from_bytes(prefix[:SAMPLES_BYTES], "big")
        self.header = parse_header(prefix[SAMPLES_BYTES:])
        self.header.check_size(size - SAMPLES_BYTES)

    @property
    def spec(self) -> Spec:
        return self.header.spec

    def check_like(self, spec: Spec) -> None:
        """Raises `WrongWeights` unless the weights are like `spec`."""
        if self.spec != spec:
            raise WrongWeights(f"these are {self.spec}, but this training is of {spec}")

    def check(self, model: Array | None = None) -> float:
        """Read all of the weights once. Return the L2 norm of what they change in `model`, in float64; without one, their own.

        Args:
            model: C-contiguous, with as many elements as the update.

        Raises:
            NotFinite: Not every weight can be averaged.
        """
        before = None if model is None else model.reshape(-1)
        square, start, buffer = 0.0, 0, np.empty(min(BLOCK, self.header.count))
        for block in self.blocks():
            check_finite(block)
            stop, moved = start + block.size, buffer[: block.size]
            np.subtract(block, 0.0 if before is None else before[start:stop], out=moved, dtype=np.float64)
            square, start = square + float(moved @ moved), stop
        return math.sqrt(square)

    def blocks(self) -> Iterator[Array]:
        """The weights in C order, in 1-D blocks of at most `BLOCK` elements. A block is good until the next one."""
        header = self.header
        if header.fortran and len(header.shape) > 1:
            yield from self._reordered_blocks()
            return
        self._file.seek(SAMPLES_BYTES + header.offset)
        buffer = np.empty(min(BLOCK, header.count), header.dtype)
        for start in range(0, header.count, BLOCK):
            block = buffer[: min(BLOCK, header.count - start)]
            fill(block, self._file)
            yield block

    def _reordered_blocks(self) -> Iterator[Array]:
        file, header = self._file, self.header
        memory: Any = file.getbuffer() if isinstance(file, io.BytesIO) else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        array = header.array(memory, SAMPLES_BYTES + header.offset)
        for start in range(0, header.count, BLOCK):
            yield array.flat[start : start + BLOCK]


def fill(block: Array, file: FileIO | io.BytesIO) -> None:
    """Read a whole 1-D array from where `file` stands. Raises `WrongWeights` where that is shorter."""
    wanted = block.view(np.uint8).data
    while wanted:
        read = file.readinto(wanted)
        if not read:
            raise WrongWeights("the spooled update is shorter than it was")
        wanted = wanted[read:]


def check_finite(block: Array) -> None:
    """Raises `NotFinite` where a weight is NaN, infinite, or of a magnitude beyond `LARGEST_WEIGHT`."""
    if block.dtype.itemsize == 2:
        block = block.astype(np.float32)  # in float16 itself a minimum takes six times as long
    # One look at both ends sees it all: NaN passes through min and max, and no comparison with it is true.
    least, largest = float(block.min()), float(block.max())
    if least >= -LARGEST_WEIGHT and largest <= LARGEST_WEIGHT:
        return
    if math.isfinite(least) and math.isfinite(largest):
        raise NotFinite(f"weights beyond {LARGEST_WEIGHT:g} are too large to train with: has training diverged?")
    raise NotFinite("weights are NaN or infinite: has training diverged?")


def flatten(arrays: Sequence[Array]) -> Array:
    """All weights of a list of arrays as one flat array, of the dtype that holds them all."""
    return np.concatenate([np.ravel(array) for array in arrays])


def unflatten(flat: Array, like: Sequence[Array]) -> list[Array]:
    """The reverse of `flatten`: arrays of the shapes and dtypes of `like`, views of `flat` where the dtype is the same.

    Raises:
        WrongWeights: `flat` has another number of weights than `like`.
    """
    sizes = [array.size for array in like]
    if flat.size != sum(sizes):
        raise WrongWeights(f"the model has {sum(sizes)} weights, but {flat.size} came")
    parts = np.split(flat.reshape(-1), np.cumsum(sizes)[:-1])
    return [part.reshape(array.shape).astype(array.dtype, copy=False) for part, array in zip(parts, like, strict=True)]
