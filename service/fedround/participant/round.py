"""The current round for user code: its number, its shard, whether to stop early, and the metrics that it reports."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, SupportsFloat, SupportsIndex, TypeVar

from fedround.common import wire
from fedround.common.evaluation import encoded, number
from fedround.tensors.statistics import LARGEST

LOG = logging.getLogger(__name__)

REPORT_INTERVAL = 1.0
"""Minimum seconds between two reports of a round: training code may report a loss for each of thousands of batches."""

Rows_co = TypeVar("Rows_co", covariant=True)


class Sliceable(Protocol[Rows_co]):
    """An array, list, tuple or data frame: an object that returns rows for a slice."""

    def __getitem__(self, rows: slice, /) -> Rows_co: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index`, counted from 0, of a data set that is split into `count` parts."""

    index: int
    count: int

    def of(self, rows: Sliceable[Rows_co]) -> Rows_co:
        """Return this shard's rows: every `count`-th, starting at `index`.

        Each row is in one shard, and sizes differ by at most one.

        Args:
            rows: An array, list, tuple or data frame.

        Returns:
            A slice of `rows`. For an array this is a view, not a copy.
        """
        return rows[self.index :: self.count]


class Round:
    """The round that is being trained."""

    def __init__(
        self, number: int, shard: Shard, on_report: Callable[[Mapping[str, float]], None], run: wire.Run | None = None
    ) -> None:
        self.number = number
        """Number of the round, counted from 0 over all runs of a platform."""
        self.run = run
        """The run of the round, with `id` and `name`. None: the coordinator sends no run, like 0.8."""
        self.shard = shard
        """The shard of a split data set that this participant trains."""
        self.local_tensors: Sequence[str] = ()
        """Name patterns of tensors that stay in the participant."""
        self.cancelled = False
        """Whether to return early: the coordinator has revoked this participant's part in the round, or the process is stopping.

        After a revocation the result is discarded. After a request to stop it is sent, if the drain time-out allows.
        """
        self._on_report = on_report
        self.evaluation: str | None = None
        """Evaluation of the global model, encoded as it is sent with the update."""
        self._metrics: dict[str, float] = {}
        self._unreported: dict[str, float] = {}
        self._report_at = 0.0
        self._dropped: set[str] = set()

    def __repr__(self) -> str:
        return f"<round {self.number}>"

    @property
    def rounds(self) -> int | None:
        """Number of the run's last round plus 1. None: the run has no end, or the coordinator sends none."""
        return self.run.rounds or None if self.run else None

    @property
    def config(self) -> Mapping[str, wire.Scalar]:
        """The round configuration: the coordinator's values for training code, such as a learning rate. Empty if there is none."""
        return self.run.config if self.run else {}

    def report(self, **metrics: SupportsFloat) -> None:
        """Report metrics of training, as in `report(loss=0.3, accuracy=0.9)`. A repeated name replaces its value.

        They become metrics and log fields here, at most once a second and at the end of training, and are sent with the update. The
        platform shows their means over all participants.
        A value that is not finite (NaN, infinity, more than 1e290) is dropped with a warning, because it has no mean.

        Raises:
            ValueError: A value is not a number, a name is longer than 64 characters, there are more than 20 names, or together
                they take more than 2 kB.
        """
        new = self._numbers(metrics)
        merged = self._metrics | new
        if len(merged) > wire.MAX_METRICS or len(encode_metrics(merged)) > wire.MAX_METRICS_BYTES:
            raise ValueError(f"a round reports at most {wire.MAX_METRICS} names, and {wire.MAX_METRICS_BYTES} bytes of JSON")
        self._metrics = merged
        self._unreported |= new
        if time.monotonic() >= self._report_at:
            self.flush()

    def flush(self) -> None:
        """Report the metrics that wait for the end of the interval."""
        if self._unreported:
            new, self._unreported = self._unreported, {}
            self._report_at = time.monotonic() + REPORT_INTERVAL
            self._on_report(new)

    def evaluated(self, samples: SupportsIndex, metrics: Mapping[str, SupportsFloat]) -> None:
        """Store the evaluation of the global model. Raises `ValueError` or `TypeError` like `report`, or if no metric is finite."""
        numbers = self._numbers(metrics)
        if not numbers:
            raise ValueError("no metric is finite" if metrics else "it returned no metric")
        self.evaluation = encoded(samples, numbers)

    def _numbers(self, metrics: Mapping[str, SupportsFloat]) -> dict[str, float]:
        numbers = {name: number(name, value) for name, value in metrics.items()}
        return {name: value for name, value in numbers.items() if self._reportable(name, value)}

    def _reportable(self, name: str, number: float) -> bool:
        """Return whether a value is finite enough for a mean. If not, warn once per name."""
        if abs(number) <= LARGEST:
            return True
        if name not in self._dropped and len(self._dropped) < wire.MAX_METRICS:
            self._dropped.add(name)
            LOG.warning("round %d: the value of %r is dropped, because it is not finite: %s", self.number, name, number)
        return False

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics reported so far."""
        return self._metrics


def encode_metrics(metrics: Mapping[str, float]) -> str:
    """Encode metrics for the header `Fedround-Metrics`."""
    return json.dumps(dict(metrics), separators=(",", ":"))


_CURRENT: ContextVar[Round] = ContextVar("current_round")


def current_round() -> Round:
    """Return the current round. Works within a participant's methods, on the thread that calls them.

    Raises:
        RuntimeError: This thread is not training a round.
    """
    try:
        return _CURRENT.get()
    except LookupError:
        raise RuntimeError("this thread is not training a round: call current_round() within train_round") from None


def local_tensors() -> Sequence[str]:
    """Return the name patterns of the current participant's local tensors. Outside of a round there are none."""
    current = _CURRENT.get(None)
    return () if current is None else current.local_tensors


@contextmanager
def entered(round: Round) -> Iterator[None]:
    """Make `round` the current one, and report the last metrics at its end."""
    token = _CURRENT.set(round)
    try:
        yield
    finally:
        round.flush()
        _CURRENT.reset(token)
