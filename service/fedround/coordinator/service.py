"""The shell of the coordinator: it responds to participants, makes the calls that `Rounds` returns, and emits facts."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from random import random
from typing import Any

from fedround import events
from fedround.common import wire
from fedround.common.backoff import delays
from fedround.common.books import Admit, Books, Call, Open, carry_out
from fedround.common.wire import MAX_HOLD, Heartbeat, HeartbeatState, RendezVous, StartTraining
from fedround.coordinator.archive import Archive
from fedround.coordinator.long_polls import LongPolls
from fedround.coordinator.missing_metrics import MissingMetrics
from fedround.coordinator.plan import Memory
from fedround.coordinator.recorder import Recorder
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.run import Run, config_of
from fedround.coordinator.silos import Silos
from fedround.coordinator.status import by_name, status
from fedround.errors import ExchangeError, UnknownAttempt
from fedround.events import Observer

RETRY_FIRST, RETRY_MOST = 0.1, 1.0
"""First and maximum delay between two calls in an outage of the aggregator, in seconds."""
SAVED_IMMEDIATELY = (
    events.ParticipantJoined,
    events.ParticipantGone,
    events.ServerEvaluated,
    events.TrainingCompleted,
    events.RolledBack,
)
"""Facts after which the state is saved immediately."""
SAVE_INTERVAL = 1.0
"""Minimum seconds between two saves because of completed rounds."""
MAX_SLEEP = 1.0
"""Maximum seconds for which the loop sleeps."""
SUSPENDED = 2.0
"""Seconds: if the loop wakes later than planned by more than this, the process was suspended."""
HOLD_RATIO = 0.9
"""Maximum time of a long poll as a share of the heartbeat time-out, so that a long poll never causes a time-out."""


async def never() -> None:
    """Wait forever, like a participant that does not disconnect."""
    await asyncio.Future()


class CoordinatorService:
    """The coordinator of one run. For one event loop.

    Args:
        rounds: The core. Only this service may use it.
        books: The books of the aggregator.
        aggregator_url: The URL of the aggregator for participants.
        observer: Receives every fact, in order.
        save: Writes the state that must survive a restart; raises `OSError`. None: it does not survive.
        archive: The archive of runs and rounds. Default: one in memory.
        trace: Returns the fields of a training request that refer to the trace of the open round.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        rounds: Rounds,
        books: Books,
        *,
        aggregator_url: str,
        observer: Observer,
        save: Callable[[Memory], None] | None = None,
        archive: Archive | None = None,
        trace: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rounds = rounds
        self._books = books
        self.aggregator_url = aggregator_url
        self._observer = observer
        self._save = save
        self._saved: Memory | None = None
        self._archive = archive or Archive()
        self._recorder = Recorder(self._archive, rounds)
        self._silos = Silos(rounds.present)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="fedround-memory")
        """One thread, so that older state never overwrites newer state."""
        self._trace = trace
        self._clock = clock
        self._wake = asyncio.Event()
        """Set when the core may have a call to the books."""
        self._unsaved = asyncio.Event()
        """Set when the state is to be saved."""
        self._unsaved.set()
        self._end_saved = False
        """Whether the last saved state is that of a complete run."""
        self._save_at = -math.inf
        """When the next completed round is to be saved."""
        self._reachable = asyncio.Event()
        self._poll: asyncio.Timeout | None = None
        """The time-out of the current call that reads the ledger."""
        self._best: int | None = None
        """The round of the best model, as the last call has sent it to the aggregator."""
        self._ended = False
        self._missing_metrics = MissingMetrics(rounds.plan)
        self._delays: Iterator[float] | None = None
        """Delays between calls in the current outage; None: there is no outage."""
        self._faults: tuple[str, ...] = ()
        """Why the aggregator is not ready."""
        self._long_polls = LongPolls(min(MAX_HOLD, HOLD_RATIO * rounds.plan.heartbeat_timeout))

    async def run(self) -> None:
        """Run until cancelled. Then respond to all long polls, and save the state."""
        self._observer(events.RunStarted(self._rounds.run.id, self._rounds.run.name))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_ledger())
                tasks.create_task(self._follow_rounds())
                tasks.create_task(self._keep_writing())
        finally:
            self._long_polls.close()
            await self._write()
            self._writer.shutdown(wait=False)
            self._ended = True

    # Requests of participants

    def join(
        self,
        name: str,
        ordinal: int | None = None,
        *,
        extended: bool = False,
        owner: str = "",
        evaluates: bool = False,
        claim: wire.Claim | None = None,
    ) -> RendezVous:
        """Register a participant, unless training is complete. For the arguments see `Rounds.join`. Raises `NoSeat`."""
        now = self._clock()
        try:
            participant = self._rounds.join(now, name, ordinal, extended=extended, owner=owner, evaluates=evaluates, claim=claim)
        finally:
            self._changed()
        return RendezVous(None) if participant is None else RendezVous(participant.id, participant.ordinal)

    def known(self, id: str) -> tuple[str, str] | None:
        """Return a key for the throttling of a registered participant: its id and the open attempt; None for an unknown id."""
        attempt = self._rounds.attempt
        return None if self._rounds.present.find(id) is None else (id, attempt.id if attempt else "")

    def authorize(self, id: str, owner: str) -> None:
        """Check that a request with the proved identity `owner` may act for this id. Raises `Forbidden`."""
        self._rounds.present.authorize(id, owner)

    def note_certificate(self, id: str, validity: tuple[float, float] | None) -> None:
        """Note start and end of the client certificate that a participant uses, in Unix time; None: it uses none."""
        self._silos.note_certificate(id, validity)

    async def heartbeat(
        self,
        id: str,
        *,
        wait: float = 0.0,
        trouble: str = "",
        phase: str = "",
        hung_up: Callable[[], Awaitable[object]] = never,
    ) -> Heartbeat:
        """Return the response to a heartbeat, with all additions to the protocol.

        The response `stand_by` waits until there is another one, until the next heartbeat of the same id, or until the participant
        disconnects.

        Args:
            id: Id of the participant.
            wait: Maximum seconds for which the response may wait (long poll); 0: it must not wait.
            trouble: Why the participant cannot reach the aggregator; empty: it can.
            phase: The participant's phase of the round (`wire.PHASES`).
            hung_up: Returns when the participant disconnects.

        Raises:
            Busy, NoSeat: See `Rounds.heartbeat`.
        """
        self._long_polls.release(id)
        answer = self._answer(id, idle=wait > 0)  # only idle participants make long polls
        self._rounds.present.trouble(id, trouble)
        if self._rounds.attempt is not None:
            self._rounds.attempt.report(id, phase, self._clock())
        wait = self._long_polls.allowed(wait)
        if wait <= 0 or answer.state is not HeartbeatState.STAND_BY:
            return answer
        return self._answer(id, idle=True, held=True) if await self._long_polls.hold(id, wait, hung_up) else answer

    def start_training(self, id: str) -> StartTraining:
        """Return the training request of a selected participant: the aggregator's URL, the upload permission, the additions."""
        token = self._rounds.start_training(id)
        if token is None:
            return StartTraining(None, None)
        seat = self._rounds.present.get(id)
        additions = self._additions(id) if seat is not None and seat.extended else {}
        return StartTraining(self.aggregator_url, token, **additions)

    def leave(self, id: str, failure: str = "") -> None:
        """Remove a participant that leaves. `failure`: why it failed, if it did. Ignore an unknown id."""
        self._rounds.leave(self._clock(), id, failure)
        self._changed()

    @property
    def current(self) -> Run:
        """The current run, which may be complete."""
        return self._rounds.run

    async def archive(self) -> Archive:
        """Return the archive, with all completed rounds. Read it on another thread: a long history must not delay heartbeats."""
        if not self._ended:  # then the archive is complete
            await self._write()
        return self._archive

    def status(self) -> dict[str, Any]:
        """Return the content of `/status`."""
        return status(self._rounds, self._clock(), self._silos, reachable=self._reachable.is_set(), faults=self._faults)

    def by_name(self, most: int) -> dict[str, Any]:
        """Return the values of metrics of at most `most` participants, by name."""
        return by_name(self._rounds, self._silos, self._clock(), time.time(), most)

    def _answer(self, id: str, *, idle: bool, held: bool = False) -> Heartbeat:
        try:
            answer = self._rounds.heartbeat(self._clock(), id, idle=idle, held=held)
        finally:
            if self._emit():
                self._wake.set()
        if answer.state is HeartbeatState.FINISH and not self._end_saved:
            # Participants leave after `finish`. A coordinator that is killed before it saves the end would need them again.
            seat = self._rounds.present.find(id)
            return Heartbeat(HeartbeatState.STAND_BY, counted=seat.counted if seat else None)
        return answer if answer.token is None else replace(answer, url=self.aggregator_url, **self._additions(id))

    def _additions(self, id: str) -> Mapping[str, Any]:
        """Return the additions of a training request to the protocol."""
        rounds, attempt = self._rounds, self._rounds.attempt
        member = attempt.members.get(id) if attempt else None
        asked = {"evaluate": member is not None and member.evaluates, "train": attempt is None or attempt.train}
        shard = member.shard if member and member.asks else None
        config = config_of(rounds.plan.config, rounds.round - rounds.run.first)
        return {**self._trace(), "run": wire.Run(rounds.run.id, rounds.run.name, rounds.end, config, **asked, shard=shard)}

    def _changed(self) -> None:
        self._emit()
        self._wake.set()

    def _emit(self) -> bool:
        """Emit the facts since the last call. Return False if there were none."""
        facts = self._rounds.take_facts()
        for fact in facts:
            match fact:
                case events.Selected(ids=ids):
                    for id in ids:
                        self._long_polls.release(id)
                case events.ParticipantGone(id=id) | events.ParticipantProbed(id=id):
                    self._long_polls.release(id)
                case events.Evaluated() | events.ServerEvaluated():
                    self._report_best()
            self._observer(fact)
            for missing in self._missing_metrics.note(fact, self._rounds.run.first):
                self._observer(missing)
            self._recorder.record(fact)
            self._silos.note(self._clock(), fact)
            if isinstance(fact, SAVED_IMMEDIATELY) or (isinstance(fact, events.RoundCompleted) and self._clock() >= self._save_at):
                self._unsaved.set()
        return bool(facts)

    def _report_best(self) -> None:
        """Report the best model to the aggregator."""
        best = self._rounds.ending.best
        if best is not None and best.round != self._best and self._poll is not None:
            self._poll.reschedule(0.0)

    async def _keep_writing(self) -> None:
        """Save the state whenever it changes. The file may lag behind quick rounds, because the books know which are over."""
        while True:
            await self._unsaved.wait()
            if not await self._write():
                await asyncio.sleep(RETRY_MOST)

    async def _write(self) -> bool:
        """Write the current state and the archive to disk. Return False if that fails; then `_keep_writing` retries."""
        self._unsaved.clear()
        memory, ended, began = self._rounds.memory, self._rounds.complete, time.perf_counter()
        self._save_at = self._clock() + SAVE_INTERVAL

        def write() -> None:
            self._recorder.write()
            if self._save is not None and memory != self._saved:
                self._save(memory)
                self._saved = memory

        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except OSError as error:
            self._unsaved.set()
            self._observer(events.SaveFailed("the state of the run", str(error)))
            return False
        self._end_saved = ended
        if ended:
            self._long_polls.release_all()
        if self._save is not None:
            self._observer(events.StateSaved(time.perf_counter() - began))
        return True

    # The books

    async def _follow_ledger(self) -> None:
        while True:
            try:
                # In an outage, send no incarnation: then the aggregator responds immediately, and the outage is over.
                await self._read_ledger(self._rounds.incarnation if self._delays is None else "")
            except ExchangeError as error:
                await self._unreachable("ledger", error)

    async def _read_ledger(self, incarnation: str) -> None:
        poll = self._poll = asyncio.timeout(None)
        try:
            async with poll:
                self._best = self._rounds.ending.best.round if self._rounds.ending.best else None
                page = await self._books.ledger(incarnation, self._rounds.after, self._best)
        except TimeoutError:
            return  # `_poll` was rescheduled: read again, with the newest arguments
        finally:
            self._poll = None
        self._reached()
        self._faults = page.faults
        for missing in self._missing_metrics.read(page):
            self._observer(missing)
        self._rounds.recorded(self._clock(), page)
        self._changed()
        if self._recorder.record_page(page):
            self._unsaved.set()

    async def _follow_rounds(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock()
            self._rounds.tick(now)
            self._emit()
            call = self._rounds.pending(now)
            if call is None:
                await self._idle(now)
                continue
            # Save before the call: after a crash, the state must have every participant whose update may have been counted.
            if isinstance(call, Open | Admit) and not await self._write():
                await _set(self._wake, within=RETRY_MOST)
                continue
            try:
                await self._carry_out(call)
            except ExchangeError as error:
                # Then ask the core again, because another call may be due.
                await self._unreachable(type(call).__name__.lower(), error)

    async def _idle(self, since: float) -> None:
        within = min(max(self._rounds.next_deadline() - since, 0.0), MAX_SLEEP)
        await _set(self._wake, within=within)
        now = self._clock()
        if (late := now - since - within) > SUSPENDED:
            self._rounds.suspended(now, late)

    async def _carry_out(self, call: Call) -> None:
        try:
            answer = await carry_out(self._books, call)
        except UnknownAttempt:
            self._rounds.lost(call.attempt)
            if self._poll is not None:
                self._poll.reschedule(0.0)
        else:
            self._reached()
            self._rounds.answered(self._clock(), call, answer)

    def _reached(self) -> None:
        self._delays = None
        if not self._reachable.is_set():
            self._reachable.set()
            self._observer(events.AggregatorReached())

    async def _unreachable(self, operation: str, error: ExchangeError) -> None:
        """Report the start of an outage. Wait until the next call is due, or until another task has reached the aggregator."""
        self._reachable.clear()
        if self._delays is None:
            self._delays = delays(random, first=RETRY_FIRST, most=RETRY_MOST, spread=0.5)
            self._observer(events.AggregatorUnreachable(operation, str(error)))
        await _set(self._reachable, within=next(self._delays))


async def _set(event: asyncio.Event, *, within: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within if within < math.inf else None):
            await event.wait()
