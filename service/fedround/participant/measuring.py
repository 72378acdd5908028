"""Measures the weights that a participant receives and trains, for its metrics: whatever its format, where it is one of `.npy`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fedround.errors import WeightsError
from fedround.events import Observer, UpdateMeasured, WeightsMeasured
from fedround.participant.phase import phase
from fedround.weights import Array, change, statistics, view, view_update

LOG = logging.getLogger(__name__)

MAX_COPY = 8 << 20
"""Bytes of the largest global model that is copied, to see what training makes of it: training may work in place."""


class Measuring:
    """Tells `observe` of the weights. Nothing here can break a round, and nothing large is copied; it is a phase of the round."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._before: Array | None = None

    def received(self, round: int, model: memoryview) -> None:
        """The global model, before the participant's own code has it."""
        self._before = None
        with self._safely(round):
            try:
                weights = view(model)
            except WeightsError:
                return  # none yet, or of a format that only the participant knows
            self._observe(WeightsMeasured(round, "global", len(model), statistics(weights)))
            self._before = weights.copy() if weights.nbytes <= MAX_COPY else None

    def trained(self, round: int, parts: Sequence[memoryview]) -> None:
        """The update, as it is sent where nothing is wrong with it."""
        before, self._before = self._before, None
        with self._safely(round):
            samples, weights = view_update(parts)
            changed = None
            if weights is not None:
                self._observe(WeightsMeasured(round, "local", sum(map(len, parts)), statistics(weights)))
                if before is not None and before.shape == weights.shape:
                    changed = change(before, weights)
            self._observe(UpdateMeasured(round, samples, changed))

    @contextmanager
    def _safely(self, round: int) -> Iterator[None]:
        try:
            with phase(self._observe, round, "check"):
                yield
        except Exception:
            LOG.exception("the weights of round %d cannot be measured", round)
