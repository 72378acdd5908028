"""The shell of the aggregator: it receives updates, folds them, and serves models. Only the ledger decides what is counted."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

from fedround.aggregator.aggregate import Aggregate, AggregateCorrupted, Checked, outcome
from fedround.aggregator.codecs import Model
from fedround.aggregator.evaluator import Evaluator
from fedround.aggregator.guards import Guard
from fedround.aggregator.ledger import Attempt, Ledger, Upload
from fedround.aggregator.models import Models
from fedround.aggregator.notifier import Notifier
from fedround.aggregator.running import Running
from fedround.aggregator.spool import Received, Spool
from fedround.aggregator.store import ModelStore
from fedround.aggregator.tasks import Tasks
from fedround.common.books import NO_RUN, Admission, Closed, Difference, Entry, Evaluation, Open, Page, Run, Verdict
from fedround.common.text import short
from fedround.common.wire import UpdateOutcome
from fedround.errors import (
    Busy,
    FedroundError,
    Forbidden,
    Late,
    NotAdmitted,
    SpoolFull,
    TooLarge,
    UnknownAttempt,
    WeightsError,
    WrongWeights,
)
from fedround.events import Aggregated, Dominated, ModelsRolledBack, Observer, Observers, RunStarted, UpdateReceived, UploadFailed
from fedround.tensors.weights import Layout

LOG = logging.getLogger(__name__)

HOLD = 20.0
"""Maximum seconds that `ledger` waits for an entry."""
PATIENCE = 2.0
"""Maximum seconds that the response to an upload waits for the coordinator's acknowledgement."""


