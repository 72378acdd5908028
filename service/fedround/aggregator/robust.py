"""Strategies that bound what a single update can do to the model. A protocol core: no I/O."""

from collections.abc import Sequence
from math import floor

from fedround.weights import Array, Spec


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
