"""What is known of weights, as plain numbers. No NumPy: the process that serves a participant loads none."""

from dataclasses import dataclass

DECADES = tuple(10.0**power for power in range(-6, 2))
"""Absolute values of weights are counted by them."""
FEW = 32
LARGEST = 1e290
"""The largest magnitude of a value that is reported: sums over 2**32 - 1 samples of any number of participants stay finite."""
LARGEST_WEIGHT = 1e15
"""The largest magnitude of a weight. The squares of 300 million such weights still sum up to a float32."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of all finite weights of a model; all 0 where there is none. What float64 cannot hold (from about 1e150 on) is not finite."""

    count: int
    """Of all weights, finite or not."""
    mean: float
    stddev: float
    least: float
    largest: float
    l1_norm: float
    l2_norm: float
    nonfinite: int
    decades: tuple[int, ...]
    """How many have an absolute value of at most each of `DECADES`."""
    values: tuple[float, ...]
    """The weights themselves, of a model of at most `FEW`."""
    constants: int = 0
    """How many elements of named tensors cannot be averaged: in a global model they are constants, such as the -inf of a mask."""

    @property
    def flaw(self) -> str:
        """Why nobody can train on these weights; empty if somebody can."""
        if self.nonfinite:
            return f"{self.nonfinite} of its weights are NaN or infinite"
        largest = max(abs(self.least), abs(self.largest))
        return f"its largest weight is {largest:.3g}, and {LARGEST_WEIGHT:g} is the limit" if largest > LARGEST_WEIGHT else ""

    @property
    def figures(self) -> dict[str, float]:
        """The five that are shown everywhere, by the names that they have there."""
        return {"mean": self.mean, "stddev": self.stddev, "min": self.least, "max": self.largest, "l2_norm": self.l2_norm}


@dataclass(frozen=True, slots=True)
class Change:
    """What training made of a global model."""

    l2_norm: float
    """Of the update: what came out, minus the model."""
    cosine_similarity: float | None
    """Between the update and the last change of the global model; None where one of them has no direction."""
