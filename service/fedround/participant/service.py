"""Runs a participant as a service: `fedround participant`."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from fedround.errors import ConfigurationError
from fedround.observability.health import Health
from fedround.observability.metrics import ParticipantMetrics
from fedround.observability.telemetry import Telemetry, tracing
from fedround.participant import moves as m
from fedround.participant.load import load_participant
from fedround.participant.operators import Operators
from fedround.participant.run import Options, connected, signals
from fedround.participant.runtime import Runtime
from fedround.participant.watch import Watch
from fedround.settings import AfterFinish, ParticipantSettings, reveal

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

LOG = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds that the participant's own code has to return when everything else has ended."""
POD_INDEX = "POD_INDEX"
"""The variable in which the chart tells the number of a pod of a StatefulSet."""


def serve_participant(settings: ParticipantSettings) -> int:
    """Run a participant as a service, until training is finished or SIGTERM or SIGINT has come. Returns the exit code.

    Raises:
        FedroundError: See `fedround.errors` for what each means, and with which code the command line exits for it.
    """
    participant = load_participant(settings.class_, settings.options)
    health = Health()
    watch = Watch(settings.name, health, within=max(settings.long_poll, settings.heartbeat_period))
    with tracing("participant", settings.name, heartbeats=settings.trace_heartbeats) as traces:
        telemetry = Telemetry(ParticipantMetrics, [watch], traces)
        options = Options(
            name=settings.name,
            token=reveal(settings.token),
            long_poll=settings.long_poll,
            shard=settings.shard,
            shards=settings.shards,
            aggregator_url=settings.aggregator_url,
            max_model_size=settings.max_model_size,
            reconnect_max=settings.reconnect_max,
            give_up_after=settings.give_up_after,
            max_failures=settings.max_failures,
            confirm_timeout=settings.confirm_timeout,
            observers=[telemetry.observe],
        )
        with connected(
            participant,
            settings.coordinator_url,
            settings.heartbeat_period,
            options,
            exit_after_finish=settings.after_finish is AfterFinish.EXIT,
            pod_index=_pod_index(os.environ),
            trace=telemetry.client,
            measure=True,
            beat=lambda within: health.beat(within=within),
        ) as runtime:
            operators = Operators(settings, health, watch.status, telemetry.scrape, on_failure=partial(runtime.stop, 0.0))
            with (
                signals(partial(runtime.stop, settings.drain_timeout)),
                _not_for_ever(runtime, operators, traces),
                operators.serving(),
            ):
                runtime.run()
            operators.check()
    return os.EX_OK


def _pod_index(environ: Mapping[str, str]) -> int | None:
    index = environ.get(POD_INDEX, "")
    return int(index) if index.isdecimal() else None


@contextmanager
def _not_for_ever(runtime: Runtime, operators: Operators, traces: "Tracing | None") -> Iterator[None]:
    """End the process when everything has ended but the participant's own code, which nobody can interrupt."""
    returned = threading.Event()

    def watch() -> None:
        runtime.ended.wait()
        if not returned.wait(GRACE):
            LOG.warning("the participant's own code does not return: exiting without it")
            code = {None: os.EX_SOFTWARE, m.Reason.GAVE_UP: os.EX_UNAVAILABLE}.get(runtime.reason, os.EX_OK)
            try:
                operators.check()
            except Exception as error:
                LOG.error("%s", error, exc_info=not isinstance(error, ConfigurationError))
                code = os.EX_CONFIG if isinstance(error, ConfigurationError) else os.EX_SOFTWARE
            if traces is not None:
                traces.close()
            logging.shutdown()
            os._exit(code)

    threading.Thread(target=watch, name="fedround-exit", daemon=True).start()
    try:
        yield
    finally:
        returned.set()
