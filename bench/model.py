"""The model that all participants of the benchmark train. Its result is known."""

import numpy as np

Weights = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def trained(k: int, size: int, weights: Weights | None) -> Weights:
    """Train one round of participant k: random weights first, then in place, like memory-conscious NumPy code."""
    if weights is None:
        return np.random.default_rng(k).standard_normal(size)
    weights *= _growth(k)
    return weights


def expected(count: int, size: int, rounds: int) -> Weights:
    """Return the expected global model of participants 0 to `count` - 1 after this many rounds."""
    model = np.zeros(size)
    for k in range(count):
        model += trained(k, size, None)
    model *= np.mean([_growth(k) for k in range(count)]) ** (rounds - 1) / count
    return model


def _growth(k: int) -> float:
    return 1 + k / 1000
