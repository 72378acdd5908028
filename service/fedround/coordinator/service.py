"""The coordinator's service: it answers participants, calls the books as `Rounds` asks, and emits facts. It decides nothing."""

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
from fedround.coordinator.holds import Holds
from fedround.coordinator.plan import Memory
from fedround.coordinator.recorder import Recorder
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.run import Run, config_of
from fedround.coordinator.silos import Silos
from fedround.coordinator.status import by_name, status
from fedround.coordinator.wanted import Wanted
from fedround.errors import ExchangeError, UnknownAttempt
from fedround.events import Observer

RETRY_FIRST = 0.1
RETRY_MOST = 1.0
"""Seconds between two calls to books that do not answer."""
WORTH_KEEPING = (
    events.ParticipantJoined,
    events.ParticipantGone,
    events.ServerEvaluated,
    events.TrainingCompleted,
    events.RolledBack,
)
"""Facts after which the memory is written down immediately; after a round, when what is written is older than ..."""
STALE = 1.0
"""... so many seconds."""
TURN = 1.0
"""Seconds after which the loop turns, whether or not there is something to do: one that turns later by ..."""
STOOD_STILL = 2.0
"""... so many did not run meanwhile."""
HOLD_RATIO = 0.9
"""Longest hold of a heartbeat as a share of the heartbeat time-out, so that a hold never causes a time-out."""


async def never() -> None:
    """Wait for ever: a participant that does not hang up."""
    await asyncio.Future()