class AggregatorService:
    """The aggregator: the books (`fedround.common.books.Books`), and `read` and `deliver` for participants. For one event loop.

    Args:
        begin: Begins the running aggregate of an attempt, for the layout of its updates.
        spool: Receives updates.
        layout: The layout of every model; None: that of the initial model, or else of the first update.
        model: The initial model, or the newest one from before a restart.
        initial: Reads the initial model of a new run; raises `ConfigurationError`. None: a new run begins with the newest model.
        store: Stores models on disk; None: models stay in memory only.
        evaluator: Evaluates models in the background; None: the aggregator evaluates none.
        guard: Refuses implausible updates.
        observer: Receives every fact.
        strategy: Name of the strategy, for operators.
        hold: Maximum seconds that `ledger` waits for an entry.
        patience: Maximum seconds that `deliver` waits for the coordinator's acknowledgement.
    """

    def __init__(
        self,
        begin: Callable[[Layout], Running],
        spool: Spool,
        *,
        layout: Layout | None = None,
        model: Model | None = None,
        initial: Callable[[], Model] | None = None,
        store: ModelStore | None = None,
        evaluator: Evaluator | None = None,
        guard: Guard | None = None,
        observer: Observer | None = None,
        strategy: str = "",
        hold: float = HOLD,
        patience: float = PATIENCE,
    ) -> None:
        self._spool = spool
        self._aggregate = Aggregate(begin, spool, guard or Guard(), layout)
        self._observer = observer or Observers()
        self._strategy = strategy
        self._hold = hold
        self._patience = patience
        self._tasks = Tasks()
        self.models = Models(model, initial, store, evaluator, observer=self._observer, tasks=self._tasks)
        self._ledger = Ledger(str(uuid4()), self.models.trained)
        self.faults: Callable[[], Sequence[str]] = tuple
        """Returns why the process is not ready, for the coordinator's status."""
        self._unsaved: Model | None = None
        """The result of the attempt that is being closed, until it is stored."""
        self._lock = asyncio.Lock()
        """Held from a decision of the ledger until its result is entered."""
        self._news = Notifier()
        """Wakes `ledger` when its page may have changed."""
        self.models.on_news(self._news.notify)
        self._acknowledged = Notifier()
        """Wakes `deliver` when the coordinator has acknowledged entries."""
        self._train = True
        """Whether the open attempt accepts updates with weights, and not only evaluations."""
        self._receiving = 0
        """Number of uploads that are being received."""
        self._stopping = False

    @property
    def model(self) -> Model | None:
        """The newest global model; None if there is none yet."""
        return self.models.newest

    def status(self) -> dict[str, object]:
        """Return the state as JSON-able data with shortened ids."""
        attempt = self._ledger.attempt
        return {
            "state": "closed" if attempt is None or attempt.closed else "open",
            "round": attempt and attempt.round,
            "attempt": attempt and short(attempt.id),
            "counted": len(attempt.counted) if attempt else 0,
            "receiving": self._receiving,
            **self.models.status(),
        }

    def stop(self) -> None:
        """End every current and future wait, so that none delays the server's shutdown."""
        self._stopping = True
        self._news.notify()
        self._acknowledged.notify()

    # The books

    async def open(self, call: Open) -> None:
        """See `Books.open`. Raises `Busy` if the initial model cannot be read."""
        async with self._lock:
            begins = call.run.name != "" and self.models.run.name not in ("", call.run.name)
            initial = await self.models.read_initial() if begins else None
            if self._ledger.open(call.attempt, call.round, call.admissions, call.forget):
                self._unsaved, self._train = None, call.train
                self._set_run(call.run, begins, initial)
                self._aggregate.open(self.model, (admission.id for admission in call.admissions))

    def _set_run(self, run: Run, begins: bool, initial: Model | None) -> None:
        """Switch to the run of the attempt. For the arguments see `Models.set_run`."""
        if run in (self.models.run, NO_RUN):
            return
        self._observer(RunStarted(run.id, run.name))
        if begins:
            self._aggregate.roll_back(())  # baselines from other models do not apply to this run
        self.models.set_run(run, begins=begins, initial=initial)

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        """See `Books.admit`."""
        async with self._lock:
            self._ledger.admit(attempt, admissions)
            self._aggregate.admit(admission.id for admission in admissions)

    async def revoke(self, attempt: str, id: str, patience: float = 0.0) -> Verdict:
        """See `Books.revoke`."""
        async with self._lock:
            return self._ledger.revoke(attempt, id, patience, time.monotonic())

    async def close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        """See `Books.close`. Raises `UnknownAttempt` if the model cannot be computed, and `Busy` if it cannot be stored now."""
        return await self._tasks.shield(self._close(attempt, ids))

    async def ledger(self, incarnation: str, after: int, best: int | None = None) -> Page:
        """See `Books.ledger`. Raises `Busy` if the service is stopping and there is no entry."""
        if self.models.rounds and best not in (None, self.models.best):
            await self._tasks.shield(self._mark_best(best))
        self._ledger.page(incarnation, after)
        self._acknowledged.notify()

        def news() -> bool:
            page = self._ledger.page(incarnation, after)
            return self._stopping or page.incarnation != incarnation or bool(page.entries) or self.models.news

        await self._news.wait(news, self._hold)
        page = self._ledger.page(incarnation, after)
        if self._stopping and not page.entries:
            raise Busy("the aggregator is stopping", retry_after=1.0)
        return replace(self.models.described(page), faults=tuple(self.faults()), strategy=self._strategy)

    async def _mark_best(self, round: int) -> None:
        async with self._lock:
            await self.models.mark_best(round)

    async def _close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        async with self._lock:
            if (difference := self._ledger.close(attempt, ids)) is not None:
                return difference
            if self._ledger.attempt is not None and not self._aggregate.empty:
                await self._make_model(self._ledger.attempt)
            if self._unsaved is not None:
                await self._publish(self._unsaved)
            return Closed(self.model.parameters if self.model else 0)

    async def _make_model(self, attempt: Attempt) -> None:
        began = time.perf_counter()
        try:
            model = await asyncio.to_thread(self._aggregate.result, attempt.round, self.models.run)
        except Exception as error:
            self._lose("cannot make a model", error)
            raise UnknownAttempt(attempt.id) from error
        self._unsaved = model
        self._aggregate.drop()
        self._observer(Aggregated(attempt.round, len(attempt.counted), model.parameters, time.perf_counter() - began))
        if (dominant := self._aggregate.dominant) is not None:
            self._observer(Dominated(attempt.round, dominant.id, dominant.share))

    async def _publish(self, model: Model) -> None:
        """Store the model, and then serve it: a served model must survive a restart."""
        await self.models.save(model, self._aggregate.baseline)
        self._serve(model)

    def _serve(self, model: Model) -> None:
        self._unsaved = None
        self.models.serve(model)
        self._ledger.newest = self.models.trained

    async def roll_back(self, round: int) -> Sequence[int] | None:
        """Make the model of a round the newest, and void the open attempt.

        Returns:
            The rounds whose models were removed; None if the round's model is not stored.

        Raises:
            DataDamaged: The model cannot be read.
            WeightsError: It does not fit the strategy.
            Busy: It cannot be made the newest now.
        """
        return await self._tasks.shield(self._roll_back(round))

    async def _roll_back(self, round: int) -> Sequence[int] | None:
        async with self._lock:
            if round not in self.models.rounds:
                return None
            removed = [other for other in self.models.rounds if other > round]
            model = await asyncio.to_thread(self.models.read, round, self._aggregate.read)
            baselines = await self.models.roll_back(round)
            self._aggregate.roll_back(baselines)
            self._serve(model)
            self._start_over()
            self._observer(ModelsRolledBack(round, len(removed)))
            return removed

    # Requests of participants

    def known(self, id: str, token: str) -> tuple[str, str] | None:
        """Return a key for the throttling of a participant with a valid token; None for others."""
        return (id, token) if self._ledger.knows(id, token) else None

    def read(self, id: str, token: str, owner: str = "") -> Model | None:
        """Return the global model; None if there is none yet. `owner`: the proved identity of the request.

        Raises `NotAdmitted`, `Forbidden` or `Late`.
        """
        self._ledger.check_read(id, token, owner)
        return self.model

    async def deliver(
        self,
        id: str,
        token: str,
        chunks: AsyncIterator[bytes],
        *,
        owner: str = "",
        length: int | None = None,
        metrics: Mapping[str, float] | None = None,
        evaluation: tuple[int, Mapping[str, float]] | None = None,
    ) -> UpdateOutcome:
        """Receive an update, check it, count it, and wait until the coordinator has acknowledged it.

        Args:
            id: Id of the participant.
            token: Its upload permission.
            chunks: The body.
            owner: The proved identity of the request; empty: none.
            length: The announced size in bytes; None: unknown.
            metrics: The participant's metrics of training.
            evaluation: The samples and the metrics of its evaluation of the global model.

        Raises:
            NotAdmitted, Forbidden, Late, WeightsError, TooSlow, SpoolFull, Busy: The update was not counted.
            Exception: Reading `chunks` failed, and the update was not counted.
        """
        incarnation = self._ledger.incarnation
        self._receiving += 1
        try:
            upload = self._ledger.begin(id, token, owner, now=time.monotonic(), length=length)
            received = await self._receive(upload, chunks, length)
            entry = await self._tasks.shield(self._count_update(upload, received, metrics or {}, evaluation))
        except (NotAdmitted, Forbidden, Late, WeightsError) as error:
            self._observer(UpdateReceived(id, outcome(error), length or 0, str(error)))
            raise
        finally:
            self._receiving -= 1
        self._observer(UpdateReceived(id, "accepted" if entry else "repeated", received.size))
        if entry is None:
            return UpdateOutcome.REPEATED
        await self._wait_for_acknowledgement(incarnation, entry.seq)
        return UpdateOutcome.COUNTED

    async def _receive(self, upload: Upload, chunks: AsyncIterator[bytes], length: int | None) -> Received:
        try:
            return await self._spool.receive(self._metered(upload, chunks), length, most=self._aggregate.largest_update)
        except TooLarge as error:
            await self._tasks.shield(self._refuse(upload, str(error)))
            raise
        except Late:
            self._ledger.abort(upload)
            raise
        except BaseException as error:
            self._ledger.abort(upload)
            self._observer(UploadFailed(upload.id, str(error) or "the connection was closed"))
            raise

    async def _metered(self, upload: Upload, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._ledger.receive(upload, len(chunk))
            yield chunk

    async def _count_update(
        self,
        upload: Upload,
        received: Received,
        metrics: Mapping[str, float],
        reported: tuple[int, Mapping[str, float]] | None,
    ) -> Entry | None:
        """Check an update, fold it, and count it. Return its entry; None if an earlier upload was counted."""
        evaluation = None if reported is None else Evaluation(self.model.round if self.model else None, *reported)
        try:
            checked = None if upload.repeated or not self._train else await asyncio.to_thread(self._aggregate.check, received)
            async with self._lock:
                if upload.repeated or not self._ledger.countable(upload):
                    return None
                if checked is not None:
                    await self._fold(upload.id, checked)
                elif received.size:
                    raise WrongWeights("training is over: this attempt accepts evaluations only, without an update")
                samples = checked.size.samples if checked else 0
                entry = self._ledger.count(upload, samples, metrics, evaluation)
        except WeightsError as error:
            await self._refuse(upload, str(error))
            raise
        except SpoolFull as error:
            self._observer(UploadFailed(upload.id, str(error)))
            raise
        finally:
            if not upload.ended:
                self._ledger.abort(upload)
            received.discard()
        self._news.notify()
        return entry

    async def _fold(self, id: str, checked: Checked) -> None:
        try:
            await asyncio.to_thread(self._aggregate.fold, id, checked)
        except AggregateCorrupted as error:
            self._lose("cannot add an update", error.__cause__ or error)
            raise Late("the round restarts: the aggregator has lost its updates") from error

    async def _refuse(self, upload: Upload, reason: str) -> None:
        async with self._lock:
            self._ledger.refuse(upload, reason)
        self._news.notify()

    async def _wait_for_acknowledgement(self, incarnation: str, seq: int) -> None:
        def acknowledged() -> bool:
            return self._stopping or self._ledger.incarnation != incarnation or self._ledger.acknowledged >= seq

        await self._acknowledged.wait(acknowledged, self._patience)
        if self._ledger.incarnation != incarnation:
            raise Late("the round restarts: the aggregator has lost its updates")

    def _lose(self, reason: str, error: BaseException) -> None:
        trace = None if isinstance(error, FedroundError) else error
        LOG.error("lost the updates of this round, which restarts: %s: %s", reason, error, exc_info=trace)
        self._start_over(f"{reason}: {error}")

    def _start_over(self, reason: str = "") -> None:
        self._ledger.lose(str(uuid4()), reason)
        self._aggregate.drop()
        self._news.notify()
        self._acknowledged.notify()
