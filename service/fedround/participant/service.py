"""The participant's service: health, metrics and traces around a trainer. This module does not import the training code."""

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
from fedround.participant.operators import OpsPort
from fedround.participant.peers import Trainer
from fedround.participant.phase import CurrentPhase
from fedround.participant.pushing import relaying
from fedround.participant.runtime import Runtime
from fedround.participant.signals import signals
from fedround.participant.terms import Options, Terms
from fedround.participant.watch import StatusObserver

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

POD_INDEX = "POD_INDEX"
"""The environment variable with the index of a StatefulSet's pod. The chart sets it."""
HEAD_START = 0.5
"""Seconds that the imports of the training code have before those of the operations port begin."""


class ServiceTrainer(Trainer, Protocol):
    """A trainer of a service, which may still be starting."""

    @property
    def make_sink(self) -> Callable[[], Sink] | None:
        """A function that creates the memory for a model. None: memory of this process."""
        ...

    def attach(self, observe: Observer, traceparent: Callable[[], str | None]) -> None:
        """Report facts to `observe` from now on. `traceparent` returns the context of the current round."""
        ...

    def started(self, within: float | None = None) -> bool:
        """Wait at most `within` seconds until it can train, and return whether it can.

        Raises:
            ConfigurationError: The class does not exist, or does not accept the options.
            ParticipantError: The class raised an exception, or ended its process.
        """
        ...

    def interrupt(self) -> None:
        """Abort the start if it is not complete. `started` then returns."""
        ...

    def status(self) -> Mapping[str, object]:
        """Return the trainer's status as JSON-able data."""
        ...


RunContext = Callable[[Runtime, OpsPort, "Tracing | None"], AbstractContextManager[None]]


def serve(settings: ParticipantSettings, trainer: ServiceTrainer, around: RunContext = lambda *_: nullcontext()) -> None:
    """Take part until training is complete, or until SIGTERM or SIGINT. `around` makes a context around the run.

    Raises:
        FedroundError: See `fedround.errors` for the classes and their exit codes.
    """
    health = Health()
    observer = StatusObserver(settings.name, health, within=max(settings.long_poll, settings.heartbeat_period))
    current = CurrentPhase()
    isolated = settings.isolation is Isolation.PROCESS
    with (
        relaying(settings) as relay,
        exporting("participant", settings.name, heartbeats=settings.trace_heartbeats, relay=relay) as exports,
    ):
        traces = exports.tracing
        metrics = partial(ParticipantMetrics, name=settings.name, local_values=settings.ops_token is not None)
        telemetry = Telemetry(metrics, [observer, current], traces, keep_log=not isolated)
        exports.add("participant", telemetry)
        trainer.attach(telemetry.observe, traces.train_context if traces else lambda: None)
        with connected(
            trainer,
            settings.coordinator_url,
            _terms(settings, isolated),
            telemetry.observe,
            make_sink=trainer.make_sink,
            pod_index=_pod_index(os.environ),
            trace=telemetry.client,
            beat=lambda within: health.beat(within=within),
            current_phase=lambda: current.name,
            on_tls=telemetry.watched,
        ) as runtime:
            ops_port = OpsPort(
                settings,
                health,
                lambda: {**observer.status(), "worker": trainer.status()},
                telemetry,
                on_failure=partial(runtime.stop, 0.0),
            )

            def stop() -> None:
                runtime.stop(settings.drain_timeout)
                trainer.interrupt()

            with signals(stop):
                trainer.started(HEAD_START)
                with around(runtime, ops_port, traces), ops_port.serving():
                    trainer.started()
                    runtime.run()
            ops_port.check()


def _terms(settings: ParticipantSettings, isolated: bool) -> Terms:
    opts = {name: getattr(settings, name) for name in ("heartbeat_period", *Options.__annotations__) if hasattr(settings, name)}
    return Terms(
        **opts | {"token": reveal(settings.token)},
        exit_after_finish=settings.after_finish is AfterFinish.EXIT,
        cancel_timeout=settings.cancel_timeout if isolated else math.inf,
    )


def _pod_index(environ: Mapping[str, str]) -> int | None:
    index = environ.get(POD_INDEX, "")
    return int(index) if index.isdecimal() else None
