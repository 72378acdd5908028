"""The supervisor: has a worker run the participant's own code, and starts another one when that ends. It imports none of that code.

One thread starts each worker and hears what it says, for as long as the process lives. What trains waits for that thread.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
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
from fedround.participant import telling
from fedround.participant.channel import BadMessage
from fedround.participant.memory import BadMemory, Memory, Piece
from fedround.participant.process import Cause, End, Process, end_of
from fedround.participant.round import Round

LOG = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds that code which trains has to return when the participant ends, after its drain time-out."""
IDLE_GRACE = 5.5
"""Seconds that a worker has to end when it does not train: it gives the threads of the participant's own code 5 of them."""
EOF_GRACE = 1.0
"""Seconds between the end of what a worker says and its own end."""
PAUSE, PAUSE_MAX = 1.0, 30.0
"""Seconds between the ends and the starts of workers that end one after the other, but for the first: it is replaced at once."""

_ERRORS: Mapping[str, type[ParticipantError]] = {
    error.__name__: error for error in (DeserializationError, TrainingError, SerializationError, ParticipantError)
}
_REFUSALS: Mapping[str, type[FedroundError]] = {error.__name__: error for error in (ConfigurationError, DataDirectoryHeld)}
"""Why a worker makes no participant, although the participant's own code has not failed."""


