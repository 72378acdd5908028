"""The participant's service: health, metrics and traces around a trainer. It does not import the training code."""

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Protocol

from fedround.common.settings import AfterFinish, Isolation, ParticipantSettings, reveal
from fedround.events import Observer
from fedround.http.bodies import Sink
from fedround.observability.health import Health
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.observability.pushes import exporting
from fedround.observability.telemetry import Telemetry
from fedround.participant.connection import connected
from fedround.participant.operators import Operators
from fedround.participant.peers import Trainer
from fedround.participant.phase import Doing
from fedround.participant.pushing import relaying
from fedround.participant.runtime import Runtime
from fedround.participant.signals import signals
from fedround.participant.terms import Options, Terms
from fedround.participant.watch import Watch

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

POD_INDEX = "POD_INDEX"
"""The environment variable with the index of a StatefulSet's pod. The chart sets it."""
HEAD_START = 0.5
"""Seconds by which the imports of the training code go before those of the operations port."""


class Host(Trainer, Protocol):
    """A trainer of a service, which may still be starting."""

    @property
    def make_sink(self) -> Callable[[], Sink] | None:
        """Creates the memory that it takes a model in. None: memory of this process."""
        ...

    def attach(self, observe: Observer, traceparent: Callable[[], str | None]) -> None:
        """Report facts to `observe` from now on. `traceparent` returns the context of the current round."""
        ...

    def started(self, within: float | None = None) -> bool:
        """Wait until it can train, and return whether it can. Raises `ConfigurationError` or `ParticipantError` if it failed."""
        ...

    def interrupt(self) -> None:
        """Abort the start if it is not complete. `started` then returns."""
        ...

    def status(self) -> Mapping[str, object]:
        """Return its status as JSON-able data."""
        ...


Bounded = Callable[[Runtime, Operators, "Tracing | None"], AbstractContextManager[None]]


def serve(settings: ParticipantSettings, host: Host, bounded: Bounded = lambda *_: nullcontext()) -> None:
    """Take part until training is complete, or until SIGTERM or SIGINT. `bounded` is a context around the run.

    Raises:
        FedroundError: See `fedround.errors` for the classes and their exit codes.
    """
    health = Health()
    watch = Watch(settings.name, health, within=max(settings.long_poll, settings.heartbeat_period))
    doing = Doing()
    apart = settings.isolation is Isolation.PROCESS
    with (
        relaying(settings) as relay,
        exporting("participant", settings.name, heartbeats=settings.trace_heartbeats, relay=relay) as exports,
    ):
        traces = exports.tracing
        metrics = partial(ParticipantMetrics, name=settings.name, local_values=settings.ops_token is not None)
        telemetry = Telemetry(metrics, [watch, doing], traces, keep_log=not apart)
        exports.show("participant", telemetry)
        host.attach(telemetry.observe, traces.train_context if traces else lambda: None)
        same = {name: getattr(settings, name) for name in ("heartbeat_period", *Options.__annotations__) if hasattr(settings, name)}
        terms = Terms(
            **same | {"token": reveal(settings.token)},
            exit_after_finish=settings.after_finish is AfterFinish.EXIT,
            cancel_timeout=settings.cancel_timeout if apart else math.inf,
        )
        with connected(
            host,
            settings.coordinator_url,
            terms,
            telemetry.observe,
            make_sink=host.make_sink,
            pod_index=_pod_index(os.environ),
            trace=telemetry.client,
            beat=lambda within: health.beat(within=within),
            doing=lambda: doing.now,
        ) as runtime:
            operators = Operators(
                settings,
                health,
                lambda: {**watch.status(), "worker": host.status()},
                telemetry.scrape,
                on_failure=partial(runtime.stop, 0.0),
                observe=telemetry.observe,
            )

            def stop() -> None:
                runtime.stop(settings.drain_timeout)
                host.interrupt()

            with signals(stop):
                host.started(HEAD_START)
                with bounded(runtime, operators, traces), operators.serving():
                    host.started()
                    runtime.run()
            operators.check()


def _pod_index(environ: Mapping[str, str]) -> int | None:
    index = environ.get(POD_INDEX, "")
    return int(index) if index.isdecimal() else None
