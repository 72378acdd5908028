"""The contents of updates and models: weights, or bytes that only a strategy and its participants understand."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import FileIO
from typing import Protocol

import numpy as np

from fedround.aggregator.state import State
from fedround.common.durable import checksum
from fedround.errors import WrongWeights
from fedround.tensors.npy import MAGIC
from fedround.tensors.safetensors import is_safetensors
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import (
    FIRST_BYTES,
    SAMPLES_BYTES,
    Array,
    Layout,
    Spec,
    Weights,
    decode,
    encode_model,
    header_size,
    parse_head,
)

OPAQUE = Layout((Spec(np.dtype(np.uint8), ()),))
"""The layout of a custom format: any number of bytes."""


@dataclass(frozen=True, slots=True)
class Model:
    """A global model, ready to be served. It never changes, and responses that send it keep it alive."""

    round: int | None
    """The round that made it. None: the initial model."""
    layout: Layout
    tensors: tuple[Array, ...]
    """C-contiguous arrays in the order of the layout; for `OPAQUE`, one array of its bytes."""
    buffers: tuple[memoryview, ...]
    """The file's content: the header, if it has one, and the tensors' memory."""
    etag: str
    state: State = field(default_factory=State)
    """The strategy's state for the next round."""

    @property
    def weights(self) -> Weights:
        """One array, or named tensors."""
        if not self.layout.named:
            return self.tensors[0]
        return {spec.name: array for spec, array in zip(self.layout.tensors, self.tensors, strict=True)}

    @property
    def fixed(self) -> Mapping[str, Array]:
        """The tensors with other dtypes than floats, by name."""
        named = zip(self.layout.tensors, self.tensors, strict=True)
        return {spec.name: array for spec, array in named if self.layout.named and not spec.floating}

    @property
    def parameters(self) -> int:
        """Number of weights; 0 for a custom format."""
        return 0 if self.layout is OPAQUE else self.layout.count

    @property
    def suffix(self) -> str:
        """The suffix of its file."""
        return suffix_of(self.buffers[0])


class Update(Protocol):
    """A received update. For the methods see `UpdateReader`."""

    samples: int
    layout: Layout

    def check(self, model: Model | None = None) -> float: ...

    def check_booleans(self, fixed: Mapping[str, Array]) -> None: ...

    def fixed(self) -> Mapping[str, Array]: ...

    def tensors(self) -> Iterator[Iterator[Array]]: ...


def suffix_of(content: bytes | memoryview) -> str:
    """Return the suffix of a model's file, from its first bytes."""
    if bytes(content[:6]) == MAGIC:
        return ".npy"
    return ".safetensors" if is_safetensors(content) else ".bin"


def model_of(round: int | None, weights: Weights, metadata: Mapping[str, str] = {}) -> Model:
    """Return the model of a round.

    Args:
        round: The round that made it. None: the initial model.
        weights: The weights, C-contiguous and in the order of their layout.
        metadata: Further metadata for the file of named tensors.
    """
    layout = Layout.of(weights)
    tensors = tuple(weights.values()) if isinstance(weights, Mapping) else (weights,)
    header, *data = encode_model(weights, {**_metadata(round), **metadata})
    return Model(round, layout, tensors, (header, *data), _etag(round, data))


def read_model(round: int | None, data: memoryview, layout: Layout | None = None, state: memoryview | None = None) -> Model:
    """Return the model in a file.

    Args:
        round: The round that made it. None: the initial model.
        data: The content of the file.
        layout: `OPAQUE` for a custom format. Other values have no effect: the file describes its layout.
        state: The content of the file with the model's state.

    Raises:
        WeightsError: The files do not contain a model and a state.
    """
    model = opaque_model(round, data) if layout is OPAQUE else _read(round, data)
    return model if state is None else replace(model, state=State.read(state))


def _read(round: int | None, data: memoryview) -> Model:
    weights = decode(data)
    found = Layout.of(weights)
    if not isinstance(weights, Mapping):
        # In C order like a strategy's result, so that updates can be compared with it block by block.
        return model_of(round, np.ascontiguousarray(weights, found.tensors[0].dtype))
    metadata = parse_head(data[: header_size(data[:FIRST_BYTES])]).metadata
    return model_of(round, {spec.name: weights[spec.name] for spec in found.tensors}, metadata)


def opaque_model(round: int | None, data: Array | memoryview) -> Model:
    """Return a model in a custom format."""
    array = np.frombuffer(data, np.uint8)
    return Model(round, OPAQUE, (array,), (array.data,), _etag(round, [array.data]))


def _metadata(round: int | None) -> dict[str, str]:
    # PyTorch libraries expect "pt"; others ignore it.
    return {"format": "pt"} | ({} if round is None else {"fedround.round": str(round)})


def _etag(round: int | None, data: Sequence[memoryview]) -> str:
    return f'"{"initial" if round is None else round}-{checksum(data)}"'


class OpaqueUpdate:
    """An update in a custom format: a sample count, and bytes. For the methods see `UpdateReader`."""

    layout = OPAQUE

    def __init__(self, source: bytearray | FileIO, size: int) -> None:
        if size <= SAMPLES_BYTES:
            raise WrongWeights(f"an update is a sample count of {SAMPLES_BYTES} bytes and a model, but this one has {size} bytes")
        self._file = source if isinstance(source, FileIO) else io.BytesIO(source)
        self._file.seek(0)
        self.samples = int.from_bytes(self._file.read(SAMPLES_BYTES), "big")

    def check(self, model: Model | None = None) -> float:
        """Return 0.0: nothing can check or compare a custom format."""
        return 0.0

    def check_booleans(self, fixed: Mapping[str, Array]) -> None:
        """Do nothing: there are no booleans."""

    def fixed(self) -> Mapping[str, Array]:
        return {}

    def tensors(self) -> Iterator[Iterator[Array]]:
        yield self._blocks()

    def _blocks(self) -> Iterator[Array]:
        self._file.seek(SAMPLES_BYTES)
        while block := self._file.read(BLOCK):
            yield np.frombuffer(block, np.uint8)
