"""What updates and models are made of: `.npy` arrays, or bytes that only a strategy and its participants understand."""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Protocol, Self

import numpy as np

from fedround.books import Newest
from fedround.errors import WrongWeights
from fedround.weights import BLOCK, SAMPLES_BYTES, Array, Spec, UpdateReader, decode, encode_model, parse_header

OPAQUE = Spec(np.dtype(np.uint8), ())
"""Of what is no array: any number of bytes."""


@dataclass(frozen=True, slots=True)
class Model:
    """A global model, ready to be served. It never changes: whoever is still sending it keeps it alive."""

    round: int | None
    """None: training begins with it."""
    spec: Spec
    array: Array
    """Of `OPAQUE`: its bytes."""
    buffers: tuple[bytes, memoryview]
    """What is sent: the `.npy` header, if it has one, and the array's own memory."""
    etag: str

    @classmethod
    def of(cls, round: int | None, spec: Spec, array: Array, header: bytes, data: memoryview) -> Self:
        return cls(round, spec, array, (header, data), f'"{"initial" if round is None else round}-{zlib.crc32(data):08x}"')

    @property
    def parameters(self) -> int:
        """How many weights it has; 0 where nobody can tell."""
        return 0 if self.spec is OPAQUE else self.array.size

    @property
    def newest(self) -> Newest | None:
        return None if self.round is None else Newest(self.round, self.parameters)


class Update(Protocol):
    """One that was received whole. See `UpdateReader`."""

    samples: int

    @property
    def spec(self) -> Spec: ...

    def check_like(self, spec: Spec) -> None: ...

    def check(self, model: Array | None = None) -> float: ...

    def blocks(self) -> Iterator[Array]: ...


class Codec(Protocol):
    """One of the two."""

    spec: Spec | None
    """What every model looks like; None: the first update decides."""
    suffix: str
    """Of a file of a model."""

    def update(self, source: bytearray | FileIO, size: int) -> Update:
        """An update of `size` bytes. Raises `WeightsError`."""
        ...

    def model(self, round: int | None, result: Array, spec: Spec) -> Model:
        """What a strategy made."""
        ...

    def read(self, round: int | None, data: memoryview) -> Model:
        """What was kept. Raises `WeightsError`."""
        ...


class Npy:
    """Flat or shaped arrays of floats and integers."""

    spec: Spec | None = None
    suffix = ".npy"

    def update(self, source: bytearray | FileIO, size: int) -> Update:
        return UpdateReader(source, size)

    def model(self, round: int | None, result: Array, spec: Spec) -> Model:
        array = result.reshape(spec.shape)
        return Model.of(round, spec, array, *encode_model(array))

    def read(self, round: int | None, data: memoryview) -> Model:
        spec = parse_header(data).spec
        # In C order, like what a strategy makes, so that updates are compared with it block by block.
        return self.model(round, np.ascontiguousarray(decode(data), spec.dtype), spec)


class Bytes:
    """Anything: nothing is checked but that there is something."""

    spec: Spec | None = OPAQUE
    suffix = ".bin"

    def update(self, source: bytearray | FileIO, size: int) -> Update:
        return OpaqueUpdate(source, size)

    def model(self, round: int | None, result: Array, spec: Spec) -> Model:
        return Model.of(round, spec, result, b"", result.data)

    def read(self, round: int | None, data: memoryview) -> Model:
        return self.model(round, np.frombuffer(data, np.uint8), OPAQUE)


class OpaqueUpdate:
    """A sample count, and bytes. See `UpdateReader`."""

    spec = OPAQUE

    def __init__(self, source: bytearray | FileIO, size: int) -> None:
        if size <= SAMPLES_BYTES:
            raise WrongWeights(f"an update is a sample count of {SAMPLES_BYTES} bytes and a model, but {size} bytes came")
        self._file = source if isinstance(source, FileIO) else io.BytesIO(source)
        self._file.seek(0)
        self.samples = int.from_bytes(self._file.read(SAMPLES_BYTES), "big")

    def check_like(self, spec: Spec) -> None:
        """All are alike."""

    def check(self, model: Array | None = None) -> float:
        """Nothing could be wrong, and nobody can tell what has changed."""
        return 0.0

    def blocks(self) -> Iterator[Array]:
        self._file.seek(SAMPLES_BYTES)
        while block := self._file.read(BLOCK):
            yield np.frombuffer(block, np.uint8)
