"""The participant's runtime. It executes the lifecycle's commands, and sends it events. It decides nothing.

The loop takes events from a queue and steps the lifecycle. Three more threads take tasks from queues: one sends requests to the
coordinator, one transfers models, and the thread that called `run` runs the training code.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

from fedround.errors import (
    Aborted,
    Busy,
    ConfigurationError,
    CoordinatorUnreachable,
    ExchangeError,
    FedroundError,
    Intercepted,
    NotConnected,
    ParticipantError,
    Refused,
    TooLarge,
    Untrusted,
)
from fedround.events import MetricsReported, Observer, ShardAssigned, TransferLost
from fedround.participant import moves as m
from fedround.participant.lifecycle import LEAVE_TIMEOUT, Lifecycle
from fedround.participant.peers import Aggregator, Coordinator, Trainer
from fedround.participant.phase import phase
from fedround.participant.round import Round, encode_metrics
from fedround.participant.shards import Shards
from fedround.participant.traces import logged, release
from fedround.participant.work import OVER, REFUSED

LOG = logging.getLogger(__name__)

TURN = 5.0
"""Maximum seconds of one turn of the loop, even if there is no event."""
JOIN_TIMEOUT = 0.5
"""Seconds for each other thread to end after the loop: one may wait for a response that is no longer needed."""
GRACE = 1.0
"""Seconds for the training code to return after everything else has ended, if the caller does not wait for it."""
REFUSED_PAUSE = 10.0
"""Seconds before a rejected token is sent again: only an operator can fix that."""
INTERCEPTED_PAUSE = 30.0
"""Seconds before a transfer is repeated that a proxy answered instead of the aggregator: only an operator can fix that."""
NOT_FOUND = "is PARTICIPANT_COORDINATOR_URL (--coordinator-url) the coordinator's port for participants, 8081 by default?"

EncodedUpdate = tuple[Sequence[Any], str | None, str | None]
"""An update in pieces, and the metrics of training and of evaluation that travel with it."""


class Tasks:
    """A thread's queue of tasks."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.submit = self._queue.put

    def run(self) -> None:
        while True:
            try:
                # With a time-out: a signal just before this call, or to another thread, does not wake the main thread.
                task = self._queue.get(timeout=TURN)
            except Empty:
                continue
            if task is None:
                return
            task()
            del task

    def stop(self) -> None:
        self._queue.put(None)


