"""The updates of an attempt, kept one after the other in a file of the spool for a strategy that needs all of them at once."""

import weakref
from collections.abc import Iterable

import numpy as np

from fedround.aggregator.spool import Spool, write
from fedround.aggregator.strategies import Combining, check_fits
from fedround.errors import WrongWeights
from fedround.weights import Array, Spec, fill

AT_ONCE = 1 << 21
"""Weights of all updates together that are combined at once: 16 MB of float64."""


class Collected:
    """A `Strategy` made of a `Combining` one.

    On disk there is every update, in the spec's dtype; in memory the result, and a block of each. What raises `SpoolFull` leaves
    what was folded before as it is.
    """

    def __init__(self, spec: Spec, strategy: Combining, spool: Spool) -> None:
        self._spec = spec
        self._strategy = strategy
        self._samples: list[int] = []
        self._file = spool.create()
        # An attempt that is given up is just forgotten, and its file with it.
        self._close = weakref.finalize(self, self._file.close)

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """See `Strategy.fold`. Raises `SpoolFull`."""
        self._file.seek(self._place(len(self._samples), 0))  # over what a fold that failed has left there
        for block in blocks:
            write(self._file, block.astype(self._spec.dtype, copy=False).view(np.uint8).data)
        self._samples.append(samples)

    def result(self) -> Array:
        """See `Strategy.result`. Raises `WrongWeights` where the strategy gives something else than finite weights."""
        result = np.empty(self._spec.count, self._spec.dtype)
        width = max(1, AT_ONCE // len(self._samples))
        for start in range(0, result.size, width):
            block = result[start : start + width]
            updates = self._read(start, block.size)
            combined = self._strategy.combine(self._samples, updates)
            if np.shape(combined) != block.shape:
                raise WrongWeights(f"the strategy combined updates of {block.size} weights into shape {np.shape(combined)}")
            with np.errstate(over="ignore"):
                block[:] = combined
            check_fits(block)
        self._close()
        return result

    def _read(self, start: int, size: int) -> Array:
        updates, row = np.empty((len(self._samples), size)), np.empty(size, self._spec.dtype)
        for number, update in enumerate(updates):
            self._file.seek(self._place(number, start))
            fill(row, self._file)
            update[:] = row
        return updates

    def _place(self, update: int, weight: int) -> int:
        return (update * self._spec.count + weight) * self._spec.dtype.itemsize
