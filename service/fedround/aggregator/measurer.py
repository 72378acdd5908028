"""The measurer: it computes the statistics of models, for observers. Neither its results nor its errors affect training."""

import asyncio
import hashlib
import logging
import math
from collections import deque
from collections.abc import Sequence

from fedround.aggregator.codecs import OPAQUE, Model
from fedround.common.books import Measured
from fedround.events import Observer, WeightsMeasured
from fedround.tensors.measures import statistics
from fedround.tensors.statistics import Statistics

LOG = logging.getLogger(__name__)

REPORTED = 3
"""Number of models whose statistics a page of the ledger reports: one page may cover several short rounds."""


class Measurer:
    """The measurer of models. `observer` receives a fact about each."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._newest: deque[Measured] = deque(maxlen=REPORTED)
        self._rollbacks = 0

    @property
    def newest(self) -> Sequence[Measured]:
        """The statistics of the last models."""
        return tuple(self._newest)

    async def measure(self, model: Model) -> None:
        """Measure a model on a thread."""
        if model.layout is OPAQUE:
            return
        rollbacks = self._rollbacks
        try:
            found, digest = await asyncio.to_thread(_measured, model)
        except Exception:
            LOG.exception("failed to measure the weights of the model of round %s", model.round)
            return
        if rollbacks != self._rollbacks:
            return  # a rollback may have removed the round
        self._observer(WeightsMeasured(model.round or 0, "global", sum(map(len, model.buffers)), found))
        if model.round is not None:
            # The next page reports this. A separate page would cost one more request in every round.
            finite = {name: value for name, value in found.summary.items() if math.isfinite(value)}
            self._newest.append(Measured(model.round, finite, digest))

    def forget(self, newest: int) -> None:
        """Discard the statistics of all rounds after `newest`, and the measurement that is running."""
        self._rollbacks += 1
        self._newest = deque((measured for measured in self._newest if measured.round <= newest), REPORTED)


def _measured(model: Model) -> tuple[Statistics, str]:
    """Return the statistics of a model, and the SHA-256 of its file."""
    digest = hashlib.sha256()
    for part in model.buffers:
        digest.update(part)
    return statistics(model.weights), digest.hexdigest()
