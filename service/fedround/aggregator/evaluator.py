"""The evaluator: it calls the user's function for global models, on a thread that nothing waits for."""

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from fedround import events
from fedround.aggregator.codecs import Model
from fedround.aggregator.evaluation import Candidate, Schedule
from fedround.aggregator.state import State, read_only
from fedround.common import evaluation
from fedround.common.books import ServerEvaluation
from fedround.common.objects import import_object
from fedround.common.text import described
from fedround.common.wire import one_line
from fedround.errors import ConfigurationError
from fedround.events import Fact, Observer, Observers
from fedround.tensors.weights import Weights

LOG = logging.getLogger(__name__)

SETTING = "AGGREGATOR_EVALUATE"


class Evaluator:
    """The evaluator of models. For one event loop. Errors of the function do not reach the caller of `submit`.

    Args:
        function: Takes the read-only weights of a model, and returns an evaluation: see `fedround.common.evaluation.read`.
        name: Name of the function in logs and in the status.
        observer: Receives every fact.
    """

    def __init__(self, function: Callable[[Any], Any], name: str, observer: Observer | None = None) -> None:
        self.name = name
        self.schedule = Schedule()
        self.on_result: Callable[[], None] = lambda: None
        """Called on the event loop after each result."""
        self._function = function
        self._observer = observer or Observers()
        self._work: SimpleQueue[Candidate] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._what = f"{SETTING}={name}"
        self._began = 0.0
        self._reason = ""
        """The reason of the last failure."""

    def submit(self, model: Model, run: str) -> None:
        """Queue a model of a run for evaluation. A newer model may replace it."""
        stateless = replace(model, state=State())  # so that a waiting model does not keep the strategy's state in memory
        for skipped in self.schedule.submit(Candidate(model.round, run, stateless)):
            self._observer(events.EvaluationSkipped(skipped.round))
        self._begin()

    def status(self) -> dict[str, object]:
        """Return the state as JSON-able data."""
        running, last = self.schedule.running, self.schedule.results[-1] if self.schedule.results else None
        seconds = round(time.monotonic() - self._began, 3)
        return {
            "function": self.name,
            "evaluating": running and {"round": running.round, "run": running.run, "seconds": seconds},
            "failures": self.schedule.failures,
            "behind": self.schedule.behind,
            "waiting": [{"round": one.round, "run": one.run} for one in self.schedule.waiting],
            "last": last
            and {"round": last.round, "run": last.run, "samples": last.samples, "metrics": last.metrics, "reason": last.reason},
        }

    def _begin(self) -> None:
        candidate = self.schedule.begin()
        if candidate is None:
            return
        self._began = time.monotonic()
        if self._thread is None:
            # A daemon thread, because the interpreter's exit must not wait for a function that never returns.
            arguments = (asyncio.get_running_loop(),)
            self._thread = threading.Thread(target=self._run, args=arguments, name="fedround-evaluate", daemon=True)
            self._thread.start()
        self._work.put(candidate)

    def _ended(self, result: ServerEvaluation, fact: Fact) -> None:
        if self.schedule.ended(result, failed=isinstance(fact, events.EvaluationFailed)):
            self._observer(fact)
            self.on_result()
        self._begin()

    # On the evaluator's thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            found = self._evaluated(self._work.get())
            with suppress(RuntimeError):  # the event loop is closed: the process ends
                loop.call_soon_threadsafe(self._ended, *found)

    def _evaluated(self, candidate: Candidate) -> tuple[ServerEvaluation, Fact]:
        """Evaluate a model, and keep no reference to it."""
        began, round, run = time.perf_counter(), candidate.round, candidate.run
        try:
            returned = self._function(_locked(candidate.model.weights))
        except BaseException as error:  # noqa: BLE001 users' code may raise anything, SystemExit too
            return self._failed(candidate, described(error), time.perf_counter() - began, error)
        seconds = time.perf_counter() - began
        if returned is None:
            return ServerEvaluation(round, run, reason="the function returned None"), events.EvaluationSkipped(round)
        try:
            samples, metrics, dropped = evaluation.read(returned)
        except Exception as error:  # noqa: BLE001 the returned object may raise anything
            return self._failed(candidate, f"{described(error)}; {evaluation.HOW}", seconds)
        if dropped:
            LOG.warning("%s: model of round %s: dropped metrics that are not finite: %s", self._what, round, ", ".join(dropped))
        fact = events.ModelEvaluated(self.name, round, samples, tuple(metrics.items()), seconds, tuple(dropped))
        return ServerEvaluation(round, run, samples, metrics), fact

    def _failed(
        self, candidate: Candidate, why: str, seconds: float, error: BaseException | None = None
    ) -> tuple[ServerEvaluation, Fact]:
        round, reason = candidate.round, one_line(why)
        trace = None if reason == self._reason else error  # one traceback, even if each round fails for the same reason
        self._reason = reason
        LOG.warning("%s: evaluation of the model of round %s failed: %s", self._what, round, reason, exc_info=trace)
        return ServerEvaluation(round, candidate.run, reason=reason), events.EvaluationFailed(self.name, round, reason, seconds)


def load(name: str, observer: Observer) -> Evaluator:
    """Return an evaluator.

    Args:
        name: The function, as `module:function`.
        observer: Receives every fact.

    Raises:
        ConfigurationError: There is no such function, its module raised an error, or it does not accept one argument.
    """
    try:
        function = import_object(name, f"{SETTING} (--evaluate)")
    except ConfigurationError:
        raise
    except BaseException as error:
        module = name.partition(":")[0]
        raise ConfigurationError(f"{SETTING}: {module} cannot be imported: {described(error)}") from error
    if not callable(function) or isinstance(function, type):
        raise ConfigurationError(f"{SETTING}: {name} is not a function")
    with suppress(ValueError):  # a builtin has no signature
        try:
            inspect.signature(function).bind(None)
        except TypeError as error:
            raise ConfigurationError(f"{SETTING}: {name} must accept one argument, the weights of a model: {error}") from error
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{SETTING}: {name} is a coroutine function: write it with def, it runs on its own thread")
    return Evaluator(function, name, observer)


def _locked(weights: Weights) -> Weights:
    if isinstance(weights, Mapping):
        return {name: read_only(array) for name, array in weights.items()}
    return read_only(weights)
