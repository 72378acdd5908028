"""The aggregator: receives updates, folds them, serves the model. The ledger alone decides which updates are counted."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

from fedround.aggregator.aggregate import Aggregate, Checked, Spoilt, outcome
from fedround.aggregator.bell import Bell
from fedround.aggregator.codecs import Model
from fedround.aggregator.evaluator import Evaluator
from fedround.aggregator.guards import Guard
from fedround.aggregator.ledger import Attempt, Ledger, Receipt
from fedround.aggregator.models import Models
from fedround.aggregator.running import Running
from fedround.aggregator.spool import Received, Spool
from fedround.aggregator.steps import Steps
from fedround.aggregator.store import ModelStore
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
from fedround.events import (
    Aggregated,
    Dominated,
    ModelsRolledBack,
    Observer,
    Observers,
    RunStarted,
    UpdateReceived,
    UploadFailed,
)
from fedround.tensors.weights import Layout

LOG = logging.getLogger(__name__)

HOLD = 20.0
"""Maximum seconds that `ledger` waits for an entry."""
PATIENCE = 2.0
"""Maximum seconds that the response to an upload waits for the coordinator's acknowledgement."""


class AggregatorService:
    """The books (`fedround.common.books.Books`), and `read` and `deliver` for participants. For one event loop.

    Args:
        begin: Begins the running aggregate of an attempt, for the layout of its updates.
        spool: Receives updates.
        layout: The layout of every model; None: that of the initial model, or else of the first update.
        model: The initial model, or the newest one from before a restart.
        initial: Reads the initial model of a new run; raises `ConfigurationError`. None: a new run begins with the newest model.
        store: Stores models on disk; None: models stay in memory only.
        evaluator: Evaluates models, as far as it has time; None: the aggregator evaluates none.
        guard: Refuses implausible updates.
        observer: Receives every fact.
        strategy: Name of the strategy, for operators.
        hold: Maximum seconds that `ledger` waits for an entry.
        patience: Maximum seconds that `deliver` waits until the coordinator has acknowledged the entry.
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
        self._steps = Steps()
        self.models = Models(model, initial, store, evaluator, observer=self._observer, steps=self._steps)
        self._ledger = Ledger(str(uuid4()), self.models.trained)
        self.faults: Callable[[], Sequence[str]] = tuple
        """Returns why the process is not ready, for the coordinator's status."""
        self._unkept: Model | None = None
        """The result of the attempt that is being closed, until it is stored."""
        # Held for a whole step: the ledger's first answer must still be true when it enters the result.
        self._step = asyncio.Lock()
        self._entered = Bell()
        self.models.on_news(self._entered.ring)
        self._acknowledged = Bell()
        self._train = True
        """Whether the open attempt accepts updates, and not only evaluations."""
        self._receiving = 0
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
        self._entered.ring()
        self._acknowledged.ring()

    # The books

    async def open(self, call: Open) -> None:
        """See `Books.open`. Raises `Busy` if the initial model cannot be read."""
        async with self._step:
            begins = call.run.name != "" and self.models.run.name not in ("", call.run.name)
            initial = await self.models.read_initial() if begins else None
            if self._ledger.open(call.attempt, call.round, call.admissions, call.forget):
                self._unkept, self._train = None, call.train
                self._enter(call.run, begins, initial)
                self._aggregate.open(self.model, (admission.id for admission in call.admissions))

    def _enter(self, run: Run, begins: bool, initial: Model | None) -> None:
        """Switch to the attempt's run. If it `begins` now, start with `initial` or the newest model, without a strategy's state."""
        if run in (self.models.run, NO_RUN):
            return
        self._observer(RunStarted(run.id, run.name))
        if begins:
            self._aggregate.roll_back(())  # lessons from other models do not apply to this run
        self.models.enter(run, begins=begins, initial=initial)

    async def admit(self, attempt: str, admissions: Sequence[Admission]) -> None:
        """See `Books.admit`."""
        async with self._step:
            self._ledger.admit(attempt, admissions)
            self._aggregate.admit(admission.id for admission in admissions)

    async def revoke(self, attempt: str, id: str, patience: float = 0.0) -> Verdict:
        """See `Books.revoke`."""
        async with self._step:
            return self._ledger.revoke(attempt, id, patience, time.monotonic())

    async def close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        """See `Books.close`. Raises `UnknownAttempt` if no result can be made, and `Busy` if it cannot be stored now."""
        return await self._steps.to_its_end(self._close(attempt, ids))

    async def ledger(self, incarnation: str, after: int, best: int | None = None) -> Page:
        """See `Books.ledger`. Raises `Busy` if the service stops and there is no entry."""
        if self.models.rounds and best not in (None, self.models.best):
            await self._steps.to_its_end(self._mark_best(best))
        self._ledger.page(incarnation, after)
        self._acknowledged.ring()

        def news() -> bool:
            page = self._ledger.page(incarnation, after)
            return self._stopping or page.incarnation != incarnation or bool(page.entries) or self.models.news

        await self._entered.wait(news, self._hold)
        page = self._ledger.page(incarnation, after)
        if self._stopping and not page.entries:
            raise Busy("the aggregator is stopping", retry_after=1.0)
        return replace(self.models.described(page), faults=tuple(self.faults()), strategy=self._strategy)

    async def _mark_best(self, round: int) -> None:
        async with self._step:
            await self.models.mark_best(round)

    async def _close(self, attempt: str, ids: Sequence[str]) -> Closed | Difference:
        async with self._step:
            if (difference := self._ledger.close(attempt, ids)) is not None:
                return difference
            if self._ledger.attempt is not None and not self._aggregate.empty:
                await self._make(self._ledger.attempt)
            if self._unkept is not None:
                await self._publish(self._unkept)
            return Closed(self.model.parameters if self.model else 0)

    async def _make(self, attempt: Attempt) -> None:
        began = time.perf_counter()
        try:
            model = await asyncio.to_thread(self._aggregate.result, attempt.round, self.models.run)
        except Exception as error:
            self._lose("cannot make a model", error)
            raise UnknownAttempt(attempt.id) from error
        self._unkept = model
        self._aggregate.drop()
        self._observer(Aggregated(attempt.round, len(attempt.counted), model.parameters, time.perf_counter() - began))
        if (dominant := self._aggregate.dominant) is not None:
            self._observer(Dominated(attempt.round, dominant.id, dominant.share))

    async def _publish(self, model: Model) -> None:
        """Store the model, then serve it: a served model must survive a restart."""
        await self.models.keep(model, self._aggregate.lesson)
        self._serve(model)

    def _serve(self, model: Model) -> None:
        self._unkept = None
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
        return await self._steps.to_its_end(self._roll_back(round))

    async def _roll_back(self, round: int) -> Sequence[int] | None:
        async with self._step:
            if round not in self.models.rounds:
                return None
            removed = [other for other in self.models.rounds if other > round]
            model = await asyncio.to_thread(self.models.read, round, self._aggregate.read)
            lessons = await self.models.roll_back(round)
            self._aggregate.roll_back(lessons)
            self._serve(model)
            self._start_over()
            self._observer(ModelsRolledBack(round, len(removed)))
            return removed

    # The participants' exchanges

    def known(self, id: str, token: str) -> tuple[str, str] | None:
        """Return the key of a participant with a part in a round; None for others."""
        return (id, token) if self._ledger.knows(id, token) else None

    def read(self, id: str, token: str, owner: str = "") -> Model | None:
        """Return the global model for `owner`; None if there is none yet. Raises `NotAdmitted`, `Forbidden` or `Late`."""
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
            token: The token that was admitted for this id.
            chunks: The body.
            owner: The proved identity of the request; empty if it proves none.
            length: The announced size in bytes, if there is one.
            metrics: The metrics of training that the participant reports.
            evaluation: Samples and metrics of the participant's evaluation of the global model.

        Raises:
            NotAdmitted, Forbidden, Late, WeightsError, TooSlow, SpoolFull, Busy: The update was not counted.
            Errors of reading `chunks`: The update was not counted.
        """
        incarnation = self._ledger.incarnation
        self._receiving += 1
        try:
            receipt = self._ledger.begin(id, token, owner, now=time.monotonic(), length=length)
            received = await self._receive(receipt, chunks, length)
            entry = await self._steps.to_its_end(self._settle(receipt, received, metrics or {}, evaluation))
        except (NotAdmitted, Forbidden, Late, WeightsError) as error:
            self._observer(UpdateReceived(id, outcome(error), length or 0, str(error)))
            raise
        finally:
            self._receiving -= 1
        self._observer(UpdateReceived(id, "accepted" if entry else "repeated", received.size))
        if entry is None:
            return UpdateOutcome.REPEATED
        await self._until_known(incarnation, entry.seq)
        return UpdateOutcome.COUNTED

    async def _receive(self, receipt: Receipt, chunks: AsyncIterator[bytes], length: int | None) -> Received:
        try:
            return await self._spool.receive(self._metered(receipt, chunks), length, most=self._aggregate.largest_update)
        except TooLarge as error:
            await self._steps.to_its_end(self._refuse(receipt, str(error)))
            raise
        except Late:
            self._ledger.abort(receipt)
            raise
        except BaseException as error:
            self._ledger.abort(receipt)
            self._observer(UploadFailed(receipt.id, str(error) or "the connection was closed"))
            raise

    async def _metered(self, receipt: Receipt, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self._ledger.took(receipt, len(chunk))
            yield chunk

    async def _settle(
        self,
        receipt: Receipt,
        received: Received,
        metrics: Mapping[str, float],
        reported: tuple[int, Mapping[str, float]] | None,
    ) -> Entry | None:
        """Check an update, fold it and enter it. Return None if the right was already counted."""
        evaluation = None if reported is None else Evaluation(self.model.round if self.model else None, *reported)
        try:
            checked = None if receipt.repeated or not self._train else await asyncio.to_thread(self._aggregate.check, received)
            async with self._step:
                if receipt.repeated or not self._ledger.countable(receipt):
                    return None
                if checked is not None:
                    await self._fold(receipt.id, checked)
                elif received.size:
                    raise WrongWeights("training is over: this attempt accepts evaluations only, without an update")
                samples = checked.size.samples if checked else 0
                entry = self._ledger.count(receipt, samples, metrics, evaluation)
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

    async def _fold(self, id: str, checked: Checked) -> None:
        try:
            await asyncio.to_thread(self._aggregate.fold, id, checked)
        except Spoilt as spoilt:
            self._lose("cannot add an update", spoilt.__cause__ or spoilt)
            raise Late("the round restarts: the aggregator has lost its updates") from spoilt

    async def _refuse(self, receipt: Receipt, reason: str) -> None:
        async with self._step:
            self._ledger.refuse(receipt, reason)
        self._entered.ring()

    async def _until_known(self, incarnation: str, seq: int) -> None:
        def known() -> bool:
            return self._stopping or self._ledger.incarnation != incarnation or self._ledger.acknowledged >= seq

        await self._acknowledged.wait(known, self._patience)
        if self._ledger.incarnation != incarnation:
            raise Late("the round restarts: the aggregator has lost its updates")

    def _lose(self, reason: str, error: BaseException) -> None:
        trace = None if isinstance(error, FedroundError) else error
        LOG.error("lost the updates of this round, which restarts: %s: %s", reason, error, exc_info=trace)
        self._start_over(f"{reason}: {error}")

    def _start_over(self, reason: str = "") -> None:
        self._ledger.lose(str(uuid4()), reason)
        self._aggregate.drop()
        self._entered.ring()
        self._acknowledged.ring()
