"""The supervisor: it runs the training code in a worker process, which it restarts. This module does not import the training code.

One thread starts each worker and receives its messages for as long as the process lives. The training call waits for that thread.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from random import Random
from typing import Any, Self

from fedround import events
from fedround.common.backoff import delays
from fedround.errors import (
    ConfigurationError,
    DataDirectoryHeld,
    DeserializationError,
    FedroundError,
    ParticipantError,
    SerializationError,
    TrainingError,
)
from fedround.events import Observer
from fedround.participant import reports
from fedround.participant.channel import BadMessage
from fedround.participant.memory import BadMemory, Memory, Piece
from fedround.participant.process import Cause, End, Process, end_of
from fedround.participant.round import Round

LOG = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds for training code to return when the participant stops, after its drain time-out."""
IDLE_GRACE = 5.5
"""Seconds for an idle worker to end. It gives the threads of the training code 5 of them."""
EOF_GRACE = 1.0
"""Seconds between a worker's end of messages and its exit."""
PAUSE, PAUSE_MAX = 1.0, 30.0
"""Seconds before a restart: the first delay and the maximum. The first worker that ends is replaced immediately."""
MAX_FAILURES = 2
"""Consecutive failed trainings of one worker, after which another one replaces it.

The reason may be what training code left in the process: open files, a broken GPU context, a changed library.
"""

_ERRORS: Mapping[str, type[ParticipantError]] = {
    error.__name__: error for error in (DeserializationError, TrainingError, SerializationError, ParticipantError)
}
_REFUSALS: Mapping[str, type[FedroundError]] = {error.__name__: error for error in (ConfigurationError, DataDirectoryHeld)}
"""Errors because of which a worker cannot create the participant, although the training code did not fail."""


