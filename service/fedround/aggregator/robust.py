"""Strategies that bound what a single update can do to the model. A protocol core: no I/O."""

from collections.abc import Sequence
from math import floor

import numpy as np

from fedround.errors import ConfigurationError
from fedround.tensors.weights import Array, Spec


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


class Krum:
    """The one update that is closest to its neighbours, whatever the sample counts.

    Its score is the sum of the squared distances to the `n - f - 2` updates that are closest to it, over all floats of an update
    together; the smallest wins (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    NeurIPS 2017). As many updates as `byzantine` says may hold anything.

    Args:
        spec: Of the tensor.
        byzantine: f, how many updates may be broken or hostile. A round needs 2f + 3 updates or more.
    """

    def __init__(self, spec: Spec, *, byzantine: int = 1) -> None:
        self._byzantine = _count("byzantine", byzantine, 0)

    def choose(self, samples: Sequence[int], distances: Array) -> Sequence[int]:
        """See `strategies.Choosing`."""
        count, least = len(samples), 2 * self._byzantine + 3
        _check_enough(f"byzantine={self._byzantine}", least, count)
        nearest = np.sort(distances**2, axis=1)[:, 1 : count - self._byzantine - 1]  # the first is its own, which is 0
        # Of equal scores the first in the ledger wins.
        best: list[int] = np.argsort(nearest.sum(axis=1), kind="stable")[: self._kept(count)].tolist()
        return best

    def _kept(self, count: int) -> int:
        return 1

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        mean: Array = updates.mean(axis=0)
        return mean


class MultiKrum(Krum):
    """The mean of the updates with the best scores of `Krum`.

    Args:
        spec: Of the tensor.
        byzantine: f, how many updates may be broken or hostile. A round needs 2f + 3 updates or more.
        keep: m, how many updates are averaged, `n - f` at most. By default `n - f - 2`: for so many the guarantee of Krum holds
            (El Mhamdi et al., "Fast and Robust Distributed Learning in High Dimension", SRDS 2020).
    """

    def __init__(self, spec: Spec, *, byzantine: int = 1, keep: int | None = None) -> None:
        super().__init__(spec, byzantine=byzantine)
        self._keep = None if keep is None else _count("keep", keep, 1)

    def _kept(self, count: int) -> int:
        if self._keep is None:
            return count - self._byzantine - 2
        _check_enough(f"byzantine={self._byzantine}, keep={self._keep}", self._keep + self._byzantine, count)
        return self._keep


def _check_enough(options: str, least: int, count: int) -> None:
    if count < least:
        raise ConfigurationError(
            f"AGGREGATOR_STRATEGY_OPTIONS: with {options} a round needs {least} updates or more, but this one has {count}: "
            "raise COORDINATOR_MIN_CLIENTS"
        )


def _count(name: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is a whole number from {least}, not {value}")
    return value