class Runtime:
    """One participant, from its registration to its exit."""

    def __init__(
        self,
        trainer: Trainer,
        coordinator: Coordinator,
        aggregator: Aggregator,
        lifecycle: Lifecycle,
        *,
        name: str,
        shards: Shards,
        observe: Observer,
        aggregator_url: str | None = None,
        beat: Callable[[float], None] = lambda _within: None,
        current_phase: Callable[[], str] = str,
    ) -> None:
        self.ended = Event()
        """An event that is set when the participant has deregistered and exited. Only the training code may still run."""
        self.returned = Event()
        """An event that is set when the training code has returned, and will not be called again."""
        self._trainer = trainer
        self._coordinator = coordinator
        self._aggregator = aggregator
        self._aggregator_url = aggregator_url
        self._lifecycle = lifecycle
        self._name = name
        self._shards = shards
        self._shard = lru_cache(shards.find)  # so that a warning is not repeated in each round
        self._observe = observe
        self._beat = beat
        self._current_phase = current_phase
        self._events: SimpleQueue[m.Event | BaseException] = SimpleQueue()
        self._user, self._contacts, self._transfers = Tasks(), Tasks(), Tasks()
        self._last_requests: list[Event] = []
        """Events of requests to deregister or to forfeit a round. Each is set when its request has ended."""
        self._ordinal: int | None = None
        self._model: list[Any] = []
        self._update: EncodedUpdate | None = None
        self._round: Round | None = None
        self._hurry = False
        self._failure: FedroundError | None = None
        self._error: BaseException | None = None
        self._trouble = ""
        self._blocked = ""
        """Reason why the participant cannot reach the aggregator; empty if it can."""

    def run(self) -> m.Reason:
        """Take part until training is complete, or `stop` is called. The training code runs on this thread.

        Raises:
            ParticipantError: The training code failed too often.
            CoordinatorUnreachable: The coordinator was unreachable for longer than `give_up_after`.
        """
        work = {"contacts": self._contacts.run, "transfers": self._transfers.run, "loop": self._loop}
        threads = [Thread(target=self._guard, args=(run,), name=f"fedround-{name}", daemon=True) for name, run in work.items()]
        *others, loop = threads
        for thread in others:
            thread.start()
        try:
            loop.start()
            self._user.run()
        except BaseException:
            # KeyboardInterrupt and SystemExit propagate after the participant has deregistered.
            self.stop(0.0)
            raise
        finally:
            self.returned.set()
            self.ended.wait()
            for thread in threads:
                thread.join(JOIN_TIMEOUT)
        return self.result()

    def result(self) -> m.Reason:
        """Return, or raise, what `run` does, once `ended` is set."""
        if self._error is not None:
            raise self._error
        if self._lifecycle.exited is m.Reason.GAVE_UP:
            raise CoordinatorUnreachable(f"the coordinator was unreachable for too long, last error: {self._trouble}")
        if self._lifecycle.exited is m.Reason.FAILED and self._failure is not None:
            raise self._failure
        return self._lifecycle.exited or m.Reason.STOPPED

    def stop(self, within: float) -> None:
        """Stop, after the round if that takes at most `within` seconds. A second call stops immediately. From any thread."""
        self._events.put(m.StopRequested(within))

    # The loop

    def _loop(self) -> None:
        try:
            while self._lifecycle.exited is None:
                self._step(self._next_event())
        finally:
            for tasks in (self._user, self._contacts, self._transfers):
                tasks.stop()
            self.ended.set()
            self._trainer.close()

    def _next_event(self) -> m.Event:
        timeout = min(max(self._lifecycle.next_deadline() - time.monotonic(), 0.0), TURN)
        self._beat(2 * TURN)
        try:
            event = self._events.get(timeout=timeout)
        except Empty:
            return m.TimerFired()
        if isinstance(event, BaseException):
            raise event
        return event

    def _step(self, event: m.Event) -> None:
        commands = self._lifecycle.step(event, time.monotonic())
        for fact in self._lifecycle.take_facts():
            self._observe(fact)
        for command in commands:
            self._carry_out(command)
        if isinstance(event, m.TrainingFailed) and self._lifecycle.exited is None and (trace := logged(self._failure)):
            LOG.warning("%s", event.reason, **trace)  # without a trace, the line about the round's end has the reason

    def _carry_out(self, command: m.Command) -> None:
        match command:
            case m.Register():
                self._contacts.submit(self._register)
            case m.Heartbeat(id, wait):
                self._contacts.submit(partial(self._heartbeat, id, wait))
            case m.Leave(id, immediately, reason):
                self._send_last(self._transfers if immediately else self._contacts, partial(self._coordinator.leave, id, reason))
            case m.Forfeit(request):
                forfeit = partial(self._aggregator.upload, self._url(request), request.id, request.token, [], metrics=None)
                self._send_last(self._transfers, forfeit)
            case m.StartTraining(request) | m.Download(request) | m.Upload(request):
                self._transfers.submit(partial(self._transfer, command, request, self._update))
            case m.Train(request):
                shard, former = self._shard(request.run and request.run.shard, self._ordinal), self._round and self._round.shard
                if shard != former:
                    self._observe(ShardAssigned(shard.index, shard.count))
                self._round = Round(request.round, shard, partial(self._report, request.round), request.run)
                self._round.cancelled = self._hurry
                self._user.submit(partial(self._train, request, self._round, self._model))
                self._model = []
            case m.Hurry():
                self._hurry = True
                self._cancel()
            case m.Cancel():
                self._cancel()
                self._aggregator.abort()
            case m.Kill():
                self._trainer.kill()
            case m.Discard():
                self._update = None
            case m.Exit(_, immediately):
                until = time.monotonic() + (0.0 if immediately else LEAVE_TIMEOUT)
                for done in self._last_requests:
                    done.wait(max(until - time.monotonic(), 0.0))

    def _cancel(self) -> None:
        if self._round is not None:
            self._round.cancelled = True
            self._trainer.cancel()

    # The other threads

    def _guard(self, run: Callable[[], None]) -> None:
        """Run a thread's function. If it fails, `run` raises its exception."""
        try:
            run()
        except BaseException as error:  # noqa: BLE001
            self._error = self._error or error
            self._events.put(error)

    def _register(self) -> None:
        try:
            claim = self._shards.claim(self._round.shard if self._round else None)
            answer = self._coordinator.rendez_vous(self._name, self._ordinal, evaluates=self._trainer.evaluates, claim=claim)
        except ExchangeError as error:
            self._events.put(m.RegistrationFailed(*self._details(error, NOT_FOUND)))
            return
        if answer.ordinal is not None:
            self._ordinal = answer.ordinal
        self._events.put(m.RegistrationRefused() if answer.id is None else m.Registered(answer.id))

    def _heartbeat(self, id: str, wait: float) -> None:
        try:
            phase = "" if wait else self._current_phase()
            answer = self._coordinator.heartbeat(id, wait=wait, trouble=self._blocked, phase=phase)
        except ExchangeError as error:
            self._events.put(m.HeartbeatFailed(id, *self._details(error)))
        else:
            self._events.put(m.HeartbeatAnswered(id, answer))

    def _details(self, error: ExchangeError, not_found: str = "") -> tuple[str, float | None, str]:
        self._trouble = _advised(error, not_found)
        return error.reason, _retry_after(error), self._trouble

    def _send_last(self, tasks: Tasks, send: Callable[[], object]) -> None:
        done = Event()

        def task() -> None:
            try:
                send()
            except ExchangeError as error:
                # The coordinator removes the participant when its heartbeats time out.
                LOG.debug("could not deregister: %s", error)
            finally:
                done.set()

        self._last_requests = [one for one in self._last_requests if not one.is_set()] + [done]
        tasks.submit(task)

    def _transfer(self, command: m.Transfer, request: m.TrainingRequest, update: EncodedUpdate | None) -> None:
        failure: ExchangeError | None = None
        try:
            event = self._exchange(command, request, update)
        except Refused as error:
            event = m.TransferRefused(request, error.status, error.detail)
            failure = None if error.status in (OVER, *REFUSED) else error  # the line about the round's end has the reason
        except (TooLarge, Untrusted) as error:
            self._failure = ConfigurationError(str(error))
            event = m.ModelRefused(request, str(error))
            if isinstance(command, m.Upload):
                event = m.TransferFailed(request, Untrusted.reason, REFUSED_PAUSE)
        except ExchangeError as error:
            retry_after = INTERCEPTED_PAUSE if isinstance(error, Intercepted) else _retry_after(error)
            event = m.TransferFailed(request, error.reason, retry_after, sent=not isinstance(error, NotConnected))
            failure = None if isinstance(error, Aborted) else error
        if not isinstance(command, m.StartTraining):
            self._transfer_ended(failure)
        self._events.put(event)

    def _transfer_ended(self, failure: ExchangeError | None) -> None:
        self._blocked = "" if failure is None else _advised(failure)
        if failure is not None:
            self._observe(TransferLost(self._blocked, intercepted=isinstance(failure, Intercepted)))

    def _exchange(self, command: m.Transfer, request: m.TrainingRequest, update: EncodedUpdate | None) -> m.Event:
        url = self._url(request)
        self._model.clear()
        match command:
            case m.StartTraining():
                return m.StartTrainingAnswered(request, self._coordinator.start_training(request.id))
            case m.Download(_, etag):
                with phase(self._observe, request.round, "download"):
                    answer = self._aggregator.download(url, request.id, request.token, etag=etag)
                if answer.body is not None:
                    self._model.append(answer.body)
                return m.Downloaded(request, answer.etag, answer.body is not None)
            case m.Upload():
                assert update is not None  # noqa: S101 nothing else is ever uploaded
                buffers, metrics, evaluation = update
                headers = {"metrics": metrics, "evaluation": evaluation}
                with phase(self._observe, request.round, "upload"):
                    outcome = self._aggregator.upload(url, request.id, request.token, buffers, **headers)
                return m.UploadAnswered(request, outcome)

    def _url(self, request: m.TrainingRequest) -> str:
        return self._aggregator_url or request.url

    def _train(self, request: m.TrainingRequest, round: Round, model: list[Any]) -> None:
        try:
            update = self._trainer(round, model)
        except ParticipantError as error:
            release(error)
            self._failure = error
            self._events.put(m.TrainingFailed(request, str(error)))
            return
        self._update = update, encode_metrics(round.metrics) if round.metrics else None, round.evaluation
        self._events.put(m.Trained(request))

    def _report(self, round: int, metrics: Mapping[str, float]) -> None:
        self._observe(MetricsReported(round, tuple(metrics.items())))


def _advised(error: ExchangeError, not_found: str = "") -> str:
    """Return an error's text with advice. `not_found`: the advice for a 404."""
    match error:
        case Refused(status=401 | 403) if "certificate" in error.detail:
            advice = "is PARTICIPANT_TLS_CERT_FILE (--tls-cert-file) the right one?"
        case Refused(status=401 | 403):
            advice = "is PARTICIPANT_TOKEN (--token) the right one?"
        case Refused(status=404):
            advice = not_found
        case _:
            advice = ""
    return f"{error}: {advice}" if advice else str(error)


def _retry_after(error: ExchangeError) -> float | None:
    match error:
        case Busy():
            return error.retry_after
        case Refused(status=401 | 403):
            return REFUSED_PAUSE
    return None
