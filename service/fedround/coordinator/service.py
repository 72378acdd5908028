"""The coordinator at work: does what `Rounds` asks of the books, tells what happened, holds heartbeats. It decides nothing."""

import asyncio
import logging
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
from fedround.coordinator.plan import Memory
from fedround.coordinator.recorder import Recorder
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.run import Run, config_of
from fedround.coordinator.silos import Silos
from fedround.coordinator.status import by_name, status
from fedround.coordinator.wanted import Wanted
from fedround.errors import ExchangeError, UnknownAttempt
from fedround.events import Observer

LOG = logging.getLogger(__name__)

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
"""Facts after which the memory is written down at once; after a round, when what is written is older than ..."""
STALE = 1.0
"""... so many seconds."""
TURN = 1.0
"""Seconds after which the loop turns, whether or not there is something to do: one that turns later by ..."""
STOOD_STILL = 2.0
"""... so many did not run meanwhile."""
HOLD_RATIO = 0.9
"""Part of the heartbeat time-out for which a heartbeat is held at most: nobody shall be silent for too long because of us."""


async def never() -> None:
    """Wait for ever: a participant that does not hang up."""
    await asyncio.Future()


class CoordinatorService:
    """What participants ask for, answered by `rounds`; what `rounds` asks for, answered by `books`. For one event loop.

    Args:
        rounds: The core. Nobody else may use it.
        books: The aggregator's.
        aggregator_url: Where participants are sent.
        observer: Told of every fact, in order.
        trace: Gives the fields that tell of the open round's trace, for participants that are ours.
        keep: Writes down what shall be known after a restart; raises `OSError`.
        archive: Where all runs and rounds are kept.
        clock: Gives monotonic seconds.
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
        """One thread: what is older is never written over what is newer."""
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
        """The round of the best model, as the aggregator was told."""
        self._ended = False
        self._wanted = Wanted(rounds.plan.goal)
        self._delays: Iterator[float] | None = None
        """Of the outage that goes on; None while there is none."""
        self._holds: dict[str, asyncio.Timeout] = {}
        self._faults: tuple[str, ...] = ()
        """Of the aggregator, as far as it could say."""
        self._longest_hold = min(MAX_HOLD, HOLD_RATIO * rounds.plan.heartbeat_timeout)

    async def run(self) -> None:
        """Work until cancelled. Then every held heartbeat is answered, and none is held any more."""
        self._observer(events.RunEntered(self._rounds.run.id, self._rounds.run.name))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_ledger())
                tasks.create_task(self._follow_rounds())
                tasks.create_task(self._keep_up())
        finally:
            self._longest_hold = 0.0
            self._end_holds()
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
        """What the participant shall do, with every addition to the protocol.

        An answer that would be `stand_by` is held until it is another one, for up to `wait` seconds, and no longer than until the
        next heartbeat of the same id, or until `hung_up()` returns. `trouble`: what keeps the participant from the aggregator.
        `phase`: what it does in a round (`wire.PHASES`). Raises `Busy` or `NoSeat`.
        """
        self._end_hold(id)
        # Only one who waits asks for an answer to be held.
        answer = self._answer(id, idle=wait > 0)
        self._rounds.present.trouble(id, trouble)
        if self._rounds.attempt is not None:
            self._rounds.attempt.report(id, phase, self._clock())
        wait = min(wait, self._longest_hold)
        if wait <= 0 or answer.state is not HeartbeatState.STAND_BY:
            return answer
        # One object and one timer for each of thousands: to end a hold is to say that its time is over.
        hold = self._holds[id] = asyncio.timeout(wait)
        try:
            async with hold:
                await hung_up()
            return answer
        except TimeoutError:
            return self._answer(id, idle=True, held=True)
        finally:
            if self._holds.get(id) is hold:
                del self._holds[id]

    def start_training(self, id: str) -> StartTraining:
        """Where to go with which token. It was admitted before the participant was told of the round, so nobody has to be asked."""
        token = self._rounds.start_training(id)
        if token is None:
            return StartTraining(None, None)
        seat = self._rounds.present.get(id)
        return StartTraining(self.aggregator_url, token, **(self._told(id) if seat is not None and seat.extended else {}))

    def leave(self, id: str, failure: str = "") -> None:
        """Remove a participant that leaves, for a `failure` if there is one. An unknown one is gone already."""
        self._rounds.leave(self._clock(), id, failure)
        self._changed()

    @property
    def current(self) -> Run:
        """The run that goes on, or was completed last."""
        return self._rounds.run

    async def runs(self) -> list[dict[str, Any]]:
        """Return all runs, the oldest first."""
        await self._bring_up_to_date()
        return await asyncio.to_thread(self._archive.runs)

    async def history(self, run: str) -> str | None:
        """Return a run and its rounds as JSON; None if no run has that name or id."""
        await self._bring_up_to_date()
        # A long history takes a while: not on the event loop, which answers heartbeats.
        return await asyncio.to_thread(self._archive.history, run)

    async def _bring_up_to_date(self) -> None:
        if not self._ended:  # afterwards nothing happens
            await self._write_down_or_tell()

    def status(self) -> dict[str, Any]:
        """The state as JSON-able data, ids cut."""
        return status(self._rounds, self._clock(), self._silos, reachable=self._reachable.is_set(), faults=self._faults)

    def by_name(self, most: int) -> dict[str, Any]:
        """Return what metrics show of at most so many participants by name."""
        return by_name(self._rounds, self._silos, self._clock(), time.time(), most)

    def _answer(self, id: str, *, idle: bool, held: bool = False) -> Heartbeat:
        try:
            answer = self._rounds.heartbeat(self._clock(), id, idle=idle, held=held)
        finally:
            if self._tell():
                self._kick.set()
        return answer if answer.token is None else replace(answer, url=self.aggregator_url, **self._told(id))

    def _told(self, id: str) -> Mapping[str, Any]:
        """Return what a training request says to a participant of ours."""
        rounds, attempt = self._rounds, self._rounds.attempt
        member = attempt.members.get(id) if attempt else None
        asked = {"evaluate": member is not None and member.evaluates, "train": attempt is None or attempt.train}
        shard = member.shard if member and member.asks else None
        config = config_of(rounds.plan.config, rounds.round - rounds.run.first)
        return {**self._trace(), "run": wire.Run(rounds.run.id, rounds.run.name, rounds.end, config, **asked, shard=shard)}

    def _end_hold(self, id: str) -> None:
        hold = self._holds.pop(id, None)
        if hold is not None and not hold.expired():
            hold.reschedule(0.0)

    def _end_holds(self) -> None:
        for id in tuple(self._holds):
            self._end_hold(id)

    # What happens

    def _changed(self) -> None:
        self._tell()
        self._kick.set()

    def _tell(self) -> bool:
        """Tell what happened; False where nothing did."""
        facts = self._rounds.take_facts()
        for fact in facts:
            match fact:
                case events.Selected(ids=ids):
                    for id in ids:
                        self._end_hold(id)
                case events.ParticipantGone(id=id) | events.ParticipantDoubted(id=id):
                    self._end_hold(id)
                case events.TrainingCompleted():
                    self._end_holds()
                case events.Evaluated() | events.ServerEvaluated():
                    self._tell_of_best(fact)
            self._observer(fact)
            self._recorder.fact(fact)
            self._silos.note(self._clock(), fact)
            if isinstance(fact, WORTH_KEEPING) or (isinstance(fact, events.RoundCompleted) and self._clock() >= self._stale_from):
                self._news.set()
        return bool(facts)

    def _tell_of_best(self, fact: events.Evaluated | events.ServerEvaluated) -> None:
        """Have the aggregator know the best model, and operators a metric that there is not."""
        best = self._rounds.best
        if best is not None and best.round != self._best and self._poll is not None:
            self._poll.reschedule(0.0)
        self._wanted.evaluated(fact)

    async def _keep_up(self) -> None:
        """Keep the memory on disk. Of rounds that are quick it may be behind: which are over, the books know."""
        while True:
            await self._news.wait()
            if not await self._write_down_or_tell():
                await asyncio.sleep(RETRY_MOST)

    async def _write_down_or_tell(self) -> bool:
        try:
            await self._write_down()
        except OSError as error:
            self._observer(events.NotKept("who takes part", str(error)))
            return False
        return True

    async def _write_down(self) -> None:
        """Have the memory on disk as it is now. Raises `OSError`, and leaves it to `_keep_up` to tell so and to try again."""
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
            self._observer(events.WasKept(time.perf_counter() - began))

    # The books

    async def _follow_ledger(self) -> None:
        while True:
            try:
                # In an outage ask like one who knows nothing, and is answered at once: we want to know when it is over.
                await self._read_ledger(self._rounds.incarnation if self._delays is None else "")
            except ExchangeError as error:
                await self._unreachable("ledger", error)

    async def _read_ledger(self, incarnation: str) -> None:
        poll = self._poll = asyncio.timeout(None)
        try:
            async with poll:
                self._best = self._rounds.best.round if self._rounds.best else None
                page = await self._books.ledger(incarnation, self._rounds.after, self._best)
        except TimeoutError:
            return  # to ask again, like one who knows nothing
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
                # Ahead: who may be told that its update was counted is known to have a part, whenever we die.
                try:
                    await self._write_down()
                except OSError:
                    await _set(self._kick, within=RETRY_MOST)
                    continue
            try:
                await self._carry_out(call)
            except ExchangeError as error:
                # Not the same call again: what is due may have changed by then.
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
            self._observer(events.BooksReached())

    async def _unreachable(self, operation: str, error: ExchangeError) -> None:
        """Tell of an outage once; wait until it is time to try again, or until the other of the two loops has reached the books."""
        self._reachable.clear()
        if self._delays is None:
            self._delays = delays(random, first=RETRY_FIRST, most=RETRY_MOST, spread=0.5)
            self._observer(events.BooksUnreachable(operation, str(error)))
        await _set(self._reachable, within=next(self._delays))


async def _set(event: asyncio.Event, *, within: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(within if within < math.inf else None):
            await event.wait()
