"""How updates become a global model: strategies. A protocol core: no I/O.

Some fold each update into sums as it comes (`Strategy`), some combine all of them at the end (`Combining`, for which `running.py`
keeps them). A strategy computes one tensor of one attempt; its `Spec` says which. Updates are checked before they are folded; an
exception from `fold` all the same leaves the sums unusable, and the attempt is lost. The bits of the result depend on the order of
folding alone, which the ledger keeps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from math import floor
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from fedround.errors import ConfigurationError
from fedround.values import BLOCK
from fedround.weights import Array, Spec

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class Strategy(Protocol):
    """What the aggregator asks of a strategy. It is made with the `Spec` of a tensor, and the options of the settings."""

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """Add an update: its sample count, and the tensor in 1-D blocks of at most `BLOCK` elements, good until the next one."""
        ...

    def result(self) -> Array:
        """Return the tensor of the global model, flat and finite, of the dtype `spec.result`. Called once, at the end."""
        ...


class Combining(Protocol):
    """A strategy that needs all updates at once, block by block. It too is made with the `Spec` of a tensor and the options."""

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        """Return a block of the tensor of the global model.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            updates: That block of each, float64 of shape (updates, elements). It may be overwritten.

        Returns:
            A finite number for each element.
        """
        ...


class CombiningBytes(Protocol):
    """A strategy for a format that only it and the participants understand. It is made like the others; the `Spec` says nothing."""

    codec: Literal["bytes"]

    def combine(self, samples: Sequence[int], updates: Sequence[memoryview]) -> "Buffer":
        """The global model: at least one byte.

        Args:
            samples: The sample count of each update, in the order of the ledger.
            updates: What followed the count in each: at least one byte, read-only.
        """
        ...


class Sums:
    """Element-wise sums of scaled updates.

    Of float64 the rounding errors are summed too (Neumaier, ZAMM 54, 1974): n terms are as in twice the precision, that is, their
    sum is exact to the last bit or two, and beyond that to (n * 2**-53)**2 of the sum of their magnitudes (Ogita, Rump and Oishi,
    SIAM J. Sci. Comput. 26, 2005), which shows only where all but n**2 * 2**-54 of them cancels. float16 and float32 are exact
    enough in a plain float64 sum: each of its errors is 2**-29 of their own last bit. Memory: 8 bytes an element, 16 for float64
    and integers.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._sums = np.zeros(spec.count)
        # bfloat16, which NumPy has no kind for, is exact enough, too.
        self._errors = np.zeros(spec.count) if spec.dtype.itemsize == 8 or spec.dtype.kind in "iu" else None

    def clear(self) -> None:
        self._sums.fill(0)
        if self._errors is not None:
            self._errors.fill(0)

    def add(self, factor: int, blocks: Iterable[Array]) -> None:
        start, scratch = 0, np.empty((4, min(BLOCK, self._spec.count)))
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

    def divided(self, divisor: int) -> Array:
        """Return the sums over `divisor` in the dtype `spec.result`; uses up the sums."""
        if self._errors is not None:
            self._sums += self._errors
        if divisor != 1:
            self._sums /= divisor
        with np.errstate(over="ignore"):
            return self._sums.astype(self._spec.result, copy=False)


class WeightedAverage:
    """The mean of the updates, each weighing as much as it has samples (McMahan et al., AISTATS 2017).

    An update of 0 samples weighs nothing, unless all have 0: then the result is their plain mean, as in 0.8.
    """

    def __init__(self, spec: Spec) -> None:
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
        return self._sums.divided(self._samples or self._without)


class ModelSum:
    """The plain sum of the updates; sample counts do not matter (0.8's `model_sum`)."""

    def __init__(self, spec: Spec) -> None:
        self._sums = Sums(spec)

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        self._sums.add(1, blocks)

    def result(self) -> Array:
        return self._sums.divided(1)


class TrimmedMean:
    """The mean of each weight without its smallest and its largest values, whatever the sample counts.

    As many updates as are left out at either end may hold anything, and the mean stays within the range of the others (Yin et al.,
    "Byzantine-Robust Distributed Learning", ICML 2018).

    Args:
        spec: Of the tensor.
        trim: The share of the updates that is left out at either end, rounded down: from 0 to below 0.5.
    """

    def __init__(self, spec: Spec, *, trim: float = 0.1) -> None:
        if not 0 <= trim < 0.5:
            raise ValueError(f"trim, the share of the updates that is left out at either end, is from 0 to below 0.5, not {trim}")
        self._trim = trim

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        left_out = self._left_out(len(updates))
        updates.sort(axis=0)
        mean: Array = updates[left_out : len(updates) - left_out].mean(axis=0)
        return mean

    def _left_out(self, count: int) -> int:
        return floor(self._trim * count + 1e-9)  # 0.29 of 100 are 29, and not 28.999...


class Median(TrimmedMean):
    """The median of each weight: the mean of what is left when as many are left out as can be."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)

    def _left_out(self, count: int) -> int:
        return (count - 1) // 2


StrategyFactory = Callable[..., Strategy | Combining | CombiningBytes]
"""Makes a strategy for a tensor and an attempt, from its `Spec` and the options of the settings as keyword arguments."""

STRATEGIES: Mapping[str, StrategyFactory] = {
    "weighted_average": WeightedAverage,
    "model_sum": ModelSum,
    "median": Median,
    "trimmed_mean": TrimmedMean,
}


ROBUST = frozenset({"median", "trimmed_mean"})
"""Those that bound the influence of each update themselves."""
UNWEIGHTED = ROBUST | {"model_sum"}
"""Those to which the sample counts of updates do not matter."""


def load_strategy(name: str) -> StrategyFactory:
    """The strategy of that name, or the class that `module:Class` names.

    Raises:
        ConfigurationError: there is none.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    module, _, attribute = name.partition(":")
    known = ", ".join(sorted(STRATEGIES))
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ConfigurationError(f"there is no strategy {name!r}: AGGREGATOR_STRATEGY is one of {known}, or module:Class")
    try:
        factory: StrategyFactory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"AGGREGATOR_STRATEGY: {name} cannot be imported: {error}; is it installed, or on PYTHONPATH?"
        ) from error
    if not callable(factory):
        raise ConfigurationError(f"AGGREGATOR_STRATEGY: {name} is no class")
    return factory
