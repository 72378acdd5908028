"""Checks of the values of weights, block by block: values that cannot be averaged are rejected.

1. A value that is NaN, infinite or beyond `LARGEST_WEIGHT` is *unfit*.
2. If a named tensor of the round's model has the same unfit value at the same place, it is a *constant*, such as the `-inf` of a
   mask. An update may contain it.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from fedround.errors import NotFinite
from fedround.tensors.safetensors import shown
from fedround.tensors.statistics import LARGEST_WEIGHT
from fedround.tensors.weights import Array, Weights

BLOCK = 1 << 16
"""Elements of a block, which fits the processor's cache."""


def widened(block: Array) -> Array:
    """Return the block in a dtype that NumPy can compute with: bfloat16 as float32."""
    return block if block.dtype.kind in "fiub" else block.astype(np.float32)


def unfit(block: Array) -> Array | None:
    """Return a mask of unfit elements, or None if all can be averaged."""
    if block.dtype.itemsize == 2:
        block = block.astype(np.float32)  # the minimum of float16 takes six times as long
    # Minimum and maximum are sufficient: they are NaN if any element is, and comparisons with NaN are false.
    if not block.size or (block.min() >= -LARGEST_WEIGHT and block.max() <= LARGEST_WEIGHT):
        return None
    with np.errstate(invalid="ignore"):
        found: Array = ~(np.abs(block) <= LARGEST_WEIGHT)
    return found


def without_unfit(block: Array) -> Array:
    """Return a block in which unfit elements are 0."""
    found = unfit(block)
    return block if found is None else np.where(found, 0, block)


class Flaws:
    """A count of the elements of a tensor that are unfit and not constants."""

    def __init__(self, name: str = "", count: int = 0) -> None:
        self._name = name
        self._count = count
        self._found = [0, 0, 0]

    def check_block(self, block: Array, before: Array | None = None) -> Array | None:
        """Check a block against the model's block `before`. Return a mask of unfit elements, with constants, or None."""
        mask = unfit(block)
        if mask is None:
            return None
        bad = block[mask]
        if before is not None:
            known = before[mask]
            bad = bad[(bad != known) & ~(np.isnan(bad) & np.isnan(known))]
        nan, infinite = int(np.isnan(bad).sum()), int(np.isinf(bad).sum())
        self._found = [a + b for a, b in zip(self._found, (nan, infinite, bad.size - nan - infinite), strict=True)]
        return mask

    def check(self) -> None:
        """Raise `NotFinite` if an element is unfit and not a constant."""
        kinds = ("NaN", "infinity", f"magnitudes above {LARGEST_WEIGHT:g}")
        what = " and ".join(f"{kind} in {n}" for kind, n in zip(kinds, self._found, strict=True) if n)
        if what:
            raise NotFinite(f"{shown(self._name) or 'weights'}: {what} of {self._count} elements: has training diverged?")


def check_values(weights: Weights, constants: Mapping[str, Array] | None = None) -> None:
    """Check all weights of an update, block by block.

    Args:
        weights: Weights of a participant's update.
        constants: The tensors of the round's model that have unfit elements.

    Raises:
        NotFinite: A weight is NaN, infinite or too large, and not a constant. The message names the tensor.
    """
    for name, array in tensors_of(weights):
        if name and array.dtype.kind in "iub":
            continue
        flaws, before = Flaws(name, array.size), (constants or {}).get(name)
        if before is not None:
            array = np.ascontiguousarray(array)  # the model's tensors are in C order
        for start, block in blocks_of(array):
            flaws.check_block(block, None if before is None else widened(before.reshape(-1)[start : start + block.size]))
        flaws.check()


def constants_of(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies of the tensors that have unfit elements."""
    floats = {name: array for name, array in weights.items() if array.dtype.kind not in "iub"}
    return {name: a.copy() for name, a in floats.items() if any(unfit(block) is not None for _, block in blocks_of(a))}


def tensors_of(weights: Weights) -> Iterator[tuple[str, Array]]:
    """Yield the arrays with their names. A single array has the empty name."""
    yield from weights.items() if isinstance(weights, Mapping) else (("", weights),)


def blocks_of(array: Array) -> Iterator[tuple[int, Array]]:
    """Yield 1-D blocks of at most `BLOCK` elements, in memory order, each with its start."""
    flat = array.reshape(-1, order="A")
    for start in range(0, flat.size, BLOCK):
        yield start, widened(flat[start : start + BLOCK])
