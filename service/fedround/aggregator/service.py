"""The aggregator at work: receives updates, folds them, serves the result. The ledger alone decides what is counted."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from fedround.aggregator.codecs import OPAQUE, Codec, Model, Npy, Update
from fedround.aggregator.ledger import Attempt, Ledger, Receipt
from fedround.aggregator.spool import Received, Spool
from fedround.aggregator.store import ModelStore
from fedround.aggregator.strategies import Strategy
from fedround.books import Admission, Closed, Difference, Entry, Measured, Page, Verdict
from fedround.errors import Busy, DataDamaged, Forbidden, Late, NotAdmitted, SpoolFull, TooLarge, UnknownAttempt, WeightsError
from fedround.events import Aggregated, NotKept, Observer, Observers, UpdateReceived, UploadFailed, WasKept, WeightsMeasured, short
from fedround.weights import Spec, statistics
from fedround.wire import UpdateOutcome

LOG = logging.getLogger(__name__)

HOLD = 20.0
"""Seconds for which a call of `ledger` waits for an entry."""
PATIENCE = 2.0
"""Seconds for which an upload's answer waits until the coordinator knows."""
TOLD = 3
"""Models of which a page of the ledger says what they are like: quick rounds may have one page for several."""

T = TypeVar("T")


class AggregatorService:
    """The books (`fedround.books.Books`), and for the participants `read` and `deliver`. For one event loop.

    Args:
        new_sum: Makes the sum of an attempt, given what its updates look like.
        spool: Where updates are received.
        codec: What they and the models are made of; None: `.npy`.
        model: What training begins with, or went on to before a restart.
        store: Where models are kept; None: nowhere.
        observer: Told of every fact.
        hold: Seconds for which `ledger` waits for an entry.
        patience: Seconds for which `deliver` waits until the coordinator has acknowledged the entry.
    """

    def __init__(
        self,
        new_sum: Callable[[Spec], Strategy],
        spool: Spool,
        *,
        codec: Codec | None = None,
        model: Model | None = None,
        store: ModelStore | None = None,
        observer: Observer | None = None,
        hold: float = HOLD,
        patience: float = PATIENCE,
    ) -> None:
        self._new_sum = new_sum
        self._spool = spool
        self.codec = codec or Npy()
        self._observer = observer or Observers()
        self._hold = hold
        self._patience = patience
        self._store = store
        self._ledger = Ledger(str(uuid4()), model.newest if model else None)
        self._sum: Strategy | None = None
        self._spec: Spec | None = None
        self._model = model
        self._measured: deque[Measured] = deque(maxlen=TOLD)
        self.faults: Callable[[], Sequence[str]] = tuple
        """Says why the process is not ready, for the coordinator to show."""
        self._unkept: Model | None = None
        """The result of the attempt that is being closed, until it is kept."""
        # Held for a whole step: what the ledger was asked first must still be true when it is told of the result.
        self._step = asyncio.Lock()
        self._steps: set[asyncio.Task[Any]] = set()
        self._entered = _Bell()
        self._acknowledged = _Bell()
        self._receiving = 0
        self._stopping = False

    @property
    def model(self) -> Model | None:
        """The newest global model; None before the first."""
        return self._model

    def status(self) -> dict[str, object]:
        """The state as JSON-able data, ids cut."""
        attempt, model = self._ledger.attempt, self._model
        return {
            "state": "closed" if attempt is None or attempt.closed else "open",
            "round": attempt and attempt.round,
            "attempt": attempt and short(attempt.id),
            "counted": len(attempt.counted) if attempt else 0,
            "receiving": self._receiving,
            "models": list(self._store.rounds) if self._store else [],
            "model": model and {"round": model.round, "parameters": model.parameters, "dtype": str(model.spec.dtype)},
        }

    async def measure(self) -> None:
        """Tell what the model is like that was there from the start."""
        if self._model is not None and self._model.round is not None:
            await self._measure(self._model)

    def stop(self) -> None:
        """End every wait, now and from now on, so that none keeps a server from stopping."""
        self._stopping = True
        self._entered.ring()
        self._acknowledged.ring()

    # The books

    async def open(self, attempt: str, round: int, admissions: Sequence[Admission], forget: Sequence[str]) -> None:
        """See `Books.open`."""
        async with self._step:
            if self._ledger.open(attempt, round, admissions, forget):
                self._sum = self._unkept = None
                self._spec = self._model.spec if self._model else self.codec.spec

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        """See `Books.admit`."""
        async with self._step:
            self._ledger.admit(attempt, admissions)

    async def revoke(self, attempt: str, id: str) -> Verdict:
        """See `Books.revoke`."""
        async with self._step:
            return self._ledger.revoke(attempt, id)

    async def close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        """See `Books.close`. A result that cannot be made is a lost sum, `UnknownAttempt`; one that is not kept yet is `Busy`."""
        return await self._to_its_end(self._close(attempt, ids))

    async def ledger(self, incarnation: str, after: int) -> Page:
        """See `Books.ledger`. Raises `Busy` where there is nothing to tell and the service stops."""
        self._ledger.page(incarnation, after)
        self._acknowledged.ring()

        def news() -> bool:
            page = self._ledger.page(incarnation, after)
            return self._stopping or page.incarnation != incarnation or bool(page.entries)

        await self._entered.wait(news, self._hold)
        page = self._ledger.page(incarnation, after)
        if self._stopping and not page.entries:
            raise Busy("the aggregator stops", retry_after=1.0)
        return replace(page, measured=tuple(self._measured), faults=tuple(self.faults()))

    async def _close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        async with self._step:
            if (difference := self._ledger.close(attempt, ids)) is not None:
                return difference
            if self._ledger.attempt is not None and self._sum is not None and self._spec is not None:
                await self._aggregate(self._ledger.attempt, self._sum, self._spec)
            if self._unkept is not None:
                await self._publish(self._unkept)
            return Closed(self._model.parameters if self._model else 0)

    async def _aggregate(self, attempt: Attempt, total: Strategy, spec: Spec) -> None:
        began = time.perf_counter()
        try:
            model = await asyncio.to_thread(lambda: self.codec.model(attempt.round, total.result(), spec))
        except Exception as error:
            self._lose("no model can be made of it", error)
            raise UnknownAttempt(attempt.id) from error
        self._unkept, self._sum = model, None
        self._observer(Aggregated(attempt.round, len(attempt.counted), model.parameters, time.perf_counter() - began))

    async def _publish(self, model: Model) -> None:
        """Serve the model, once it is kept: whoever has seen it shall not find another after a restart."""
        if self._store is not None and model.round is not None:
            began = time.perf_counter()
            try:
                await asyncio.to_thread(self._store.save, model.round, model.buffers)
            except OSError as error:
                self._observer(NotKept(f"the model of round {model.round}", str(error)))
                raise Busy(f"the model of round {model.round} cannot be kept: {error}", retry_after=1.0) from error
            self._observer(WasKept(time.perf_counter() - began))
        self._model, self._unkept = model, None
        self._ledger.newest = model.newest
        self._start(self._measure(model))  # nobody waits for it

    async def _measure(self, model: Model) -> None:
        if model.spec is OPAQUE:
            return
        found = await asyncio.to_thread(statistics, model.array)
        self._observer(WeightsMeasured(model.round or 0, "global", sum(map(len, model.buffers)), found))
        figures = {name: value for name, value in found.figures.items() if math.isfinite(value)}
        # The next page tells of it. It is worth no page of its own: that would be one more exchange in every round.
        self._measured.append(Measured(model.round or 0, figures))

    async def kept(self, round: int | None) -> Sequence[bytes | memoryview] | None:
        """The model of a round as `.npy`, of None the initial one; None where it is not kept. Raises `DataDamaged`."""
        if self._model is not None and self._model.round == round:
            return self._model.buffers
        if self._store is None or round is None or round not in self._store.rounds:
            return None
        try:
            return [await asyncio.to_thread(self._store.read, round)]
        except DataDamaged:
            if round not in self._store.rounds:  # a newer one has taken its place meanwhile
                return None
            raise

    # The participants' exchanges

    def read(self, id: str, token: str, owner: str = "") -> Model | None:
        """The global model, for the proved identity `owner`; None before the first. Raises `NotAdmitted`, `Forbidden` or `Late`."""
        self._ledger.check_read(id, token, owner)
        return self._model

    async def deliver(
        self,
        id: str,
        token: str,
        chunks: AsyncIterator[bytes],
        *,
        owner: str = "",
        length: int | None = None,
        figures: Mapping[str, float] | None = None,
    ) -> UpdateOutcome:
        """Receive an update, check it, count it, and wait until the coordinator knows.

        Args:
            id: Whose it is.
            token: The token that was admitted for it.
            chunks: The body.
            owner: The proved identity of the request, empty where it proves none.
            length: Its size in bytes, where that was announced.
            figures: What the participant reports with it.

        Raises:
            NotAdmitted, Forbidden, Late, WeightsError, TooSlow, SpoolFull, Busy: It was not counted.
            What reading `chunks` raises: likewise.
        """
        incarnation = self._ledger.incarnation
        self._receiving += 1
        try:
            receipt = self._ledger.begin(id, token, owner)
            received = await self._receive(receipt, chunks, length)
            entry = await self._to_its_end(self._settle(receipt, received, figures or {}))
        except (NotAdmitted, Forbidden, Late, WeightsError) as error:
            self._observer(UpdateReceived(id, _outcome(error), length or 0, str(error)))
            raise
        finally:
            self._receiving -= 1
        self._observer(UpdateReceived(id, "accepted" if entry else "repeated", received.size))
        if entry is None:
            return UpdateOutcome.REPEATED
        await self._until_known(incarnation, entry.seq)
        return UpdateOutcome.COUNTED

    async def _receive(self, receipt: Receipt, chunks: AsyncIterator[bytes], length: int | None) -> Received:
        # Bytes, and the first update of all, may have any size.
        most = self._spec.largest_update if self._spec is not None and self._spec is not OPAQUE else None
        try:
            return await self._spool.receive(chunks, length, most=most)
        except TooLarge as error:
            await self._to_its_end(self._refuse(receipt, str(error)))
            raise
        except BaseException as error:
            self._ledger.abort(receipt)
            self._observer(UploadFailed(receipt.id, str(error) or "the connection was closed"))
            raise

    async def _settle(self, receipt: Receipt, received: Received, figures: Mapping[str, float]) -> Entry | None:
        """Check an update, fold it and enter it; None where one of the same right was counted before."""
        try:
            update = None if receipt.repeated else await asyncio.to_thread(self._checked, received)
            async with self._step:
                if update is None or not self._ledger.countable(receipt):
                    return None
                await self._fold(update)
                entry = self._ledger.count(receipt, update.samples, figures)
        except WeightsError as error:
            await self._refuse(receipt, str(error))
            raise
        except SpoolFull as error:
            self._observer(UploadFailed(receipt.id, str(error)))
            raise
        finally:
            if not receipt.ended:
                self._ledger.abort(receipt)
            received.discard()
        self._entered.ring()
        return entry

    def _checked(self, received: Received) -> Update:
        update = self.codec.update(received.source, received.size)
        update.check()
        return update

    async def _fold(self, update: Update) -> None:
        spec = self._spec or update.spec
        update.check_like(spec)
        # An update of small integers makes a model of float64.
        self._spool.check_size(spec.count * spec.dtype.itemsize, "the model that it makes has ")

        def fold() -> Strategy:
            total = self._sum or self._new_sum(spec)
            total.fold(update.samples, update.blocks())
            return total

        try:
            self._sum = await asyncio.to_thread(fold)
        except SpoolFull:
            raise  # nothing of it was folded
        except Exception as error:
            # Half of it may be in the sum.
            self._lose("an update cannot be folded", error)
            raise Late("the round begins anew: the aggregator has lost what it had collected") from error
        if self._spec is None and self._ledger.attempt is not None:
            LOG.info("no model yet: the first update decides that round %d is of %s", self._ledger.attempt.round, spec)
        self._spec = spec

    async def _refuse(self, receipt: Receipt, reason: str) -> None:
        async with self._step:
            self._ledger.refuse(receipt, reason)
        self._entered.ring()

    async def _until_known(self, incarnation: str, seq: int) -> None:
        def known() -> bool:
            return self._stopping or self._ledger.incarnation != incarnation or self._ledger.acknowledged >= seq

        await self._acknowledged.wait(known, self._patience)
        if self._ledger.incarnation != incarnation:
            raise Late("the round begins anew: the aggregator has lost what it had collected")

    def _lose(self, reason: str, error: Exception) -> None:
        LOG.error("the sum is lost and the round begins anew: %s", reason, exc_info=error)
        self._ledger.lose(str(uuid4()))
        self._sum = None
        self._entered.ring()
        self._acknowledged.ring()

    async def _to_its_end(self, step: Coroutine[Any, Any, T]) -> T:
        """Run `step` as a whole, even if the caller is cancelled meanwhile."""
        return await asyncio.shield(self._start(step))

    def _start(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(step)
        self._steps.add(task)  # the event loop itself would let it be collected as garbage
        task.add_done_callback(self._steps.discard)
        return task


class _Bell:
    """Wakes those who wait at this moment."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Until `condition` is true after a ring, or is so already; for `seconds` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._event.wait()


def _outcome(error: NotAdmitted | Forbidden | Late | WeightsError) -> str:
    match error:
        case NotAdmitted() | Forbidden():
            return "unauthorized"
        case Late():
            return "late"
        case TooLarge():
            return "too_large"
        case _:
            return "invalid"
