"""Statistics of the weights that a participant receives and trains, for its metrics, if fedround knows their format."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from fedround.errors import WeightsError
from fedround.events import Observer, UpdateMeasured, WeightsMeasured
from fedround.participant.phase import phase
from fedround.tensors.measures import change, measured, statistics
from fedround.tensors.statistics import Change
from fedround.tensors.weights import Array, Weights, view, view_update

LOG = logging.getLogger(__name__)

SAMPLE = 1 << 20
"""Maximum bytes to copy of a global model, to compare with the update. The samples of the last two models stay in memory."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """A copy, because training may work in place. It has all weights of a small model, or every `step`th of each tensor."""

    shapes: Sequence[tuple[int, ...]]
    step: int
    weights: Sequence[Array]

    @classmethod
    def of(cls, model: Weights) -> Self:
        arrays = measured(model)
        # An odd step: an even one may hit the same columns of a matrix in each row.
        step = -(-sum(array.nbytes for array in arrays) // SAMPLE) | 1
        return cls([array.shape for array in arrays], step, [_every(step, array).copy() for array in arrays])

    def comparable(self, other: Self) -> bool:
        return (self.shapes, self.step) == (other.shapes, other.step)


def _every(step: int, array: Array) -> Array:
    """Return every `step`th element in C order; a view if the array is C-contiguous."""
    return array.reshape(-1)[::step] if array.flags.c_contiguous else array.flat[::step]


class Measuring:
    """Weight statistics for `observe`, as a phase of the round. They cannot break a round, and copy nothing large.

    The change by training is exact for a model of up to `SAMPLE` bytes, and estimated from a sample for a larger one.
    """

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._former: _Sample | None = None
        self._model: _Sample | None = None
        self._constants = 0

    def received(self, round: int, model: memoryview) -> None:
        """Measure the global model, before the training code gets it."""
        self._former, self._model = self._model, None
        with self._safely(round):
            try:
                weights = view(model)
            except WeightsError:
                return  # there is no model yet, or only the participant knows its format
            found = statistics(weights)
            self._constants = found.constants
            self._observe(WeightsMeasured(round, "global", len(model), found))
            self._model = _Sample.of(weights)

    def trained(self, round: int, parts: Sequence[memoryview]) -> None:
        """Measure the update, before its check."""
        with self._safely(round):
            samples, weights = view_update(parts)
            changed = None
            if weights is not None:
                found = statistics(weights)
                # More constants than in the model: training has diverged.
                found = replace(found, nonfinite=found.nonfinite + max(0, found.constants - self._constants))
                self._observe(WeightsMeasured(round, "local", sum(map(len, parts)), found))
                changed = self._change(weights)
            self._observe(UpdateMeasured(round, samples, changed))

    def _change(self, weights: Weights) -> Change | None:
        model, former, after = self._model, self._former, measured(weights)
        if model is None or model.shapes != [array.shape for array in after]:
            return None
        before = former.weights if former is not None and former.comparable(model) else None
        found = change(model.weights, [_every(model.step, array) for array in after], before)
        size, sampled = (sum(array.size for array in arrays) for arrays in (after, model.weights))
        return replace(found, l2_norm=found.l2_norm * math.sqrt(size / sampled))

    @contextmanager
    def _safely(self, round: int) -> Iterator[None]:
        try:
            with phase(self._observe, round, "check"):
                yield
        except Exception:
            LOG.exception("the weights of round %d cannot be measured", round)
