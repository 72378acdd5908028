"""Measures models for people: what it cannot measure, or what it finds, never keeps the service from its work."""

import asyncio
import hashlib
import logging
import math
from collections import deque
from collections.abc import Sequence

from fedround.aggregator.codecs import OPAQUE, Model
from fedround.common.books import Measured
from fedround.events import Observer, WeightsMeasured
from fedround.tensors.figures import Statistics
from fedround.tensors.measures import statistics

LOG = logging.getLogger(__name__)

TOLD = 3
"""Models of which a page of the ledger says what they are like: quick rounds may have one page for several."""


class Measurer:
    """Tells `observer` of each model that it measures."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._newest: deque[Measured] = deque(maxlen=TOLD)
        self._rollbacks = 0

    @property
    def newest(self) -> Sequence[Measured]:
        """What the last models are like."""
        return tuple(self._newest)

    async def measure(self, model: Model) -> None:
        """Measure a model on a thread."""
        if model.layout is OPAQUE:
            return
        rollbacks = self._rollbacks
        try:
            found, digest = await asyncio.to_thread(_measured, model)
        except Exception:
            LOG.exception("the weights of the model of round %s cannot be measured", model.round)
            return
        if rollbacks != self._rollbacks:
            return  # it may be of a round that is void
        self._observer(WeightsMeasured(model.round or 0, "global", sum(map(len, model.buffers)), found))
        if model.round is not None:
            # The next page tells of it. It is worth no page of its own: that would be one more exchange in every round.
            finite = {name: value for name, value in found.figures.items() if math.isfinite(value)}
            self._newest.append(Measured(model.round, finite, digest))

    def forget(self, newest: int) -> None:
        """Forget the models of all rounds after `newest`, and what is being measured."""
        self._rollbacks += 1
        self._newest = deque((measured for measured in self._newest if measured.round <= newest), TOLD)


def _measured(model: Model) -> tuple[Statistics, str]:
    """Return the statistics of a model, and the SHA-256 of its file."""
    digest = hashlib.sha256()
    for part in model.buffers:
        digest.update(part)
    return statistics(model.weights), digest.hexdigest()
