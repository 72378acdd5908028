"""Strategies that add each update to sums: the sum and the weighted average. A protocol core: no I/O."""

from collections.abc import Iterable

import numpy as np

from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Spec


class Sums:
    """Element-wise sums of scaled updates.

    For float64, the rounding errors are summed too (Neumaier, ZAMM 54, 1974). The sum of n terms is then as exact as in twice the
    precision: to the last bit or two, plus (n * 2**-53)**2 of the sum of their magnitudes (Ogita, Rump and Oishi, SIAM J. Sci.
    Comput. 26, 2005). That part matters only if all but n**2 * 2**-54 of the sum cancels.

    For float16 and float32, a plain float64 sum is exact enough: each error is 2**-29 of their last bit.

    Memory: 8 bytes an element, 16 for float64 and integers.
    """

    def __init__(self, spec: Spec) -> None:
        self._count = spec.count
        self._sums = np.zeros(spec.count)
        # By itemsize, because the NumPy kind of bfloat16 is not "f".
        self._errors = np.zeros(spec.count) if spec.dtype.itemsize == 8 or spec.dtype.kind in "iu" else None

    def clear(self) -> None:
        """Set all sums to 0."""
        self._sums.fill(0)
        if self._errors is not None:
            self._errors.fill(0)

    def add(self, factor: int, blocks: Iterable[Array]) -> None:
        """Add `factor` times an update, which comes in 1-D blocks."""
        start, scratch = 0, np.empty((4, min(BLOCK, self._count)))
        for block in blocks:
            stop = start + block.size
            term = scratch[0, : block.size]
            np.multiply(block, float(factor), out=term, dtype=np.float64)
            if self._errors is None:
                self._sums[start:stop] += term
            else:
                self._add_exactly(self._sums[start:stop], self._errors[start:stop], *scratch[:, : block.size])
            start = stop

    @staticmethod
    def _add_exactly(sums: Array, errors: Array, term: Array, total: Array, a: Array, b: Array) -> None:
        # Knuth's TwoSum: `total` plus the error `a` is exactly `sums + term`.
        np.add(sums, term, out=total)
        np.subtract(total, sums, out=a)
        np.subtract(total, a, out=b)
        np.subtract(sums, b, out=b)
        np.subtract(term, a, out=a)
        np.add(a, b, out=a)
        np.add(errors, a, out=errors)
        sums[:] = total

    def over(self, divisor: int) -> Array:
        """Return the sums divided by `divisor`, in float64. This consumes the sums."""
        if self._errors is not None:
            self._sums += self._errors
            self._errors = None
        if divisor != 1:
            self._sums /= divisor
        return self._sums


class WeightedAverage:
    """The mean of the updates, weighted by their sample counts (McMahan et al., AISTATS 2017).

    An update with 0 samples has no weight. If all have 0, the result is their plain mean, as in 0.8.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._sums = Sums(spec)
        self._samples = 0
        self._without = 0
        """Number of updates with 0 samples in the sums."""

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """See `strategies.Strategy`."""
        if samples and self._without:
            self._sums.clear()
            self._without = 0
        if samples:
            self._samples += samples
            self._sums.add(samples, blocks)
        elif not self._samples:
            self._without += 1
            self._sums.add(1, blocks)

    def result(self) -> Array:
        """See `strategies.Strategy`."""
        return rounded(self.average(), self._spec)

    def average(self) -> Array:
        """Return the mean in float64. Called once."""
        return self._sums.over(self._samples or self._without)


class ModelSum:
    """The plain sum of the updates, regardless of their sample counts (0.8's `model_sum`)."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._sums = Sums(spec)

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """See `strategies.Strategy`."""
        self._sums.add(1, blocks)

    def result(self) -> Array:
        """See `strategies.Strategy`."""
        return rounded(self._sums.over(1), self._spec)


def rounded(numbers: Array, spec: Spec) -> Array:
    """Return float64 `numbers` in the dtype `spec.result`. Numbers beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return numbers.astype(spec.result, copy=False)