class State(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    TRAINING = "training"
    RESTARTING = "restarting"
    STOPPED = "stopped"


class Supervisor:
    """Trains in a worker (`Trainer`).

    Args:
        recipe: What the worker is told first: how to make the participant, and how to log.
    """

    def __init__(self, recipe: Mapping[str, object]) -> None:
        self._recipe = recipe
        self._observe: Observer = lambda _fact: None
        self._traceparent: Callable[[], str | None] = lambda: None
        self._news = threading.Condition()
        self._state = State.STARTING
        self._process: Process | None = None
        self._unusable: FedroundError | None = None
        self._serial = 0
        self._round: Round | None = None
        self._update: Future[Sequence[Piece]] | None = None
        """Of the training that waits for a worker or for its result."""
        self._sent = False
        """The worker has it."""
        self._phases: list[tuple[str, float]] = []
        """The phases of the round that are under way in the worker, and since when."""
        self._ending: End | None = None
        """Why we end the worker ourselves."""
        self._closed = threading.Event()
        self._pauses = self._new_pauses()
        self.evaluates = False
        """See `Trainer`."""
        self._restarts = 0
        self._last_end = ""
        self._thread = threading.Thread(target=self._run, name="fedround-worker", daemon=True)

    def __enter__(self) -> Self:
        """Begin to start the first worker."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def room(self) -> Callable[[], Memory]:
        """Makes the memory that a model is received in."""
        return Memory.create

    def attach(self, observe: Observer, traceparent: Callable[[], str | None]) -> None:
        """From now on tell `observe`, and make the spans of the worker children of `traceparent`."""
        with self._news:
            self._observe, self._traceparent = observe, traceparent
            if self._state is not State.STARTING:
                observe(events.WorkerReady())

    def started(self, within: float | None = None) -> bool:
        """Wait until the first worker has made the participant.

        Raises:
            ConfigurationError: There is no such class, or it takes other options.
            ParticipantError: It raised, or ended the worker.
        """
        with self._news:
            self._news.wait_for(lambda: self._state is not State.STARTING, within)
            if self._state is not State.STOPPED or self._unusable is None:
                return self._state is not State.STARTING
            raise self._unusable

    def interrupt(self) -> None:
        """End a worker that has not made the participant yet."""
        if self._state is State.STARTING:
            self.close()

    def status(self) -> dict[str, object]:
        """What operators see of it, as JSON-able data."""
        return {"state": self._state, "restarts": self._restarts, "last_end": self._last_end or None}

    # Trainer

    def __call__(self, round: Round, model: list[Any], /) -> Sequence[Piece]:
        """See `Trainer`. `model` has a `Memory`."""
        memory: Memory = model.pop()
        memory.seal()  # what is trained in place is sent from it
        update = Future[Sequence[Piece]]()
        with self._news:
            self._round, self._update, self._sent = round, update, False
            self._news.wait_for(lambda: self._state is State.IDLE or update.done() or self._closed.is_set())
            if self._closed.is_set() and not update.done():
                update.set_exception(TrainingError("the participant ends"))
            if not update.done():
                self._send(round, memory)
        memory.close()
        return update.result()

    def _send(self, round: Round, memory: Memory) -> None:
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
        self._tell(message, memory)

    def cancel(self) -> None:
        """See `Trainer`."""
        with self._news:
            if self._sent:
                self._tell({"kind": "cancel", "serial": self._serial})

    def kill(self) -> None:
        """See `Trainer`."""
        with self._news:
            if self._sent:
                self._end(End(Cause.CANCELLED, "was killed: it did not return after its round was cancelled"))
            elif self._update is not None and not self._update.done():
                self._update.set_exception(TrainingError("the training process did not start before its round was cancelled"))
                self._news.notify_all()

    def close(self) -> None:
        """See `Trainer`. Returns when the worker has ended."""
        with self._news:
            first, process = not self._closed.is_set(), self._process
            self._closed.set()
            self._news.notify_all()
            idle = self._state is State.IDLE
            ready = idle or self._sent
            if first and process is not None and ready:
                self._tell({"kind": "close"})
        if not self._thread.is_alive() or threading.current_thread() is self._thread:
            return
        if process is not None and not process.exited(0.0 if not ready else IDLE_GRACE if idle else GRACE):
            if first and ready:
                LOG.warning("the participant's own code does not return: exiting without it")
            process.kill()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                if (pause := self._one_life()) is None:
                    return
                self._closed.wait(pause)
        except BaseException as error:
            LOG.exception("the supervisor failed")
            self._unusable = self._unusable or ParticipantError(f"the supervisor failed: {error}")
        finally:
            with self._news:
                self._state = State.STOPPED
                self._fail(self._unusable or TrainingError("the participant ends"), waiting=True)
                self._news.notify_all()

    def _one_life(self) -> float | None:
        """Start a worker, hear what it says, and bury it. Returns how many seconds to wait before the next; None: there is none."""
        try:
            process = Process()
        except OSError as error:
            return self._ended(End(Cause.UNUSABLE, f"cannot be started: {error.strerror}"))
        self._begin(process)
        end: End | None = None
        try:
            while (received := process.channel.receive()) is not None:
                self._heard(*received)
                del received
        except (BadMessage, BadMemory) as error:
            end = End(Cause.LOST, f"was killed: it said what nobody understands ({error})")
        if end is None and not process.exited(EOF_GRACE) and self._ending is None:
            end = End(Cause.LOST, "was killed: it had closed its connection")
        with self._news:
            self._process = None
        code = process.reap()
        return self._ended(self._ending or end or end_of(code))

    def _begin(self, process: Process) -> None:
        with self._news:
            self._process, self._ending, self._unusable = process, None, None
            if self._closed.is_set():
                process.kill(grace=0.0)
            self._tell({"kind": "make", **self._recipe})

    def _ended(self, end: End) -> float | None:
        with self._news:
            if self._closed.is_set():
                return None
            if self._unusable is not None:
                end = End(Cause.UNUSABLE, f"could not make the participant: {self._unusable}")
            error = self._unusable or ParticipantError(f"the training process {end.text}")
            if self._state is State.STARTING:
                self._unusable = error
                return None
            self._fail(error, waiting=self._state is State.RESTARTING)
            self._state = State.RESTARTING
            self._restarts += 1
            self._last_end = end.text
            pause = 0.0 if end.cause is Cause.CANCELLED else next(self._pauses)
        self._observe(events.WorkerEnded(end.cause, end.text, pause))
        return pause

    def _fail(self, error: FedroundError, *, waiting: bool) -> None:
        """The training that the worker has fails, or the one that is `waiting` for a worker. Phases under way are over."""
        round, update = self._round, self._update
        while self._phases and round is not None:
            phase, since = self._phases.pop()
            self._observe(events.PhaseEnded(round.number, phase, time.monotonic() - since, type(error).__name__))
        if update is not None and round is not None and (self._sent or waiting):
            failure = TrainingError(f"train failed in round {round.number}: {error}")
            failure.trace = getattr(error, "trace", "")
            self._settle(failure)

    def _heard(self, message: Mapping[str, Any], memories: list[Memory]) -> None:
        match message:
            case {"kind": "ready", "evaluates": bool(evaluates)} if self._state in (State.STARTING, State.RESTARTING):
                with self._news:
                    self.evaluates = evaluates
                    self._state = State.IDLE
                    self._observe(events.WorkerReady())
                    self._news.notify_all()
            case {"kind": "unusable", "error": str(kind), "text": str(text), "trace": str(trace)}:
                self._unusable = _unusable(kind, text, trace)
            case {"kind": "reported", "serial": int(serial), "figures": dict(figures)}:
                if self._sent and serial == self._serial and self._round is not None:
                    self._reported(self._round, figures)
            case {"kind": "facts", "facts": list(facts)} if self._sent:
                self._told(facts)
            case {"kind": "trained" | "failed", "serial": int(serial), "facts": list(facts)} if (
                self._sent and serial == self._serial
            ):
                self._told(facts)
                self._returned(message, memories)
            case _:
                raise BadMessage("what nobody asked for")

    def _reported(self, round: Round, figures: Mapping[str, Any]) -> None:
        try:
            round.report(**figures)
        except (TypeError, ValueError) as error:
            raise BadMessage(str(error)) from error

    def _evaluated(self, text: str | None) -> None:
        assert self._round is not None  # noqa: S101 the worker has one
        if text is not None:
            try:
                found = json.loads(text)
                self._round.evaluated(found["samples"], found["metrics"])
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise BadMessage(str(error)) from error

    def _told(self, facts: Sequence[object]) -> None:
        round = self._round
        assert round is not None  # noqa: S101 the worker has one
        now = time.monotonic()  # the same for all, so that no phase ends before it began
        for fact in [telling.decode(round.number, told, now) for told in facts]:
            match fact:
                case events.PhaseBegan(_, phase, ago):
                    self._phases.append((phase, now - ago))
                case events.PhaseEnded(_, phase):
                    if not self._phases or self._phases.pop()[0] != phase:
                        raise BadMessage("a phase that had not begun")
            if len(self._phases) > len(telling.PHASES):
                raise BadMessage("phases that do not end")
            self._observe(fact)

    def _returned(self, message: Mapping[str, Any], memories: list[Memory]) -> None:
        match message:
            case {"kind": "trained", "pieces": list(pieces), "evaluation": None | str() as evaluation}:
                result = [_piece(piece, memories) for piece in pieces]
                self._evaluated(evaluation)
                with self._news:
                    self._pauses = self._new_pauses()
                    self._settle(result)
            case {"error": str(kind), "text": str(text), "trace": str(trace)}:
                error = _ERRORS.get(kind, ParticipantError)(text)
                error.trace = trace
                with self._news:
                    self._settle(error)
            case _:
                raise BadMessage("no result")

    def _settle(self, result: Sequence[Piece] | FedroundError) -> None:
        """The training under way is over."""
        update, self._update, self._round, self._sent = self._update, None, None, False
        if self._state is State.TRAINING:
            self._state = State.IDLE
        if update is not None and not update.done():
            if isinstance(result, FedroundError):
                update.set_exception(result)
            else:
                update.set_result(result)
        self._news.notify_all()

    # Telling the worker

    def _tell(self, message: Mapping[str, object], *memories: Memory) -> None:
        """A worker that cannot be told anything is ended: its thread notices."""
        if self._process is not None:
            try:
                self._process.channel.send(message, memories)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended, or closed its connection: the thread that hears it notices, and knows why
            except OSError as error:
                self._end(End(Cause.LOST, f"was killed: it could not be told anything ({error.strerror or error})"))

    def _end(self, end: End) -> None:
        if self._process is not None:
            self._ending = self._ending or end
            threading.Thread(target=self._process.kill, name="fedround-worker-kill", daemon=True).start()

    def _new_pauses(self) -> Iterator[float]:
        yield 0.0
        yield from delays(Random().random, first=PAUSE, most=PAUSE_MAX, spread=0.2)


def _unusable(kind: str, text: str, trace: str) -> FedroundError:
    if (refusal := _REFUSALS.get(kind)) is not None:
        return refusal(text)
    error = ParticipantError(text)
    error.trace = trace
    return error


def _piece(piece: object, memories: Sequence[Memory]) -> Piece:
    match piece:
        case [int(number), int(offset), int(length)] if 0 <= number < len(memories):
            return memories[number].piece(offset, length)
    raise BadMessage("no piece of an update")