class State(StrEnum):
    """The state of the worker."""

    STARTING = "starting"
    IDLE = "idle"
    TRAINING = "training"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class Supervisor:
    """The `Trainer` that trains in a worker process.

    Args:
        recipe: The worker's first message: how to create the participant, and how to log.
    """

    def __init__(self, recipe: Mapping[str, object]) -> None:
        self._recipe = recipe
        self._observe: Observer = lambda _fact: None
        self._traceparent: Callable[[], str | None] = lambda: None
        self._changed = threading.Condition()
        self._state = State.STARTING
        self._process: Process | None = None
        self._unusable: FedroundError | None = None
        self._serial = 0
        self._round: Round | None = None
        self._update: Future[Sequence[Piece]] | None = None
        """Result of the current training, which waits for a worker or runs."""
        self._sent = False
        """Whether the worker has the current training."""
        self._phases: list[tuple[str, float]] = []
        """Open phases of the round in the worker, with their start times."""
        self._failures = 0
        """Consecutive failed trainings of this worker."""
        self._ending: End | None = None
        """Reason why the supervisor ends the worker."""
        self._closed = threading.Event()
        self._pauses = self._new_pauses()
        self.evaluates = False
        self.make_sink: Callable[[], Memory] = Memory.create
        """See `Trainer` and `ServiceTrainer`."""
        self._restarts = 0
        self._last_end = ""
        self._thread = threading.Thread(target=self._run, name="fedround-worker", daemon=True)

    def __enter__(self) -> Self:
        """Start the first worker in the background."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attach(self, observe: Observer, traceparent: Callable[[], str | None]) -> None:
        """Report facts to `observe` from now on, and make the worker's spans children of `traceparent`."""
        with self._changed:
            self._observe, self._traceparent = observe, traceparent
            if self._state is not State.STARTING:
                observe(events.WorkerReady())

    def started(self, within: float | None = None) -> bool:
        """Wait until the first worker has created the participant, and return whether it has.

        Raises:
            ConfigurationError: The class does not exist, or does not accept the options.
            ParticipantError: The class raised an exception, or ended the worker.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._state is not State.STARTING, within)
            if self._state is not State.STOPPED or self._unusable is None:
                return self._state is not State.STARTING
            raise self._unusable

    def interrupt(self) -> None:
        """End a worker that has not created the participant yet."""
        if self._state is State.STARTING:
            self.close()

    def status(self) -> dict[str, object]:
        """Return the worker's status as JSON-able data."""
        return {"state": self._state, "restarts": self._restarts, "last_end": self._last_end or None}

    # Trainer

    def __call__(self, round: Round, model: list[Any], /) -> Sequence[Piece]:
        """See `Trainer`. `model` has a `Memory`."""
        memory: Memory = model.pop()
        memory.seal()  # after training in place, the update is sent from it
        update = Future[Sequence[Piece]]()
        with self._changed:
            self._round, self._update, self._sent = round, update, False
            self._changed.wait_for(lambda: self._state is State.IDLE or update.done() or self._closed.is_set())
            if self._closed.is_set() and not update.done():
                update.set_exception(TrainingError("the participant is stopping"))
            if not update.done():
                self._start_training(round, memory)
        memory.close()
        return update.result()

    def _start_training(self, round: Round, memory: Memory) -> None:
        self._serial += 1
        self._state, self._sent = State.TRAINING, True
        message = {
            "kind": "train",
            "serial": self._serial,
            "round": round.number,
            "shard": [round.shard.index, round.shard.count],
            "run": round.run and asdict(round.run),
            "cancelled": round.cancelled,
            "traceparent": self._traceparent(),
        }
        self._send(message, memory)

    def cancel(self) -> None:
        """See `Trainer`."""
        with self._changed:
            if self._sent:
                self._send({"kind": "cancel", "serial": self._serial})

    def kill(self) -> None:
        """See `Trainer`."""
        with self._changed:
            if self._sent:
                self._end(End(Cause.CANCELLED, "was killed: it did not return after its round was cancelled"))
            elif self._update is not None and not self._update.done():
                self._update.set_exception(TrainingError("the training process did not start before its round was cancelled"))
                self._changed.notify_all()

    def close(self) -> None:
        """See `Trainer`. Returns when the worker has ended."""
        with self._changed:
            first, process = not self._closed.is_set(), self._process
            self._closed.set()
            self._changed.notify_all()
            idle = self._state is State.IDLE
            ready = idle or self._sent
            if first and process is not None and ready:
                self._send({"kind": "close"})
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            return
        if process is not None and not process.exited(0.0 if not ready else IDLE_GRACE if idle else GRACE):
            if first and ready:
                LOG.warning("the training code does not return: exiting without it")
            process.kill(stacks=ready and not idle)
        self._thread.join()

    # The thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                if (pause := self._run_worker()) is None:
                    return
                self._closed.wait(pause)
        except BaseException as error:
            LOG.exception("the supervisor failed")
            self._unusable = self._unusable or ParticipantError(f"the supervisor failed: {error}")
        finally:
            with self._changed:
                self._state = State.STOPPED
                self._fail(self._unusable or TrainingError("the participant is stopping"), waiting=True)
                self._changed.notify_all()

    def _run_worker(self) -> float | None:
        """Run one worker until it has ended. Return the seconds to wait before the next one; None: there is no next one."""
        try:
            process = Process()
        except OSError as error:
            return self._ended(End(Cause.UNUSABLE, f"cannot be started: {error.strerror}"))
        self._begin(process)
        end: End | None = None
        try:
            while (received := process.channel.receive()) is not None:
                self._received(*received)
                del received
        except (BadMessage, BadMemory) as error:
            end = End(Cause.LOST, f"was killed: it sent an invalid message ({error})")
        if end is None and not process.exited(EOF_GRACE) and self._ending is None:
            end = End(Cause.LOST, "was killed: it had closed its connection")
        with self._changed:
            self._process = None
        code = process.reap()
        return self._ended(self._ending or end or end_of(code))

    def _begin(self, process: Process) -> None:
        with self._changed:
            self._process, self._ending, self._unusable, self._failures = process, None, None, 0
            if self._closed.is_set():
                process.kill(grace=0.0)
            self._send({"kind": "make", **self._recipe})

    def _ended(self, end: End) -> float | None:
        with self._changed:
            if self._closed.is_set():
                return None
            if self._unusable is not None:
                end = End(Cause.UNUSABLE, f"could not create the participant: {self._unusable}")
            error = self._unusable or ParticipantError(f"the training process {end.text}")
            if self._state is State.STARTING:
                self._unusable = error
                return None
            self._fail(error, waiting=self._state is State.RESTARTING and end.cause is not Cause.FAILING)
            self._state = State.RESTARTING
            self._restarts += 1
            self._last_end = end.text
            pause = 0.0 if end.cause in (Cause.CANCELLED, Cause.FAILING) else next(self._pauses)
        self._observe(events.WorkerEnded(end.cause, end.text, pause))
        return pause

    def _fail(self, error: FedroundError, *, waiting: bool) -> None:
        """Fail the worker's training, or one that is `waiting` for a worker, and end its open phases."""
        round, update = self._round, self._update
        while self._phases and round is not None:
            phase, since = self._phases.pop()
            self._observe(events.PhaseEnded(round.number, phase, time.monotonic() - since, type(error).__name__))
        if update is not None and round is not None and (self._sent or waiting):
            failure = TrainingError(f"train failed in round {round.number}: {error}")
            failure.trace = getattr(error, "trace", "")
            self._settle(failure)

    def _received(self, message: Mapping[str, Any], memories: list[Memory]) -> None:
        match message:
            case {"kind": "ready", "evaluates": bool(evaluates)} if self._state in (State.STARTING, State.RESTARTING):
                with self._changed:
                    self.evaluates = evaluates
                    self._state = State.IDLE
                    self._observe(events.WorkerReady())
                    self._changed.notify_all()
            case {"kind": "unusable", "error": str(kind), "text": str(text), "trace": str(trace)}:
                self._unusable = _error(_REFUSALS, kind, text, trace)
            case {"kind": "reported", "serial": int(serial), "metrics": dict(metrics)}:
                if self._sent and serial == self._serial and self._round is not None:
                    with _checked():
                        self._round.report(**metrics)
            case {"kind": "facts", "facts": list(facts)} if self._sent:
                self._facts_received(facts)
            case {"kind": "trained" | "failed", "serial": int(serial), "facts": list(facts)} if (
                self._sent and serial == self._serial
            ):
                self._facts_received(facts)
                self._returned(message, memories)
            case _:
                raise BadMessage("unexpected message")

    def _facts_received(self, facts: Sequence[object]) -> None:
        round = self._round
        assert round is not None  # noqa: S101 the worker has one
        now = time.monotonic()  # one time for all facts, so that no phase ends before it began
        for fact in [reports.decode(round.number, encoded, now) for encoded in facts]:
            match fact:
                case events.PhaseBegan(_, phase, ago):
                    self._phases.append((phase, now - ago))
                case events.PhaseEnded(_, phase):
                    if not self._phases or self._phases.pop()[0] != phase:
                        raise BadMessage("the end of a phase that had not begun")
            if len(self._phases) > len(reports.PHASES):
                raise BadMessage("too many open phases")
            self._observe(fact)

    def _returned(self, message: Mapping[str, Any], memories: list[Memory]) -> None:
        if self._round is not None:
            self._round.flush()
        match message:
            case {"kind": "trained", "pieces": list(pieces), "evaluation": None | str() as evaluation}:
                result = [_piece(piece, memories) for piece in pieces]
                if evaluation is not None and self._round is not None:
                    with _checked():
                        found = json.loads(evaluation)
                        self._round.evaluated(found["samples"], found["metrics"])
                with self._changed:
                    self._pauses, self._failures = self._new_pauses(), 0
                    self._settle(result)
            case {"error": str(kind), "text": str(text), "trace": str(trace)}:
                with self._changed:
                    self._failures += 1
                    self._settle(_error(_ERRORS, kind, text, trace))
                    if self._failures >= MAX_FAILURES:
                        self._state = State.RESTARTING  # the next training waits for the new worker
                        self._end(End(Cause.FAILING, f"was replaced after {self._failures} consecutive failures"))
            case _:
                raise BadMessage("no result")

    def _settle(self, result: Sequence[Piece] | FedroundError) -> None:
        """End the current training with a result or an error."""
        update, self._update, self._round, self._sent = self._update, None, None, False
        if self._state is State.TRAINING:
            self._state = State.IDLE
        if update is not None and not update.done():
            if isinstance(result, FedroundError):
                update.set_exception(result)
            else:
                update.set_result(result)
        self._changed.notify_all()

    # Messages to the worker

    def _send(self, message: Mapping[str, object], *memories: Memory) -> None:
        """Send a message. A worker that does not read it is killed."""
        if self._process is not None:
            try:
                self._process.channel.send(message, memories)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended, or closed its connection: the receiving thread finds out why
            except OSError as error:
                self._end(End(Cause.LOST, f"was killed: it did not read its messages ({error.strerror or error})"))

    def _end(self, end: End) -> None:
        if self._process is not None:
            self._ending = self._ending or end
            stuck = end.cause is Cause.CANCELLED
            threading.Thread(target=self._process.kill, args=[stuck], name="fedround-worker-kill", daemon=True).start()

    def _new_pauses(self) -> Iterator[float]:
        yield 0.0
        yield from delays(Random().random, first=PAUSE, most=PAUSE_MAX, spread=0.2)


@contextmanager
def _checked() -> Iterator[None]:
    """Raise `BadMessage` for values of a message that do not fit."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadMessage(str(error)) from error


def _error(known: Mapping[str, type[FedroundError]], kind: str, text: str, trace: str) -> FedroundError:
    error = known.get(kind, ParticipantError)(text)
    if isinstance(error, ParticipantError):
        error.trace = trace
    return error


def _piece(piece: object, memories: Sequence[Memory]) -> Piece:
    match piece:
        case [int(number), int(offset), int(length)] if 0 <= number < len(memories):
            return memories[number].piece(offset, length)
    raise BadMessage("not a piece of an update")
