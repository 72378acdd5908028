"""The aggregator at work: receives updates, folds them, serves the result. The ledger alone decides what is counted."""

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
    RunEntered,
    UpdateReceived,
    UploadFailed,
)
from fedround.tensors.weights import Layout

LOG = logging.getLogger(__name__)

HOLD = 20.0
"""Seconds for which a call of `ledger` waits for an entry."""
PATIENCE = 2.0
"""Seconds for which an upload's answer waits until the coordinator knows."""


class AggregatorService:
    """The books (`fedround.common.books.Books`), and for the participants `read` and `deliver`. For one event loop.

    Args:
        begin: Begins the running aggregate of an attempt, given what its updates look like.
        spool: Where updates are received.
        layout: What every model looks like; None: what training begins with decides, else the first update.
        model: What training begins with, or went on to before a restart.
        initial: Reads what a new run begins with; raises `ConfigurationError`. None: a new run begins with the newest model.
        store: Where models are kept; None: nowhere.
        evaluator: Evaluates each model, if it has the time; None: nobody does.
        guard: Says which updates are plausible.
        observer: Told of every fact.
        strategy: What it is called, for people.
        hold: Seconds for which `ledger` waits for an entry.
        patience: Seconds for which `deliver` waits until the coordinator has acknowledged the entry.
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
        """Says why the process is not ready, for the coordinator to show."""
        self._unkept: Model | None = None
        """The result of the attempt that is being closed, until it is kept."""
        # Held for a whole step: what the ledger was asked first must still be true when it is told of the result.
        self._step = asyncio.Lock()
        self._entered = Bell()
        self.models.on_news(self._entered.ring)
        self._acknowledged = Bell()
        self._train = True
        """The attempt that is open takes updates, and not only evaluations."""
        self._receiving = 0
        self._stopping = False

    @property
    def model(self) -> Model | None:
        """The newest global model; None before the first."""
        return self.models.newest

    def status(self) -> dict[str, object]:
        """The state as JSON-able data, ids cut."""
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
        """End every wait, now and from now on, so that none keeps a server from stopping."""
        self._stopping = True
        self._entered.ring()
        self._acknowledged.ring()

    # The books

    async def open(self, call: Open) -> None:
        """See `Books.open`. Raises `Busy` where the initial model cannot be read."""
        async with self._step:
            begins = call.run.name != "" and self.models.run.name not in ("", call.run.name)
            initial = await self.models.read_initial() if begins else None
            if self._ledger.open(call.attempt, call.round, call.admissions, call.forget):
                self._unkept, self._train = None, call.train
                self._enter(call.run, begins, initial)
                self._aggregate.open(self.model, (admission.id for admission in call.admissions))

    def _enter(self, run: Run, begins: bool, initial: Model | None) -> None:
        """The attempt belongs to this run, which `begins` now, with `initial` if there is such a model, and without a state."""
        if run in (self.models.run, NO_RUN):
            return
        self._observer(RunEntered(run.id, run.name))
        if begins:
            self._aggregate.roll_back(())  # what other models have taught says nothing of these
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
        """See `Books.close`. A result that cannot be made is a lost sum, `UnknownAttempt`; one that is not kept yet is `Busy`."""
        return await self._steps.to_its_end(self._close(attempt, ids))

    async def ledger(self, incarnation: str, after: int, best: int | None = None) -> Page:
        """See `Books.ledger`. Raises `Busy` where there is nothing to tell and the service stops."""
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
            raise Busy("the aggregator stops", retry_after=1.0)
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
            self._lose("no model can be made of it", error)
            raise UnknownAttempt(attempt.id) from error
        self._unkept = model
        self._aggregate.drop()
        self._observer(Aggregated(attempt.round, len(attempt.counted), model.parameters, time.perf_counter() - began))
        if (dominant := self._aggregate.dominant) is not None:
            self._observer(Dominated(attempt.round, dominant.id, dominant.share))

    async def _publish(self, model: Model) -> None:
        """Serve the model, once it is kept: whoever has seen it shall not find another after a restart."""
        await self.models.keep(model, self._aggregate.lesson)
        self._serve(model)

    def _serve(self, model: Model) -> None:
        self._unkept = None
        self.models.serve(model)
        self._ledger.newest = self.models.trained

    async def roll_back(self, round: int) -> Sequence[int] | None:
        """Make the model of a round the newest. The open attempt is void.

        Returns:
            The rounds whose models are removed; None where that model is not kept.

        Raises:
            DataDamaged, WeightsError, Busy: It cannot be read, is none of this strategy, or cannot be made the newest now.
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
            self._begin_anew()
            self._observer(ModelsRolledBack(round, len(removed)))
            return removed

    # The participants' exchanges

    def known(self, id: str, token: str) -> tuple[str, str] | None:
        """The key of a participant in a round; None for others."""
        return (id, token) if self._ledger.knows(id, token) else None

    def read(self, id: str, token: str, owner: str = "") -> Model | None:
        """The global model, for the proved identity `owner`; None before the first. Raises `NotAdmitted`, `Forbidden` or `Late`."""
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
        figures: Mapping[str, float] | None = None,
        evaluation: tuple[int, Mapping[str, float]] | None = None,
    ) -> UpdateOutcome:
        """Receive an update, check it, count it, and wait until the coordinator knows.

        Args:
            id: Whose it is.
            token: The token that was admitted for it.
            chunks: The body.
            owner: The proved identity of the request, empty where it proves none.
            length: Its size in bytes, where that was announced.
            figures: What the participant reports with it.
            evaluation: Samples and metrics of its evaluation of the global model.

        Raises:
            NotAdmitted, Forbidden, Late, WeightsError, TooSlow, SpoolFull, Busy: It was not counted.
            What reading `chunks` raises: likewise.
        """
        incarnation = self._ledger.incarnation
        self._receiving += 1
        try:
            receipt = self._ledger.begin(id, token, owner, now=time.monotonic(), length=length)
            received = await self._receive(receipt, chunks, length)
            entry = await self._steps.to_its_end(self._settle(receipt, received, figures or {}, evaluation))
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
        figures: Mapping[str, float],
        reported: tuple[int, Mapping[str, float]] | None,
    ) -> Entry | None:
        """Check an update, fold it and enter it; None where one of the same right was counted before."""
        evaluation = None if reported is None else Evaluation(self.model.round if self.model else None, *reported)
        try:
            checked = None if receipt.repeated or not self._train else await asyncio.to_thread(self._aggregate.check, received)
            async with self._step:
                if receipt.repeated or not self._ledger.countable(receipt):
                    return None
                if checked is not None:
                    await self._fold(receipt.id, checked)
                elif received.size:
                    raise WrongWeights("training is over: only evaluations are taken, without an update")
                samples = checked.figures.samples if checked else 0
                entry = self._ledger.count(receipt, samples, figures, evaluation)
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
            self._lose("an update cannot be folded", spoilt.__cause__ or spoilt)
            raise Late("the round begins anew: the aggregator has lost what it had collected") from spoilt

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

    def _lose(self, reason: str, error: BaseException) -> None:
        trace = None if isinstance(error, FedroundError) else error
        LOG.error("the sum is lost and the round begins anew: %s: %s", reason, error, exc_info=trace)
        self._begin_anew(f"{reason}: {error}")

    def _begin_anew(self, reason: str = "") -> None:
        self._ledger.lose(str(uuid4()), reason)
        self._aggregate.drop()
        self._entered.ring()
        self._acknowledged.ring()
