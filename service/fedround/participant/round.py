"""What user code can know and say of the round that it trains: its number, its shard, whether to stop early, and its figures."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, SupportsFloat, SupportsIndex, TypeVar

from fedround.common import wire
from fedround.common.evaluation import encoded, number
from fedround.tensors.figures import LARGEST

LOG = logging.getLogger(__name__)

Rows_co = TypeVar("Rows_co", covariant=True)


class Sliceable(Protocol[Rows_co]):
    """Arrays, lists, tuples, data frames: whatever gives some of its rows for a slice."""

    def __getitem__(self, rows: slice, /) -> Rows_co: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """Part number `index` (from 0) of a data set that is split into `count` parts."""

    index: int
    count: int

    def of(self, rows: Sliceable[Rows_co]) -> Rows_co:
        """This shard's rows: every `count`-th from number `index` on.

        Each row is in one shard, and sizes differ by one at most. Of an array this is a view: nothing is copied.
        """
        return rows[self.index :: self.count]


class Round:
    """The round that is being trained."""

    def __init__(self, number: int, shard: Shard, tell: Callable[[Mapping[str, float]], None], run: wire.Run | None = None) -> None:
        self.number = number
        """Rounds count from 0, through all runs of a platform."""
        self.run = run
        """The run that the round belongs to, with `id` and `name`; None: the coordinator does not say, as one of 0.8."""
        self.shard = shard
        self.local_tensors: Sequence[str] = ()
        """Patterns of the names of tensors that stay in the participant."""
        self.cancelled = False
        """The round was given away, or this process is about to end: what is not returned soon will not be sent."""
        self._tell = tell
        self.evaluation: str | None = None
        """How the global model was evaluated, as it travels with the update."""
        self._figures: dict[str, float] = {}
        self._dropped: set[str] = set()

    def __repr__(self) -> str:
        return f"<round {self.number}>"

    @property
    def rounds(self) -> int | None:
        """The number of the run's last round plus 1; None: the run does not end, or the coordinator does not say."""
        return self.run.rounds or None if self.run else None

    @property
    def config(self) -> Mapping[str, wire.Scalar]:
        """The round configuration: what the coordinator tells training code, such as a learning rate. Empty where there is none."""
        return self.run.config if self.run else {}

    def report(self, **figures: SupportsFloat) -> None:
        """Report figures of the training, as in `report(loss=0.3, accuracy=0.9)`. A name that comes again replaces its figure.

        They become metrics and log fields here, and travel with the update: the platform shows their means over all participants.
        A value that is not finite (NaN, infinity, more than 1e290) is dropped with a warning: it has no mean.

        Raises:
            ValueError: A figure is no number, a name is longer than 64 characters, there are more than 20 names, or all of them
                take more than 2 kB.
        """
        new = self._numbers(figures)
        merged = self._figures | new
        if len(merged) > wire.MAX_FIGURES or len(encode_figures(merged)) > wire.MAX_METRICS:
            raise ValueError(f"a round reports at most {wire.MAX_FIGURES} names, and {wire.MAX_METRICS} bytes of JSON")
        self._figures = merged
        if new:
            self._tell(new)

    def evaluated(self, samples: SupportsIndex, metrics: Mapping[str, SupportsFloat]) -> None:
        """Note how the global model was evaluated. Raises `ValueError` or `TypeError` as `report`."""
        self.evaluation = encoded(samples, self._numbers(metrics))

    def _numbers(self, figures: Mapping[str, SupportsFloat]) -> dict[str, float]:
        numbers = {name: number(name, value) for name, value in figures.items()}
        return {name: value for name, value in numbers.items() if self._reportable(name, value)}

    def _reportable(self, name: str, number: float) -> bool:
        """Whether a mean can be made of it; else warn, once for each name."""
        if abs(number) <= LARGEST:
            return True
        if name not in self._dropped and len(self._dropped) < wire.MAX_FIGURES:
            self._dropped.add(name)
            LOG.warning("round %d: the value of %r is dropped, because it is not finite: %s", self.number, name, number)
        return False

    @property
    def figures(self) -> Mapping[str, float]:
        """What was reported so far."""
        return self._figures


def encode_figures(figures: Mapping[str, float]) -> str:
    """As they travel in the header `Fedround-Metrics`."""
    return json.dumps(dict(figures), separators=(",", ":"))


_CURRENT: ContextVar[Round] = ContextVar("current_round")


def current_round() -> Round:
    """The round that is being trained. Works within the methods of a participant, on the thread that calls them.

    Raises:
        RuntimeError: No round is being trained here.
    """
    try:
        return _CURRENT.get()
    except LookupError:
        raise RuntimeError("no round is being trained here: call current_round() within train_round") from None


def local_tensors() -> Sequence[str]:
    """Return the patterns of the tensors that stay in the participant whose round is being trained; outside of a round: none."""
    current = _CURRENT.get(None)
    return () if current is None else current.local_tensors


@contextmanager
def entered(round: Round) -> Iterator[None]:
    """Make `round` the current one."""
    token = _CURRENT.set(round)
    try:
        yield
    finally:
        _CURRENT.reset(token)
