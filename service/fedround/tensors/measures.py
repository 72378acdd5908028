"""Statistics of weights and of their changes, computed block by block without a copy of the model.

For named tensors, they cover float tensors. They leave out constants of the model: elements that cannot be averaged.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedround.tensors.statistics import DECADES, FEW, Change, Statistics
from fedround.tensors.values import blocks_of, unfit, without_unfit
from fedround.tensors.weights import Array, Layout, Weights


def statistics(weights: Weights) -> Statistics:
    """Return the statistics of weights, in float64, block by block (the variance by Chan, Golub and LeVeque's update)."""
    arrays, named = measured(weights), isinstance(weights, Mapping)
    size = sum(array.size for array in arrays)
    count, mean, deviations, absolute = 0, 0.0, 0.0, 0.0
    least, largest = math.inf, -math.inf
    decades = [0] * len(DECADES)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _float64_blocks(arrays):
            mask = unfit(block) if named else None
            finite = np.isfinite(block) if mask is None else ~mask
            values = block if finite.all() else block[finite]
            if not values.size:
                continue
            block_mean = float(values.mean())
            difference, total = block_mean - mean, count + values.size
            centred = values - block_mean
            deviations += float(np.square(centred, out=centred).sum())
            # This order of factors gives 0 for the first block, even if its mean is large.
            deviations += difference * count * values.size / total * difference
            mean, count = mean + difference * values.size / total, total
            least, largest = min(least, float(values.min())), max(largest, float(values.max()))
            sizes = np.abs(values, out=centred)
            absolute += float(sizes.sum())
            decades = [n + int(np.count_nonzero(sizes <= decade)) for n, decade in zip(decades, DECADES, strict=True)]
    few = tuple(float(weight) for array in arrays for weight in array.flat) if size <= FEW else ()
    if not count:
        least = largest = 0.0
    # The sum of squares from deviations and mean avoids cancellation.
    norm, stddev = math.sqrt(deviations + count * mean * mean), math.sqrt(deviations / max(count, 1))
    nonfinite, constants = (0, size - count) if named else (size - count, 0)
    return Statistics(size, mean, stddev, least, largest, absolute, norm, nonfinite, tuple(decades), few, constants)


def norm(weights: Weights) -> float:
    """Return the L2 norm of weights, in float64."""
    blocks = _float64_blocks(measured(weights))
    with np.errstate(over="ignore"):
        usable = map(without_unfit, blocks) if isinstance(weights, Mapping) else blocks
        return math.sqrt(sum(float(block @ block) for block in usable))


def change(before: Sequence[Array], after: Sequence[Array], former: Sequence[Array] | None = None) -> Change:
    """Return the change from the global model `before` to `after`, in float64. `former` is the model before `before`."""
    square, product, moved = 0.0, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for a, b, c in zip(*map(_float64_blocks, (before, after, before if former is None else former)), strict=True):
            update, way = b - a, a - c
            square, product, moved = square + float(update @ update), product + float(update @ way), moved + float(way @ way)
    norms = math.sqrt(square) * math.sqrt(moved)
    return Change(math.sqrt(square), product / norms if 0 < norms < math.inf else None)


def measured(weights: Weights) -> list[Array]:
    """Return the arrays that the statistics cover."""
    if not isinstance(weights, Mapping):
        return [weights]
    return [weights[spec.name] for spec in Layout.of(weights).measured]


def _float64_blocks(arrays: Sequence[Array]) -> Iterator[Array]:
    for array in arrays:
        for _, block in blocks_of(array):
            yield block.astype(np.float64, copy=False)
