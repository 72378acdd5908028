"""The header of an `.npy` file, which contains one array. This module never unpickles, nor allocates what a header claims."""

import ast
import io
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fedround.errors import WeightsError, WrongWeights

MAGIC = b"\x93NUMPY"
MAX_DIMENSIONS = 32
"""Maximum number of dimensions of NumPy's iterators, in all versions."""
MAX_PREFIX = 10_012
"""Maximum number of bytes before the data."""

_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_MAX_HEADER = MAX_PREFIX - 12
_KINDS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
_DESCRS = {order + kind for order in ("", "<", ">", "=", "|") for kind in _KINDS}
_PYTHON_2 = re.compile(rb"(?<=\d)L(?=[,)])")
"""Lengths as NumPy on Python 2 wrote them: `3L`."""


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a file. The data begins at byte `offset`."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int


def parse_header(prefix: bytes | bytearray | memoryview) -> Header:
    """Return the header at the beginning of `prefix`, of `.npy` version 1.0 to 3.0.

    Raises:
        WeightsError: The header is invalid, its data is pickled, or its dtype cannot be averaged.
    """
    view = memoryview(prefix)
    if bytes(view[:6]) != MAGIC:
        raise WeightsError(
            f"this is neither an .npy array nor safetensors: it begins with {bytes(view[:6])!r}; "
            "write it with numpy.save or safetensors.numpy.save_file"
        )
    if len(view) < 10:
        raise WrongWeights("the .npy ends within its header")
    version = tuple(view[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise WeightsError(f"this .npy has format version {'.'.join(map(str, version))}; versions 1.0 to 3.0 are supported")
    start = 8 + _LENGTH_BYTES[version[0]]
    length = int.from_bytes(view[8:start], "little")
    if length > _MAX_HEADER:
        raise WeightsError(f"the .npy header announces its own length as {length} bytes; the maximum is {_MAX_HEADER}")
    if len(view) < start + length:
        raise WrongWeights("the .npy ends within its header")
    fields = _literal(bytes(view[start : start + length]))
    return Header(_dtype(fields["descr"]), check_shape(fields["shape"]), _fortran(fields["fortran_order"]), start + length)


def encode_header(array: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """Return the header that `numpy.save` writes before the data of a contiguous array.

    Raises:
        WeightsError: The dtype cannot be averaged.
        WrongWeights: The array is empty, or has too many dimensions.
    """
    _dtype(array.dtype.str if array.dtype.fields is None else "a structure")
    check_shape(array.shape)
    header = io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array))
    return header.getvalue()


@lru_cache(maxsize=16)  # all models of a training have the same header, and parsing it takes longer than reading a small model
def _literal(text: bytes) -> dict[str, Any]:
    try:
        fields = ast.literal_eval(_PYTHON_2.sub(b"", text).decode().strip())
        repr(fields)  # a number with too many digits for Python to print fails here, not in an error message
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise WeightsError("the .npy header is not a dictionary of descr, fortran_order and shape; write the file with numpy.save")
    return fields


def _dtype(descr: object) -> np.dtype[Any]:
    # Compare with known names: NumPy must not interpret a string from a peer.
    if not isinstance(descr, str) or descr not in _DESCRS:
        why = " (objects are pickled, which is never accepted)" if isinstance(descr, str) and "O" in descr else ""
        raise WeightsError(
            f"dtype {str(descr)[:40]!r} cannot be averaged{why}; use float16, float32, float64 or integers, "
            "or named tensors, which may be bfloat16 and booleans too"
        )
    return np.dtype(descr)


def check_shape(shape: object) -> tuple[int, ...]:
    """Return `shape`. Raises `WeightsError` if it is not a shape, and `WrongWeights` if a model cannot have it."""
    if not isinstance(shape, tuple) or not all(type(length) is int and 0 <= length < 2**63 for length in shape):
        raise WeightsError(f"the .npy header's shape {str(shape)[:40]!r} is invalid")
    if len(shape) > MAX_DIMENSIONS:
        raise WrongWeights(f"weights have {MAX_DIMENSIONS} dimensions at most, but these have {len(shape)}")
    if 0 in shape:
        raise WrongWeights(f"shape {shape} holds no weights")
    return shape


def _fortran(value: object) -> bool:
    if not isinstance(value, bool):
        raise WeightsError("the .npy header's fortran_order is neither True nor False")
    return value
