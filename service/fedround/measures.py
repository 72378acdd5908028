"""What weights are like, and what training changed in them: figures, computed block by block without a copy of the model."""

import math
from typing import Any

import numpy as np

from fedround.figures import DECADES, FEW, Change, Statistics
from fedround.weights import BLOCK, Array


def statistics(array: Array) -> Statistics:
    """The statistics of an array of any shape, in float64, block by block (the variance by Chan, Golub and LeVeque's update)."""
    count, mean, deviations, absolute = 0, 0.0, 0.0, 0.0
    least, largest = math.inf, -math.inf
    decades = [0] * len(DECADES)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _float64_blocks(array):
            finite = np.isfinite(block)
            values = block if finite.all() else block[finite]
            if not values.size:
                continue
            block_mean = float(values.mean())
            difference, total = block_mean - mean, count + values.size
            centred = values - block_mean
            deviations += float(np.square(centred, out=centred).sum())
            deviations += difference * count * values.size / total * difference  # in this order 0 for the first, however large
            mean, count = mean + difference * values.size / total, total
            least, largest = min(least, float(values.min())), max(largest, float(values.max()))
            sizes = np.abs(values, out=centred)
            absolute += float(sizes.sum())
            decades = [n + int(np.count_nonzero(sizes <= decade)) for n, decade in zip(decades, DECADES, strict=True)]
    few = tuple(map(float, array.flat)) if array.size <= FEW else ()
    if not count:
        return Statistics(array.size, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, array.size, tuple(decades), few)
    # The sum of squares is that of the deviations and of the mean: nothing cancels there.
    norm = math.sqrt(deviations + count * mean * mean)
    stddev, nonfinite = math.sqrt(deviations / count), array.size - count
    return Statistics(array.size, mean, stddev, least, largest, absolute, norm, nonfinite, tuple(decades), few)


def norm(array: Array) -> float:
    """The L2 norm of an array of any shape, in float64."""
    with np.errstate(over="ignore"):
        return math.sqrt(sum(float(block @ block) for block in _float64_blocks(array)))


def change(before: Array, after: Array, former: Array | None = None) -> Change:
    """What became of the global model `before`, which came from `former`: arrays of one shape; in float64, block by block."""
    square, product, moved = 0.0, 0.0, 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for a, b, c in _float64_blocks(before, after, before if former is None else former):
            update, way = b - a, a - c
            square, product, moved = square + float(update @ update), product + float(update @ way), moved + float(way @ way)
    norms = math.sqrt(square) * math.sqrt(moved)
    return Change(math.sqrt(square), product / norms if 0 < norms < math.inf else None)


def _float64_blocks(*arrays: Array) -> Any:
    # Of any layout, dtype and byte order it makes float64 blocks, and copies no more than one of them at a time.
    flags = ["external_loop", "buffered", "zerosize_ok"]
    return np.nditer(arrays, flags, order="K", buffersize=BLOCK, op_dtypes=[np.float64] * len(arrays))  # type: ignore[call-overload]
