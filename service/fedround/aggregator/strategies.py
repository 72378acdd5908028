"""How updates become a global model: strategies that fold each update into sums as it comes. A protocol core: no I/O.

A strategy lives for one attempt. Updates are checked before they are folded; an exception from `fold` all the same leaves the sums
unusable, and the attempt is lost. The bits of the result depend on the order of folding alone, which the ledger keeps.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Protocol

import numpy as np

from fedround.errors import ConfigurationError, WrongWeights
from fedround.weights import BLOCK, Array, Spec


class Strategy(Protocol):
    """What the aggregator asks of a strategy. It is made with the `Spec` of the attempt, and the options of the settings."""

    def fold(self, samples: int, blocks: Iterable[Array]) -> None:
        """Take an update in: its sample count, and its weights in 1-D blocks of at most `BLOCK`, good until the next one."""
        ...

    def result(self) -> Array:
        """The global model: flat, of the spec's dtype. Called once, at the end."""
        ...


class Sums:
    """Element-wise sums of scaled updates.

    Of float64 the rounding errors are summed too (Neumaier, ZAMM 54, 1974): n terms are as in twice the precision, that is, their
    sum is exact to the last bit or two, and beyond that to (n * 2**-53)**2 of the sum of their magnitudes (Ogita, Rump and Oishi,
    SIAM J. Sci. Comput. 26, 2005), which shows only where all but n**2 * 2**-54 of them cancels. float16 and float32 are exact
    enough in a plain float64 sum: each of its errors is 2**-29 of their own last bit. Memory: 8 bytes an element, 16 for float64.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._sums = np.zeros(spec.count)
        self._errors = np.zeros(spec.count) if spec.dtype.itemsize == 8 else None
        self._term, self._sum, self._a, self._b = (np.empty(min(BLOCK, spec.count)) for _ in range(4))

    def clear(self) -> None:
        self._sums.fill(0)
        if self._errors is not None:
            self._errors.fill(0)

    def add(self, factor: int, blocks: Iterable[Array]) -> None:
        start = 0
        for block in blocks:
            stop = start + block.size
            term = self._term[: block.size]
            np.multiply(block, float(factor), out=term, dtype=np.float64)
            if self._errors is None:
                self._sums[start:stop] += term
            else:
                self._add_exactly(self._sums[start:stop], self._errors[start:stop], term)
            start = stop

    def _add_exactly(self, sums: Array, errors: Array, term: Array) -> None:
        # Knuth's TwoSum: `total` and the error of that addition together are exactly `sums + term`.
        total, a, b = self._sum[: term.size], self._a[: term.size], self._b[: term.size]
        np.add(sums, term, out=total)
        np.subtract(total, sums, out=a)
        np.subtract(total, a, out=b)
        np.subtract(sums, b, out=b)
        np.subtract(term, a, out=a)
        np.add(a, b, out=a)
        np.add(errors, a, out=errors)
        sums[:] = total

    def divided(self, divisor: int) -> Array:
        """The sums over `divisor` in the spec's dtype; uses up the sums."""
        if self._errors is not None:
            self._sums += self._errors
        if divisor != 1:
            self._sums /= divisor
        with np.errstate(over="ignore"):
            result = self._sums.astype(self._spec.dtype, copy=False)
        for start in range(0, result.size, BLOCK):
            if not np.isfinite(result[start : start + BLOCK]).all():
                raise WrongWeights(f"the result does not fit into {self._spec.dtype.str}: train with a wider dtype")
        return result


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


StrategyFactory = Callable[..., Strategy]
"""Makes a strategy for an attempt, from its `Spec` and the options of the settings as keyword arguments."""

STRATEGIES: Mapping[str, StrategyFactory] = {"weighted_average": WeightedAverage, "model_sum": ModelSum}


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
