"""The reader of received updates, from memory or a file. It reads block by block, never the whole update."""

import io
import math
import mmap
from collections.abc import Iterator, Mapping
from io import FileIO
from typing import Any

import numpy as np

from fedround.aggregator.codecs import Model
from fedround.errors import WrongWeights
from fedround.tensors.safetensors import shown
from fedround.tensors.values import BLOCK, Flaws, widened, without_unfit
from fedround.tensors.weights import FIRST_BYTES, SAMPLES_BYTES, Array, Layout, Place, Spec, header_size, parse_head


class UpdateReader:
    """A received update.

    Args:
        source: The bytes or the file.
        size: Size in bytes.

    Raises:
        WeightsError: It is not a valid update.
    """

    def __init__(self, source: bytes | bytearray | FileIO, size: int) -> None:
        if size < SAMPLES_BYTES:
            raise WrongWeights(f"an update begins with a sample count of {SAMPLES_BYTES} bytes, but this one has {size} bytes")
        self._file = source if isinstance(source, FileIO) else io.BytesIO(source)
        self._file.seek(0)
        first = self._file.read(SAMPLES_BYTES + FIRST_BYTES)
        self.samples = int.from_bytes(first[:SAMPLES_BYTES], "big")
        rest = header_size(first[SAMPLES_BYTES:]) - len(first) + SAMPLES_BYTES
        head = parse_head(first[SAMPLES_BYTES:] + self._file.read(max(rest, 0)))
        head.check_size(size - SAMPLES_BYTES)
        self.layout: Layout = head.layout
        self._places = tuple(zip(head.layout.tensors, head.places, strict=True))

    def check(self, model: Model | None = None) -> float:
        """Check all weights in one pass.

        Args:
            model: The round's model, with the same layout; None: there is no model yet.

        Returns:
            The L2 norm of the change of all floats; without a model, of the floats themselves.

        Raises:
            NotFinite: A weight cannot be averaged, and is not a constant of the model.
            WrongWeights: Booleans differ from those of the model.
        """
        square, measured = 0.0, frozenset(self.layout.measured)
        for number, (spec, place) in enumerate(self._places):
            before = None if model is None else model.tensors[number].reshape(-1)
            if spec.averaged:
                change = self._check_tensor(spec, place, before)
                square += change if spec in measured else 0.0
        if model is not None:
            self.check_booleans(model.fixed)
        return math.sqrt(square)

    def _check_tensor(self, spec: Spec, place: Place, before: Array | None) -> float:
        """Return the square of the norm of a tensor's change."""
        square, start, flaws = 0.0, 0, Flaws(spec.name, spec.count)
        buffer = np.empty(min(BLOCK, spec.count))
        for block in self._blocks(place):
            stop = start + block.size
            former = None if before is None else widened(before[start:stop])
            # Only named tensors have constants: see `NumPyParticipant`.
            unfit = flaws.check_block(block, former if spec.name else None) if spec.floating else None
            change = buffer[: block.size]
            with np.errstate(over="ignore", invalid="ignore"):
                np.subtract(block, 0.0 if former is None else former, out=change, dtype=np.float64)
            if unfit is not None:
                change[unfit] = 0.0
            square, start = square + float(change @ change), stop
        flaws.check()
        return square

    def check_booleans(self, fixed: Mapping[str, Array]) -> None:
        """Check that the booleans are equal to those in `fixed`, whose other tensors are ignored. Raises `WrongWeights`."""
        for spec, place in self._places:
            if spec.dtype.kind == "b" and spec.count:
                wanted, start, differ = fixed[spec.name].reshape(-1), 0, 0
                for block in self._blocks(place):
                    differ += int(np.count_nonzero(block != wanted[start : start + block.size]))
                    start += block.size
                if differ:
                    raise WrongWeights(f"{shown(spec.name)}: {differ} of {spec.count} booleans differ from those of the others")

    def tensors(self) -> Iterator[Iterator[Array]]:
        """Yield the weights of each averaged tensor in C order, in 1-D blocks of at most `BLOCK` elements.

        bfloat16 is converted to float32. Constants that cannot be averaged are 0. A block is valid until the next one.
        """
        for spec, place in self._places:
            if spec.averaged:
                yield map(without_unfit, self._blocks(place)) if spec.name and spec.floating else self._blocks(place)

    def fixed(self) -> dict[str, Array]:
        """Return copies of the tensors with other dtypes than floats."""
        return {
            spec.name: np.concatenate([block.copy() for block in self._blocks(place)] or [np.empty(0, spec.dtype)])
            for spec, place in self._places
            if self.layout.named and not spec.floating
        }

    def _blocks(self, place: Place) -> Iterator[Array]:
        if place.fortran and len(place.shape) > 1:
            yield from self._reordered_blocks(place)
            return
        count, position = math.prod(place.shape), SAMPLES_BYTES + place.offset
        buffer = np.empty(min(BLOCK, count), place.dtype)
        self._file.seek(position)
        for start in range(0, count, BLOCK):
            block = buffer[: min(BLOCK, count - start)]
            fill(block, self._file)
            yield widened(block)

    def _reordered_blocks(self, place: Place) -> Iterator[Array]:
        file = self._file
        memory: Any = file.getbuffer() if isinstance(file, io.BytesIO) else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        array = place.array(memory, SAMPLES_BYTES)
        for start in range(0, array.size, BLOCK):
            yield array.flat[start : start + BLOCK]


def fill(block: Array, file: FileIO | io.BytesIO) -> None:
    """Fill a 1-D array from the current position of `file`. Raises `WrongWeights` if the file is too short."""
    wanted = block.view(np.uint8).data
    while wanted:
        read = file.readinto(wanted)
        if not read:
            raise WrongWeights("the spooled update was truncated")
        wanted = wanted[read:]
