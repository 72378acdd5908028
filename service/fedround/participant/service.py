"""Runs a participant as a service: `fedround participant`."""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Never

from fedround.errors import FedroundError
from fedround.observability.health import Health
from fedround.observability.metrics import ParticipantMetrics
from fedround.observability.telemetry import Telemetry, tracing
from fedround.participant.load import load_participant
from fedround.participant.operators import Operators
from fedround.participant.run import Participant, connected, signals
from fedround.participant.runtime import GRACE, Runtime
from fedround.participant.terms import Options, Terms
from fedround.participant.watch import Watch
from fedround.settings import AfterFinish, ParticipantSettings, reveal

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

LOG = logging.getLogger(__name__)

LAST_GRACE = 5.0
"""Seconds that the participant's own code has, its threads and what it does at exit, when all else has ended."""
POD_INDEX = "POD_INDEX"
"""The variable in which the chart tells the number of a pod of a StatefulSet."""


def serve_participant(settings: ParticipantSettings) -> int:
    """Run a participant as a service, until training is finished or SIGTERM or SIGINT has come. Returns the exit code.

    Raises:
        FedroundError: See `fedround.errors` for what each means, and with which code the command line exits for it.
    """
    with _not_kept():
        _serve(settings, load_participant(settings.class_, settings.options))
    return os.EX_OK


def _serve(settings: ParticipantSettings, participant: Participant) -> None:
    health = Health()
    watch = Watch(settings.name, health, within=max(settings.long_poll, settings.heartbeat_period))
    with tracing("participant", settings.name, heartbeats=settings.trace_heartbeats) as traces:
        metrics = partial(ParticipantMetrics, local_values=settings.ops_token is not None)
        telemetry = Telemetry(metrics, [watch], traces)
        same = {name: getattr(settings, name) for name in ("heartbeat_period", *Options.__annotations__) if hasattr(settings, name)}
        terms = Terms(
            **same | {"token": reveal(settings.token), "observers": [telemetry.observe]},
            exit_after_finish=settings.after_finish is AfterFinish.EXIT,
        )
        with connected(
            participant,
            settings.coordinator_url,
            terms,
            pod_index=_pod_index(os.environ),
            trace=telemetry.client,
            measure=True,
            beat=lambda within: health.beat(within=within),
        ) as runtime:
            operators = Operators(
                settings,
                health,
                watch.status,
                telemetry.scrape,
                on_failure=partial(runtime.stop, 0.0),
                observe=telemetry.observe,
            )
            with (
                signals(partial(runtime.stop, settings.drain_timeout)),
                _not_for_ever(runtime, operators, traces),
                operators.serving(),
            ):
                runtime.run()
            operators.check()


def _pod_index(environ: Mapping[str, str]) -> int | None:
    index = environ.get(POD_INDEX, "")
    return int(index) if index.isdecimal() else None


@contextmanager
def _not_for_ever(runtime: Runtime, operators: Operators, traces: "Tracing | None") -> Iterator[None]:
    """End the process when everything has ended but the participant's own code, which nobody can interrupt."""

    def watch() -> None:
        runtime.ended.wait()
        if runtime.returned.wait(GRACE):
            return
        LOG.warning("the participant's own code does not return: exiting without it")
        code = os.EX_OK
        try:
            operators.check()
            runtime.result()
        except BaseException as error:
            LOG.error("%s", error, exc_info=not isinstance(error, FedroundError))
            code = _exit_code(error)
        if traces is not None:
            traces.close()
        _exit(code)

    threading.Thread(target=watch, name="fedround-exit", daemon=True).start()
    yield


@contextmanager
def _not_kept() -> Iterator[None]:
    """End the process with the exit code that it has anyway, although threads of the participant's own code do not end."""
    code = os.EX_OK
    try:
        yield
    except BaseException as error:
        code = _exit_code(error)
        raise
    finally:
        threading.Thread(target=_exit_without, args=(code,), name="fedround-exit", daemon=True).start()


def _exit_without(code: int) -> None:
    time.sleep(LAST_GRACE)  # as a rule the process, and with it this thread, ends long before
    names = [thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    why = f"threads that do not end ({', '.join(names)})" if names else "what it does at exit"
    LOG.warning("the participant's own code keeps the process by %s: exiting without it", why)
    _exit(code)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return error.exit_code if isinstance(error, FedroundError) else 1


def _exit(code: int) -> Never:
    logging.shutdown()
    os._exit(code)
