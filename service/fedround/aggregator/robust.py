"""Strategies that limit the influence of a single update on the model. A protocol core: no I/O."""

from collections.abc import Sequence
from math import floor

import numpy as np

from fedround.errors import ConfigurationError
from fedround.tensors.weights import Array, Spec


class TrimmedMean:
    """The mean of each weight without its smallest and its largest values. It ignores the sample counts.

    If not more updates are hostile than are left out at each end, the mean stays within the range of the others (Yin et al.,
    "Byzantine-Robust Distributed Learning", ICML 2018).

    Args:
        spec: Spec of the tensor.
        trim: The share of the updates to leave out at each end, rounded down: at least 0 and less than 0.5.
    """

    def __init__(self, spec: Spec, *, trim: float = 0.1) -> None:
        if not 0 <= trim < 0.5:
            raise ValueError(f"trim (share of updates to leave out at each end) must be at least 0 and less than 0.5, not {trim}")
        self._trim = trim

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        """See `strategies.Combining`."""
        left_out = self._left_out(len(updates))
        updates.sort(axis=0)
        mean: Array = updates[left_out : len(updates) - left_out].mean(axis=0)
        return mean

    def _left_out(self, count: int) -> int:
        return floor(self._trim * count + 1e-9)  # 0.29 of 100 is 29, and not 28.999...


class Median(TrimmedMean):
    """The median of each weight: a trimmed mean that leaves out as many values as possible."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)

    def _left_out(self, count: int) -> int:
        return (count - 1) // 2


class Krum:
    """The one update that is closest to its neighbours. It ignores the sample counts.

    The score of an update is the sum of its squared distances to the `n - f - 2` closest updates, over all its floats. The
    smallest score wins (Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS
    2017). It tolerates `byzantine` broken or hostile updates.

    Args:
        spec: Spec of the tensor.
        byzantine: f, the number of broken or hostile updates to tolerate. A round needs at least 2f + 3 updates.
    """

    def __init__(self, spec: Spec, *, byzantine: int = 1) -> None:
        self._byzantine = _count("byzantine", byzantine, 0)

    def choose(self, samples: Sequence[int], distances: Array) -> Sequence[int]:
        """See `strategies.Choosing`."""
        count, least = len(samples), 2 * self._byzantine + 3
        _check_enough(f"byzantine={self._byzantine}", least, count)
        nearest = np.sort(distances**2, axis=1)[:, 1 : count - self._byzantine - 1]  # the first is the distance to itself
        # A stable sort: of equal scores, the first in the ledger wins.
        best: list[int] = np.argsort(nearest.sum(axis=1), kind="stable")[: self._chosen_count(count)].tolist()
        return best

    def _chosen_count(self, count: int) -> int:
        return 1

    def combine(self, samples: Sequence[int], updates: Array) -> Array:
        """See `strategies.Combining`."""
        mean: Array = updates.mean(axis=0)
        return mean


class MultiKrum(Krum):
    """The mean of the updates with the best scores of `Krum`.

    Args:
        spec: Spec of the tensor.
        byzantine: f, the number of broken or hostile updates to tolerate. A round needs at least 2f + 3 updates.
        keep: m, the number of updates to average, at most `n - f`. By default `n - f - 2`: Krum's guarantee holds up to this
            number (El Mhamdi et al., "Fast and Robust Distributed Learning in High Dimension", SRDS 2020).
    """

    def __init__(self, spec: Spec, *, byzantine: int = 1, keep: int | None = None) -> None:
        super().__init__(spec, byzantine=byzantine)
        self._keep = None if keep is None else _count("keep", keep, 1)

    def _chosen_count(self, count: int) -> int:
        if self._keep is None:
            return count - self._byzantine - 2
        _check_enough(f"byzantine={self._byzantine}, keep={self._keep}", self._keep + self._byzantine, count)
        return self._keep


def _check_enough(options: str, least: int, count: int) -> None:
    if count < least:
        raise ConfigurationError(
            f"AGGREGATOR_STRATEGY_OPTIONS: with {options} a round needs at least {least} updates, but this one has {count}: "
            "raise COORDINATOR_MIN_CLIENTS"
        )


def _count(name: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value}")
    return value
