"""Running aggregates: what the strategies have of the updates that were counted so far.

`Folded` has a strategy for each tensor, which adds up. For strategies that need all updates at once, `Collected` and
`CollectedBytes` keep the updates of an attempt in a file of the spool.
"""

import mmap
import weakref
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Protocol

import numpy as np

from fedround.aggregator.codecs import Update
from fedround.aggregator.spool import Spool, write
from fedround.aggregator.strategies import Combining, CombiningBytes, Strategy
from fedround.aggregator.updates import fill
from fedround.errors import WrongWeights
from fedround.weights import Array, Layout, Spec

AT_ONCE = 1 << 21
"""Weights of all updates together that are combined at once: 16 MB of float64."""


class Running(Protocol):
    """The running aggregate of an attempt."""

    def add(self, update: Update) -> None:
        """Add an update."""
        ...

    def results(self) -> Iterator[Array]:
        """Return each tensor that is averaged, flat, in the dtype `Spec.result`. Called once, at the end: it uses this up."""
        ...


class Folded:
    """A strategy for each tensor. In memory there is what the strategies keep."""

    def __init__(self, layout: Layout, make: Callable[[Spec], Strategy]) -> None:
        self._strategies = [make(spec) for spec in layout.tensors if spec.averaged]

    def add(self, update: Update) -> None:
        """See `Running.add`."""
        for strategy, blocks in zip(self._strategies, update.tensors(), strict=True):
            strategy.fold(update.samples, blocks)

    def results(self) -> Iterator[Array]:
        """See `Running.results`. The sums of a tensor are gone when the next one is asked for."""
        self._strategies.reverse()
        while self._strategies:
            yield self._strategies.pop().result()


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
    """All updates, for a strategy that combines them.

    On disk there is every update, bfloat16 as float32; in memory a tensor of the result, and a block of each update.
    """

    def __init__(self, layout: Layout, make: Callable[[Spec], Combining], spool: Spool) -> None:
        self._specs = [spec for spec in layout.tensors if spec.averaged]
        self._strategies = [make(spec) for spec in self._specs]
        # An update of one array may be of integers, which make a model of float64.
        self._dtypes = [np.dtype("<f4") if spec.dtype.name == "bfloat16" else spec.dtype for spec in self._specs]
        self._updates = _Updates(spool)

    def add(self, update: Update) -> None:
        """See `Running.add`. Raises `SpoolFull`, and then nothing has happened."""
        tensors = zip(update.tensors(), self._dtypes, strict=True)
        self._updates.add(update.samples, (block.astype(dtype, copy=False) for blocks, dtype in tensors for block in blocks))

    def results(self) -> Iterator[Array]:
        """See `Running.results`. Raises `WrongWeights` where the strategy returns something else than a block."""
        begin = 0
        for spec, strategy, dtype in zip(self._specs, self._strategies, self._dtypes, strict=True):
            yield self._combined(strategy, spec, begin, dtype)
            begin += spec.count * dtype.itemsize
        self._updates.close()

    def _combined(self, strategy: Combining, spec: Spec, begin: int, dtype: np.dtype[np.generic]) -> Array:
        samples, result = self._updates.samples, np.empty(spec.count, spec.result)
        width = max(1, AT_ONCE // len(samples))
        for start in range(0, result.size, width):
            block = result[start : start + width]
            combined = strategy.combine(samples, self._read(begin + start * dtype.itemsize, np.empty(block.size, dtype)))
            if np.shape(combined) != block.shape:
                raise WrongWeights(f"the strategy combined updates of {block.size} weights into shape {np.shape(combined)}")
            with np.errstate(over="ignore"):
                block[:] = combined
        return result

    def _read(self, offset: int, row: Array) -> Array:
        read = np.empty((len(self._updates.samples), row.size))
        for weights, begin in zip(read, self._updates.ends, strict=False):
            self._updates.file.seek(begin + offset)
            fill(row, self._updates.file)
            weights[:] = row
        return read


class CollectedBytes:
    """All updates, for a strategy of a format of its own: the blocks, and the result, are bytes."""

    def __init__(self, strategy: CombiningBytes, spool: Spool) -> None:
        self._strategy = strategy
        self._updates = _Updates(spool)

    def add(self, update: Update) -> None:
        """See `Running.add`. Raises `SpoolFull`, and then nothing has happened."""
        self._updates.add(update.samples, (block for blocks in update.tensors() for block in blocks))

    def results(self) -> Iterator[Array]:
        """See `Running.results`. Raises `WrongWeights` where the strategy returns nothing."""
        # The map is not closed: the strategy may have kept a view of it.
        whole = memoryview(mmap.mmap(self._updates.file.fileno(), 0, access=mmap.ACCESS_READ))
        views = [whole[begin:end] for begin, end in pairwise(self._updates.ends)]
        result = np.frombuffer(bytes(self._strategy.combine(self._updates.samples, views)), np.uint8)
        if not result.size:
            raise WrongWeights("the strategy made a model of no bytes")
        self._updates.close()
        yield result
