"""The header of a safetensors file: named tensors behind a JSON header.

    8 bytes   length of the header, little-endian
    header    {"__metadata__": {str: str}, NAME: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
    data      the tensors, in C order and little-endian, without gaps

The order of tensors is that of the `safetensors` package: wide dtypes first, then by name. Spaces pad the header to 8 bytes. This
module never touches the data, nor allocates what a header claims.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fedround.common.text import printable
from fedround.errors import ConfigurationError, WeightsError, WrongWeights
from fedround.tensors.npy import MAX_DIMENSIONS

LENGTH_BYTES = 8
MAX_HEADER = 4 << 20
MAX_NAME = 512
METADATA = "__metadata__"

_NUMPY = {
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "U32": "<u4",
    "I32": "<i4",
    "BF16": "",
    "F16": "<f2",
    "U16": "<u2",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
"""The dtypes of tensors, in the order of the file. NumPy itself has no bfloat16."""
CODES = tuple(_NUMPY)
_CODE_OF = {numpy: code for code, numpy in _NUMPY.items() if numpy}
_ORDER = {code: position for position, code in enumerate(CODES)}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a header. Its data begins `begin` bytes after the header."""

    name: str
    code: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return dtype_of(self.code)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _width(self.code)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a file. The data begins at byte `offset` and has `nbytes` bytes."""

    tensors: tuple[Tensor, ...]
    """The tensors, in the order of their data."""
    metadata: Mapping[str, str]
    offset: int
    nbytes: int


def is_safetensors(prefix: bytes | bytearray | memoryview) -> bool:
    """Return whether a file that begins with `prefix`, at least 9 bytes, may be safetensors. An `.npy` file is not."""
    return bytes(prefix[LENGTH_BYTES : LENGTH_BYTES + 1]) == b"{"


def header_size(prefix: bytes | bytearray | memoryview) -> int:
    """Return the number of bytes before the data, from `prefix`, at least 8 bytes. Raises `WeightsError` if it is too large."""
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER:
        raise WeightsError(f"the safetensors header announces its own length as {length} bytes; the maximum is {MAX_HEADER}")
    return LENGTH_BYTES + length


def parse_header(prefix: bytes | bytearray | memoryview) -> Header:
    """Return the header at the beginning of `prefix`.

    Raises:
        WeightsError: The header is invalid.
        WrongWeights: The file ends within the header, or a tensor cannot be averaged.
    """
    view = memoryview(prefix)
    offset = header_size(view[:LENGTH_BYTES])
    if len(view) < max(offset, LENGTH_BYTES):
        raise WrongWeights("the safetensors file ends within its header")
    fields = _fields(bytes(view[LENGTH_BYTES:offset]))
    metadata = _metadata(fields.pop(METADATA, {}))
    tensors = sorted((_tensor(name, entry) for name, entry in fields.items()), key=lambda tensor: (tensor.begin, tensor.nbytes))
    for former, later in pairwise(tensors):
        if former.begin + former.nbytes != later.begin:
            raise WeightsError(f"the data of {shown(later.name)} does not begin where that of {shown(former.name)} ends")
    if tensors and tensors[0].begin:
        raise WeightsError(f"the data of {shown(tensors[0].name)}, the first tensor, does not begin at 0")
    return Header(tuple(tensors), metadata, offset, sum(tensor.nbytes for tensor in tensors))


def encode_header(tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the header for `tensors`, whose data follows in this order. See `ordered`."""
    fields: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.nbytes
        fields[tensor.name] = {"dtype": tensor.code, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    if len(text) > MAX_HEADER:
        raise WrongWeights(f"the names of the tensors take {len(text)} bytes; {MAX_HEADER} are allowed")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def ordered(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors in the order of the file, which aligns each of them."""
    return sorted(tensors, key=lambda tensor: (_ORDER[tensor.code], tensor.name))


def tensor_of(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Tensor:
    """Return the tensor for an array. Raises `WrongWeights` if name, dtype or shape is not supported."""
    code = "BF16" if dtype.name == "bfloat16" else _CODE_OF.get(dtype.newbyteorder("<").str)
    if code is None:
        why = " (objects are pickled, which is never accepted)" if dtype.hasobject else ""
        raise WrongWeights(f"{shown(name)}: dtype {dtype} cannot be averaged{why}; use floats, integers or booleans")
    _check_name(name)
    _check_shape(name, shape)
    return Tensor(name, code, shape)


def dtype_of(code: str) -> np.dtype[Any]:
    """Return the NumPy dtype, little-endian. Raises `ConfigurationError` if bfloat16 lacks the package `ml_dtypes`."""
    if code != "BF16":
        return np.dtype(_NUMPY[code])
    try:
        import ml_dtypes
    except ImportError as error:
        raise ConfigurationError("this model has bfloat16 tensors, which need ml_dtypes: pip install ml_dtypes") from error
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def shown(name: str) -> str:
    """Return a tensor's name for a message."""
    return printable(name if len(name) <= 120 else f"{name[:117]}...")


def _width(code: str) -> int:
    return 2 if code == "BF16" else np.dtype(_NUMPY[code]).itemsize


def _fields(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, _DuplicateName) else "it is not JSON"
        raise WeightsError(f"the safetensors header cannot be read: {why}") from None
    if not isinstance(fields, dict):
        raise WeightsError("the safetensors header is not a JSON object")
    return fields


class _DuplicateName(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateName(f"the name {shown(max(names, key=names.count))} occurs twice")
    return fields


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise WeightsError(f"the {METADATA} of a safetensors header must be an object of strings")
    return value


def _tensor(name: str, entry: object) -> Tensor:
    _check_name(name)
    match entry:
        case {"dtype": str(code), "shape": list(lengths), "data_offsets": [int(begin), int(end)], **rest} if not rest:
            pass
        case _:
            raise WeightsError(f"{shown(name)}: a tensor has dtype, shape and two data_offsets, and nothing else")
    if code not in _ORDER:
        raise WrongWeights(f"{shown(name)}: dtype {shown(code)} cannot be averaged; known are {', '.join(CODES)}")
    shape = tuple(lengths)
    _check_shape(name, shape)
    tensor = Tensor(name, code, shape, begin)
    if type(begin) is not int or type(end) is not int or begin < 0 or end - begin != tensor.nbytes:
        raise WeightsError(f"{shown(name)}: {code} of shape {shape} takes {tensor.nbytes} bytes, not those of its data_offsets")
    return tensor


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME or name == METADATA:
        raise WrongWeights(f"{shown(name)!r}: a tensor has a name of 1 to {MAX_NAME} characters, other than {METADATA}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise WrongWeights(f"{shown(name)}: the name of a tensor must be valid Unicode") from None


def _check_shape(name: str, shape: tuple[Any, ...]) -> None:
    if not all(type(length) is int and 0 <= length < 2**63 for length in shape) or math.prod(shape) >= 2**60:
        raise WeightsError(f"{shown(name)}: the shape is not a list of lengths")
    if len(shape) > MAX_DIMENSIONS:
        raise WrongWeights(f"{shown(name)}: tensors have {MAX_DIMENSIONS} dimensions at most, but this one has {len(shape)}")
