"""The updates of an attempt, kept one behind the other in a file of the spool for a strategy that needs all of them at once."""

import mmap
import weakref
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from fedround.aggregator.spool import Spool, write
from fedround.aggregator.strategies import Combining, CombiningBytes, check_fits
from fedround.errors import WrongWeights
from fedround.weights import Array, Spec, fill

AT_ONCE = 1 << 21
"""Weights of all updates together that are combined at once: 16 MB of float64."""


class _Updates:
    """Their sample counts and their file. What raises `SpoolFull` leaves those that were added before as they are."""

    def __init__(self, spool: Spool) -> None:
        self.samples: list[int] = []
        self.ends = [0]
        """Of each in the file, in bytes, and where the first begins."""
        self.file = spool.create()
        # An attempt that is given up is just forgotten, and its file with it.
        self.close = weakref.finalize(self, self.file.close)

    def add(self, samples: int, blocks: Iterable[Array]) -> None:
        end = self.file.seek(self.ends[-1])  # over what an update that did not fit has left there
        for block in blocks:
            write(self.file, block.view(np.uint8).data)
            end += block.nbytes
        self.ends.append(end)
        self.samples.append(samples)


class Collected:
    """A `Strategy` made of a `Combining` one.

    On disk there is every update, in the spec's dtype; in memory the result, and a block of each.
    """

    def __init__(self, spec: Spec, strategy: Combining, spool: Spool) -> None:
        self._spec = spec
        self._strategy = strategy
        self._updates = _Updates(spool)

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """See `Strategy.fold`. Raises `SpoolFull`, and then nothing has happened."""
        self._updates.add(samples, (block.astype(self._spec.dtype, copy=False) for block in blocks))

    def result(self) -> Array:
        """See `Strategy.result`. Raises `WrongWeights` where the strategy gives something else than finite weights."""
        samples = self._updates.samples
        result = np.empty(self._spec.count, self._spec.dtype)
        width = max(1, AT_ONCE // len(samples))
        for start in range(0, result.size, width):
            block = result[start : start + width]
            combined = self._strategy.combine(samples, self._read(start, block.size))
            if np.shape(combined) != block.shape:
                raise WrongWeights(f"the strategy combined updates of {block.size} weights into shape {np.shape(combined)}")
            with np.errstate(over="ignore"):
                block[:] = combined
            check_fits(block)
        self._updates.close()
        return result

    def _read(self, start: int, size: int) -> Array:
        read, row = np.empty((len(self._updates.samples), size)), np.empty(size, self._spec.dtype)
        for weights, begin in zip(read, self._updates.ends, strict=False):
            self._updates.file.seek(begin + start * row.itemsize)
            fill(row, self._updates.file)
            weights[:] = row
        return read


class CollectedBytes:
    """A `Strategy` made of a `CombiningBytes` one: the blocks, and the result, are of bytes."""

    def __init__(self, strategy: CombiningBytes, spool: Spool) -> None:
        self._strategy = strategy
        self._updates = _Updates(spool)

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """See `Strategy.fold`. Raises `SpoolFull`, and then nothing has happened."""
        self._updates.add(samples, blocks)

    def result(self) -> Array:
        """See `Strategy.result`. Raises `WrongWeights` where the strategy makes nothing."""
        # The map is not closed: the strategy may have kept a view of it.
        whole = memoryview(mmap.mmap(self._updates.file.fileno(), 0, access=mmap.ACCESS_READ))
        views = [whole[begin:end] for begin, end in pairwise(self._updates.ends)]
        result = np.frombuffer(bytes(self._strategy.combine(self._updates.samples, views)), np.uint8)
        if not result.size:
            raise WrongWeights("the strategy made a model of no bytes")
        self._updates.close()
        return result
