"""The aggregate of an attempt: it checks updates, adds them, and makes the model. It runs on threads, without an event loop.

Call `open`, `admit`, `fold` and `result` one at a time, in the order of the ledger. Call `check` at any time.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from fedround.aggregator.codecs import OPAQUE, Model, OpaqueUpdate, Update, opaque_model, read_model
from fedround.aggregator.guards import Dominant, Guard, Size
from fedround.aggregator.result import assembled
from fedround.aggregator.running import Running
from fedround.aggregator.spool import Received, Spool
from fedround.aggregator.state import State
from fedround.aggregator.updates import UpdateReader
from fedround.common.books import NO_RUN, Run
from fedround.common.text import described, short
from fedround.errors import Forbidden, Implausible, Late, NotAdmitted, SpoolFull, TooLarge, WeightsError, WrongWeights
from fedround.tensors.measures import norm
from fedround.tensors.weights import Array, Layout

LOG = logging.getLogger(__name__)


@contextmanager
def _kept_running() -> Iterator[None]:
    """Convert the `SystemExit` of a strategy, which would end the aggregator, into a `RuntimeError`."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"the strategy raised {described(error)}") from error


class AggregateCorrupted(Exception):
    """The aggregate is unusable: it may contain part of an update. `__cause__` is the error."""


class Checked(NamedTuple):
    """A checked update, with its sample count and change."""

    update: Update
    size: Size


class Aggregate:
    """The aggregate of one attempt after another. For the arguments see `AggregatorService`."""

    def __init__(self, begin: Callable[[Layout], Running], spool: Spool, guard: Guard, layout: Layout | None = None) -> None:
        self._begin = begin
        self._spool = spool
        self._always = layout
        self._guard = guard
        self._model: Model | None = None
        self._layout: Layout | None = None
        self._running: Running | None = None
        self._fixed: Mapping[str, Array] = {}
        """Tensors that are not averaged, from the model or the first update."""

    def open(self, model: Model | None, ids: Iterable[str]) -> None:
        """Begin an attempt to train `model` with these participants."""
        self._model, self._layout, self._running = model, model.layout if model else self._always, None
        self._fixed = model.fixed if model else {}
        self._guard.open(ids)

    def admit(self, ids: Iterable[str]) -> None:
        """Admit more participants."""
        self._guard.admit(ids)

    def drop(self) -> None:
        """Discard the aggregate, and release the state that the attempt began with."""
        self._running = None
        self._model = self._model and replace(self._model, state=State())

    def roll_back(self, baselines: Iterable[Size]) -> None:
        """Discard the aggregate, and replace the guard's baselines by those of the remaining rounds."""
        self.drop()
        self._guard.roll_back(baselines)

    @property
    def empty(self) -> bool:
        """Whether no update was added."""
        return self._running is None

    @property
    def largest_update(self) -> int | None:
        """Maximum size of an update in bytes; None: unknown, for the first update and for custom formats."""
        return None if self._layout is None or self._layout is OPAQUE else self._layout.largest_update

    def read(self, round: int | None, data: memoryview, state: memoryview | None = None) -> Model:
        """Return the model in `data`, with the state in `state`. Raises `WeightsError`."""
        return read_model(round, data, self._always, state)

    def check(self, received: Received) -> Checked:
        """Check an update completely. Raises `WeightsError` if it does not fit this training, and `SpoolFull`."""
        model = self._model
        try:
            make = OpaqueUpdate if self._always is OPAQUE else UpdateReader
            update: Update = make(received.source, received.size)
            if model is not None:
                model.layout.check(update.layout)
            return Checked(update, Size(update.samples, update.check(model)))
        except WeightsError:
            raise
        except (OSError, MemoryError) as error:
            raise SpoolFull(f"the update cannot be read now: {error}") from error
        except Exception as error:
            LOG.exception("refused an update that cannot be read")
            raise WrongWeights("these weights cannot be read") from error

    def fold(self, id: str, checked: Checked) -> None:
        """Add an update to the aggregate.

        Raises:
            WeightsError, SpoolFull: Nothing was added.
            AggregateCorrupted: The aggregate is unusable.
        """
        update, size = checked
        first, layout = self._layout is None, self._layout or update.layout
        layout.check(update.layout)
        # The model may be larger than the update: small integers make a model of float64.
        self._spool.check_size(layout.nbytes, "the resulting model has ")
        fixed = update.fixed() if first else self._fixed
        update.check_booleans(fixed)
        self._guard.check(id, size, self._norm)
        watched = _Watched(update)
        try:
            with _kept_running():
                running = self._running or self._begun(layout)
                running.add(watched)
        except (SpoolFull, AggregateCorrupted):
            raise
        except Exception as error:
            if watched.begun or isinstance(error, MemoryError):
                raise AggregateCorrupted from error
            LOG.exception("refused an update that the strategy cannot add")
            raise WrongWeights(f"the strategy cannot add this update: {error}") from error
        if first:
            LOG.info("no model yet: the first update sets the layout of the training: %s", layout)
        self._running, self._layout, self._fixed = running, layout, fixed
        self._guard.count(id, size)

    def _begun(self, layout: Layout) -> Running:
        running = self._begin(layout)
        try:
            with _kept_running():
                running.begin(self._model)
        except Exception as error:
            raise AggregateCorrupted from error
        return running

    @_kept_running()
    def result(self, round: int, run: Run = NO_RUN) -> Model:
        """Return the model of a round. After any exception the aggregate is unusable."""
        assert self._running is not None and self._layout is not None  # noqa: S101 PT018 an update was folded
        if (outlier := self._guard.close(self._norm)) is not None:
            raise Implausible(f"the update of {short(outlier.id)} differs too much from the others: {outlier.reason}")
        results = self._running.results()
        if self._layout is OPAQUE:
            model = opaque_model(round, next(results))
        else:
            model = assembled(round, self._layout, results, self._model, self._fixed, run)
        return replace(model, state=self._running.state())

    @property
    def baseline(self) -> Size:
        """The guard's baseline from the attempt that produced the last result."""
        return self._guard.newest

    @property
    def dominant(self) -> Dominant | None:
        """The participant whose update has more than half of the attempt's samples; None without one."""
        return self._guard.dominant()

    def _norm(self) -> float:
        return norm(self._model.weights) if self._model else 0.0


class _Watched:
    """An update that records whether the strategy has begun to read its weights: from then on an error leaves a partial sum."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self.samples, self.layout = update.samples, update.layout
        self.check, self.check_booleans, self.fixed = update.check, update.check_booleans, update.fixed
        self.begun = False

    def tensors(self) -> Iterator[Iterator[Array]]:
        """See `Update.tensors`."""
        return (self._blocks(blocks) for blocks in self._update.tensors())

    def _blocks(self, blocks: Iterator[Array]) -> Iterator[Array]:
        self.begun = True
        yield from blocks


def outcome(error: NotAdmitted | Forbidden | Late | WeightsError) -> str:
    """Return the outcome of a refused update, as `UpdateReceived` and the metrics show it."""
    match error:
        case NotAdmitted() | Forbidden():
            return "unauthorized"
        case Late():
            return "late"
        case TooLarge():
            return "too_large"
        case Implausible():
            return "implausible"
        case _:
            return "invalid"
