"""Statistics of weights, as plain numbers. No NumPy: the supervisor of a participant does not load it."""

from dataclasses import dataclass

DECADES = tuple(10.0**power for power in range(-6, 2))
"""Upper bounds of the histogram of absolute weights."""
FEW = 32
"""Maximum number of weights of a model whose statistics include the weights themselves."""
LARGEST = 1e290
"""Maximum magnitude of a reported value. Sums over 2**32 - 1 samples of each participant stay finite."""
LARGEST_WEIGHT = 1e15
"""Maximum magnitude of a weight. The sum of the squares of 300 million such weights still fits float32."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of the finite weights of a model, all 0 if none is finite. Beyond about 1e150 they may overflow to infinity."""

    count: int
    """Number of weights, finite or not."""
    mean: float
    stddev: float
    least: float
    largest: float
    l1_norm: float
    l2_norm: float
    nonfinite: int
    decades: tuple[int, ...]
    """Number of weights with an absolute value of at most each of `DECADES`."""
    values: tuple[float, ...]
    """The weights themselves, if the model has at most `FEW`."""
    constants: int = 0
    """Number of elements of named tensors that cannot be averaged: constants of a global model, such as the -inf of a mask."""

    @property
    def flaw(self) -> str:
        """The reason why these weights are unusable for training. Empty if they are usable."""
        if self.nonfinite:
            return f"{self.nonfinite} of its weights are NaN or infinite"
        largest = max(abs(self.least), abs(self.largest))
        return f"its largest weight is {largest:.3g}, and {LARGEST_WEIGHT:g} is the limit" if largest > LARGEST_WEIGHT else ""

    @property
    def summary(self) -> dict[str, float]:
        """The five statistics that status, metrics and history show, by name."""
        return {"mean": self.mean, "stddev": self.stddev, "min": self.least, "max": self.largest, "l2_norm": self.l2_norm}


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a global model by training."""

    l2_norm: float
    """L2 norm of the difference between the trained and the global model."""
    cosine_similarity: float | None
    """Cosine similarity of this difference and the last change of the global model. None if one of them is zero."""
