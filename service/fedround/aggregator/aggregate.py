"""The running aggregate of an attempt: checks updates, adds them, makes the model. No event loop: it is called on threads.

One call of `open`, `admit`, `fold` and `result` at a time, in the order of the ledger; `check` at any time.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fedround.aggregator.codecs import OPAQUE, Codec, Model, Update
from fedround.aggregator.guards import Dominant, Figures, Guard
from fedround.aggregator.spool import Received, Spool
from fedround.aggregator.strategies import Strategy
from fedround.errors import Forbidden, Implausible, Late, NotAdmitted, SpoolFull, TooLarge, WeightsError, WrongWeights
from fedround.events import short
from fedround.measures import norm
from fedround.weights import Array, Spec

LOG = logging.getLogger(__name__)


class Spoilt(Exception):
    """Part of an update may be in the sum. `__cause__` is why the rest is not."""


class Checked(NamedTuple):
    """An update that was read whole once, and its figures."""

    update: Update
    figures: Figures


class Aggregate:
    """See `AggregatorService` for the arguments."""

    def __init__(self, new_sum: Callable[[Spec], Strategy], spool: Spool, codec: Codec, guard: Guard) -> None:
        self._new_sum = new_sum
        self._spool = spool
        self._codec = codec
        self._guard = guard
        self._model: Model | None = None
        self._spec: Spec | None = None
        self._sum: Strategy | None = None

    def open(self, model: Model | None, ids: Iterable[str]) -> None:
        """Begin an attempt to train on `model`, with these participants."""
        self._model, self._spec, self._sum = model, model.spec if model else self._codec.spec, None
        self._guard.open(ids)

    def admit(self, ids: Iterable[str]) -> None:
        """More participants may deliver."""
        self._guard.admit(ids)

    def drop(self) -> None:
        """Throw the sum away."""
        self._sum = None

    def roll_back(self, lessons: Iterable[Figures]) -> None:
        """Throw the sum away, and what later rounds taught; `lessons` are of those that are left."""
        self._sum = None
        self._guard.roll_back(lessons)

    @property
    def empty(self) -> bool:
        """There is no sum."""
        return self._sum is None

    @property
    def largest_update(self) -> int | None:
        """Bytes; None where an update may have any size: the first of all, and what is no array."""
        return None if self._spec is None or self._spec is OPAQUE else self._spec.largest_update

    def check(self, received: Received) -> Checked:
        """Read an update whole, once. Raises `WeightsError` where it is none for this training, and `SpoolFull`."""
        model = self._model
        try:
            update = self._codec.update(received.source, received.size)
            if model is not None:
                update.check_like(model.spec)
            return Checked(update, Figures(update.samples, update.check(model.array if model else None)))
        except WeightsError:
            raise
        except (OSError, MemoryError) as error:
            raise SpoolFull(f"the update cannot be read now: {error}") from error
        except Exception as error:
            LOG.exception("an update cannot be read, and is refused")
            raise WrongWeights("these weights cannot be read") from error

    def fold(self, id: str, checked: Checked) -> None:
        """Add an update to the sum.

        Raises:
            WeightsError, SpoolFull: Nothing of it was added.
            Spoilt: The sum is of no use any more.
        """
        update, figures = checked
        first, spec = self._spec is None, self._spec or update.spec
        update.check_like(spec)
        # An update of small integers makes a model of float64.
        self._spool.check_size(spec.count * spec.dtype.itemsize, "the model that it makes has ")
        self._guard.check(id, figures, self._norm)
        begun = False

        def blocks() -> Iterator[Array]:
            nonlocal begun
            begun = True
            yield from update.blocks()

        try:
            total = self._sum or self._new_sum(spec)
            total.fold(update.samples, blocks())
        except SpoolFull:
            raise
        except Exception as error:
            if begun or isinstance(error, MemoryError):
                raise Spoilt from error
            LOG.exception("the strategy does not take an update, which is refused")
            raise WrongWeights(f"the strategy does not take this update: {error}") from error
        if first:
            LOG.info("no model yet: the first update decides that the training is of %s", spec)
        self._sum, self._spec = total, spec
        self._guard.count(id, figures)

    def result(self, round: int) -> Model:
        """Make the model of a round. Whatever it raises: the sum is of no use any more."""
        assert self._sum is not None and self._spec is not None  # noqa: S101 PT018 an update was folded
        if (odd := self._guard.close(self._norm)) is not None:
            raise Implausible(f"the update of {short(odd.id)} stands out from the others: {odd.reason}")
        return self._codec.model(round, self._sum.result(), self._spec)

    @property
    def lesson(self) -> Figures:
        """What the guard learned from the attempt whose result was made last."""
        return self._guard.newest

    @property
    def dominant(self) -> Dominant | None:
        """The update that has more than half of all samples of the attempt."""
        return self._guard.dominant()

    def _norm(self) -> float:
        return norm(self._model.array) if self._model else 0.0


def outcome(error: NotAdmitted | Forbidden | Late | WeightsError) -> str:
    """The word by which metrics call a refusal."""
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
