"""Strategies that add updates up as they come: sums and averages. A protocol core: no I/O."""

from collections.abc import Iterable

import numpy as np

from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Spec


class Sums:
    """Element-wise sums of scaled updates.

    Of float64 the rounding errors are summed too (Neumaier, ZAMM 54, 1974): n terms are as in twice the precision, that is, their
    sum is exact to the last bit or two, and beyond that to (n * 2**-53)**2 of the sum of their magnitudes (Ogita, Rump and Oishi,
    SIAM J. Sci. Comput. 26, 2005), which shows only where all but n**2 * 2**-54 of them cancels. float16 and float32 are exact
    enough in a plain float64 sum: each of its errors is 2**-29 of their own last bit. Memory: 8 bytes an element, 16 for float64
    and integers.
    """

    def __init__(self, spec: Spec) -> None:
        self._count = spec.count
        self._sums = np.zeros(spec.count)
        # bfloat16, which NumPy has no kind for, is exact enough, too.
        self._errors = np.zeros(spec.count) if spec.dtype.itemsize == 8 or spec.dtype.kind in "iu" else None

    def clear(self) -> None:
        self._sums.fill(0)
        if self._errors is not None:
            self._errors.fill(0)

    def add(self, factor: int, blocks: Iterable[Array]) -> None:
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
        # Knuth's TwoSum: `total` and the error of that addition together are exactly `sums + term`.
        np.add(sums, term, out=total)
        np.subtract(total, sums, out=a)
        np.subtract(total, a, out=b)
        np.subtract(sums, b, out=b)
        np.subtract(term, a, out=a)
        np.add(a, b, out=a)
        np.add(errors, a, out=errors)
        sums[:] = total

    def over(self, divisor: int) -> Array:
        """Return the sums over `divisor` in float64; uses up the sums."""
        if self._errors is not None:
            self._sums += self._errors
            self._errors = None
        if divisor != 1:
            self._sums /= divisor
        return self._sums


class WeightedAverage:
    """The mean of the updates, each weighing as much as it has samples (McMahan et al., AISTATS 2017).

    An update of 0 samples weighs nothing, unless all have 0: then the result is their plain mean, as in 0.8.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._sums = Sums(spec)
        self._samples = 0
        self._without = 0

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
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
        return rounded(self.average(), self._spec)

    def average(self) -> Array:
        """Return the mean in float64. Called once."""
        return self._sums.over(self._samples or self._without)


class ModelSum:
    """The plain sum of the updates; sample counts do not matter (0.8's `model_sum`)."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._sums = Sums(spec)

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        self._sums.add(1, blocks)

    def result(self) -> Array:
        return rounded(self._sums.over(1), self._spec)


def rounded(numbers: Array, spec: Spec) -> Array:
    """Return float64 `numbers` in the dtype `spec.result`; what that cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return numbers.astype(spec.result, copy=False)