class CoordinatorService:
    """Answers participants from `rounds`, and carries out the calls of `rounds` at `books`. For one event loop.

    Args:
        rounds: The core. Only this service may use it.
        books: The aggregator's.
        aggregator_url: The URL that participants are sent to.
        observer: Receives every fact, in order.
        trace: Returns the fields of a training request that name the open round's trace.
        keep: Persists what must survive a restart; raises `OSError`.
        archive: Holds all runs and rounds.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        rounds: Rounds,
        books: Books,
        *,
        aggregator_url: str,
        observer: Observer,
        keep: Callable[[Memory], None] | None = None,
        archive: Archive | None = None,
        trace: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rounds = rounds
        self._books = books
        self.aggregator_url = aggregator_url
        self._observer = observer
        self._keep = keep
        self._kept: Memory | None = None
        self._archive = archive or Archive()
        self._recorder = Recorder(self._archive, rounds)
        self._silos = Silos(rounds.present)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="fedround-memory")
        """One thread, so that older state never overwrites newer state."""
        self._trace = trace
        self._clock = clock
        self._kick = asyncio.Event()
        self._news = asyncio.Event()
        """The memory is to be written down."""
        self._news.set()
        self._stale_from = -math.inf
        self._reachable = asyncio.Event()
        self._poll: asyncio.Timeout | None = None
        """Of the ledger."""
        self._best: int | None = None
        """The round of the best model that the aggregator knows."""
        self._ended = False
        self._wanted = Wanted(rounds.plan.goal)
        self._delays: Iterator[float] | None = None
        """Delays of the current outage; None without one."""
        self._faults: tuple[str, ...] = ()
        """Faults that the aggregator reports."""
        self._holds = Holds(min(MAX_HOLD, HOLD_RATIO * rounds.plan.heartbeat_timeout))

    async def run(self) -> None:
        """Work until cancelled. Then answer every held heartbeat, and hold no more."""
        self._observer(events.RunStarted(self._rounds.run.id, self._rounds.run.name))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_ledger())
                tasks.create_task(self._follow_rounds())
                tasks.create_task(self._keep_up())
        finally:
            self._holds.close()
            await self._write_down_or_tell()
            self._writer.shutdown(wait=False)
            self._ended = True

    # What participants ask

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
        """Register a participant, until training is complete.

        `ordinal` is the one it held before, `owner` its proved identity, `claim` what it says about shards; with `extended` it
        understands our additions. Raises `NoSeat`.
        """
        now = self._clock()
        try:
            participant = self._rounds.join(now, name, ordinal, extended=extended, owner=owner, evaluates=evaluates, claim=claim)
        finally:
            self._changed()
        return RendezVous(None) if participant is None else RendezVous(participant.id, participant.ordinal)

    def known(self, id: str) -> tuple[str, str] | None:
        """A key of a registered participant and of the attempt that is open; None for others."""
        attempt = self._rounds.attempt
        return None if self._rounds.present.find(id) is None else (id, attempt.id if attempt else "")

    def authorize(self, id: str, owner: str) -> None:
        """Check that a request with the proved identity `owner` may act for this id. Raises `Forbidden`."""
        self._rounds.present.authorize(id, owner)

    async def heartbeat(
        self,
        id: str,
        *,
        wait: float = 0.0,
        trouble: str = "",
        phase: str = "",
        hung_up: Callable[[], Awaitable[object]] = never,
    ) -> Heartbeat:
        """Return the answer to a heartbeat, with every addition to the protocol.

        The answer `stand_by` is held for up to `wait` seconds: until there is another answer, until the next heartbeat of the same
        id, or until `hung_up()` returns. `trouble`: why the participant cannot reach the aggregator. `phase`: its phase of the
        round (`wire.PHASES`). Raises `Busy` or `NoSeat`.
        """
        self._holds.release(id)
        # An idle participant asks for its answer to be held.
        answer = self._answer(id, idle=wait > 0)
        self._rounds.present.trouble(id, trouble)
        if self._rounds.attempt is not None:
            self._rounds.attempt.report(id, phase, self._clock())
        wait = self._holds.allowed(wait)
        if wait <= 0 or answer.state is not HeartbeatState.STAND_BY:
            return answer
        return self._answer(id, idle=True, held=True) if await self._holds.hold(id, wait, hung_up) else answer

    def start_training(self, id: str) -> StartTraining:
        """Return the aggregator's URL and the token, which the books admitted before the participant heard of the round."""
        token = self._rounds.start_training(id)
        if token is None:
            return StartTraining(None, None)
        seat = self._rounds.present.get(id)
        return StartTraining(self.aggregator_url, token, **(self._told(id) if seat is not None and seat.extended else {}))

    def leave(self, id: str, failure: str = "") -> None:
        """Remove a participant that leaves, for a `failure` if there is one. Ignore an unknown id."""
        self._rounds.leave(self._clock(), id, failure)
        self._changed()

    @property
    def current(self) -> Run:
        """The current run, or the last one."""
        return self._rounds.run

    async def runs(self) -> list[dict[str, Any]]:
        """Return all runs, the oldest first."""
        await self._bring_up_to_date()
        return await asyncio.to_thread(self._archive.runs)

    async def history(self, run: str) -> str | None:
        """Return a run and its rounds as JSON; None if no run has that name or id."""
        await self._bring_up_to_date()
        # A long history takes a while, and the event loop answers heartbeats.
        return await asyncio.to_thread(self._archive.history, run)

    async def _bring_up_to_date(self) -> None:
        if not self._ended:  # afterwards nothing happens
            await self._write_down_or_tell()

    def status(self) -> dict[str, Any]:
        """Return the state as JSON-able data with short ids."""
        return status(self._rounds, self._clock(), self._silos, reachable=self._reachable.is_set(), faults=self._faults)

    def by_name(self, most: int) -> dict[str, Any]:
        """Return what the metrics show of at most `most` participants, by name."""
        return by_name(self._rounds, self._silos, self._clock(), time.time(), most)

    def _answer(self, id: str, *, idle: bool, held: bool = False) -> Heartbeat:
        try:
            answer = self._rounds.heartbeat(self._clock(), id, idle=idle, held=held)
        finally:
            if self._tell():
                self._kick.set()
        return answer if answer.token is None else replace(answer, url=self.aggregator_url, **self._told(id))

    def _told(self, id: str) -> Mapping[str, Any]:
        """Return the additions to a training request."""
        rounds, attempt = self._rounds, self._rounds.attempt
        member = attempt.members.get(id) if attempt else None
        asked = {"evaluate": member is not None and member.evaluates, "train": attempt is None or attempt.train}
        shard = member.shard if member and member.asks else None
        config = config_of(rounds.plan.config, rounds.round - rounds.run.first)
        return {**self._trace(), "run": wire.Run(rounds.run.id, rounds.run.name, rounds.end, config, **asked, shard=shard)}

    def _changed(self) -> None:
        self._tell()
        self._kick.set()

    def _tell(self) -> bool:
        """Emit the facts since the last call. Return False if there were none."""
        facts = self._rounds.take_facts()
        for fact in facts:
            match fact:
                case events.Selected(ids=ids):
                    for id in ids:
                        self._holds.release(id)
                case events.ParticipantGone(id=id) | events.ParticipantProbed(id=id):
                    self._holds.release(id)
                case events.TrainingCompleted():
                    self._holds.release_all()
                case events.Evaluated() | events.ServerEvaluated():
                    self._tell_of_best(fact)
            self._observer(fact)
            self._recorder.fact(fact)
            self._silos.note(self._clock(), fact)
            if isinstance(fact, WORTH_KEEPING) or (isinstance(fact, events.RoundCompleted) and self._clock() >= self._stale_from):
                self._news.set()
        return bool(facts)

    def _tell_of_best(self, fact: events.Evaluated | events.ServerEvaluated) -> None:
        """Report the best model to the aggregator, and check that the wanted metric exists."""
        best = self._rounds.ending.best
        if best is not None and best.round != self._best and self._poll is not None:
            self._poll.reschedule(0.0)
        self._wanted.evaluated(fact)

    async def _keep_up(self) -> None:
        """Keep the memory on disk. It may lag behind quick rounds: the books know which are over."""
        while True:
            await self._news.wait()
            if not await self._write_down_or_tell():
                await asyncio.sleep(RETRY_MOST)

    async def _write_down_or_tell(self) -> bool:
        try:
            await self._write_down()
        except OSError as error:
            self._observer(events.SaveFailed("the state of the run", str(error)))
            return False
        return True

    async def _write_down(self) -> None:
        """Write the current memory to disk. Raises `OSError`; `_keep_up` then tries again."""
        self._news.clear()
        memory, began = self._rounds.memory, time.perf_counter()
        self._stale_from = self._clock() + STALE

        def write() -> None:
            self._recorder.write()
            if self._keep is not None and memory != self._kept:
                self._keep(memory)
                self._kept = memory

        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except OSError:
            self._news.set()
            raise
        if self._keep is not None:
            self._observer(events.StateSaved(time.perf_counter() - began))

    # The books

    async def _follow_ledger(self) -> None:
        while True:
            try:
                # In an outage, ask without an incarnation: the answer comes immediately, and shows that the outage is over.
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
            return  # the next call asks again
        finally:
            self._poll = None
        self._reached()
        self._faults = page.faults
        self._wanted.read(page)
        self._rounds.recorded(self._clock(), page)
        self._changed()
        if self._recorder.page(page):
            self._news.set()

    async def _follow_rounds(self) -> None:
        while True:
            self._kick.clear()
            now = self._clock()
            self._rounds.tick(now)
            self._tell()
            call = self._rounds.pending(now)
            if call is None:
                await self._idle(now)
                continue
            if isinstance(call, Open | Admit):
                # Before the call: after a crash we must know every participant whose update may have been counted.
                try:
                    await self._write_down()
                except OSError:
                    await _set(self._kick, within=RETRY_MOST)
                    continue
            try:
                await self._carry_out(call)
            except ExchangeError as error:
                # Do not repeat this call: another one may be due by then.
                await self._unreachable(type(call).__name__.lower(), error)

    async def _idle(self, since: float) -> None:
        within = min(max(self._rounds.next_deadline() - since, 0.0), TURN)
        await _set(self._kick, within=within)
        now = self._clock()
        if (late := now - since - within) > STOOD_STILL:
            self._rounds.stood_still(now, late)

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
        """Report an outage once. Wait until the next try is due, or until the other loop has reached the books."""
        self._reachable.clear()
        if self._delays is None:
            self._delays = delays(random, first=RETRY_FIRST, most=RETRY_MOST, spread=0.5)
            self._observer(events.AggregatorUnreachable(operation, str(error)))
        await _set(self._reachable, within=next(self._delays))


async def _set(event: asyncio.Event, *, within: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within if within < math.inf else None):
            await event.wait()
