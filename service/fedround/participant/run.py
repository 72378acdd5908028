"""A participant in a user's program. It changes neither logging nor, by default, signal handlers."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from fedround.errors import ConfigurationError
from fedround.events import Observers
from fedround.http.exchange import Trace
from fedround.http.transport import Transport
from fedround.observability.logs import LogObserver
from fedround.participant import connection
from fedround.participant import moves as m
from fedround.participant.abc import ParticipantABC
from fedround.participant.measuring import Measuring
from fedround.participant.phase import CurrentPhase
from fedround.participant.runtime import GRACE, Runtime
from fedround.participant.signals import signals
from fedround.participant.terms import Options, Terms
from fedround.participant.training import Training

Participant = ParticipantABC[Any, Any]


def run_participant(
    participant: Participant,
    coordinator_url: str,
    heartbeat_period: float = 1.0,
    *,
    handle_signals: bool = False,
    **options: Unpack[Options],
) -> None:
    """Join a coordinator, and train when selected, until training is complete. The participant's methods run on this thread.

    The logger `fedround` gets rounds at INFO and problems as warnings.

    Args:
        participant: Usually a `NumPyParticipant`.
        coordinator_url: URL of the coordinator, such as `http://localhost:8081`.
        heartbeat_period: Seconds between two heartbeats while a round is open.
        handle_signals: Drain on SIGTERM and SIGINT, like the service. A second signal stops the participant immediately. A third
            one ends the process, even if the training code does not return. Only works on the main thread.
        options: See `Options`.

    Raises:
        ParticipantError: The training code failed `max_failures` times in a row. The cause is its exception.
        CoordinatorUnreachable: The coordinator was unreachable for longer than `give_up_after`.
        ConfigurationError: An argument is invalid, or the global model is larger than `max_model_size`.
    """
    terms = _with_log(Terms.of(heartbeat_period, options))
    with (
        connected(participant, coordinator_url, terms) as runtime,
        signals(partial(runtime.stop, terms.drain_timeout)) if handle_signals else nullcontext(),
    ):
        runtime.run()


async def arun_participant(
    participant: Participant, coordinator_url: str, heartbeat_period: float = 1.0, **options: Unpack[Options]
) -> None:
    """Run a participant in a program with an event loop. Its methods run on a separate thread.

    Arguments and exceptions are those of `run_participant`. When cancelled, the participant finishes the round within
    `drain_timeout`, or abandons it, and deregisters. It does not wait for code that does not return. When cancelled again, it ends
    immediately.
    """
    terms = _with_log(Terms.of(heartbeat_period, options))
    with connected(participant, coordinator_url, terms) as runtime:
        ended: Future[m.Reason] = Future()
        threading.Thread(target=fulfil, args=(ended, runtime.run), name="fedround-participant", daemon=True).start()
        waiting = asyncio.wrap_future(ended)
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            runtime.stop(terms.drain_timeout)
            try:
                await asyncio.to_thread(runtime.ended.wait)
                await asyncio.wait([waiting], timeout=GRACE)
            except asyncio.CancelledError:
                runtime.stop(0.0)
            # The result is not needed. Without this, asyncio logs an exception that was never retrieved.
            waiting.cancel() or waiting.exception()
            raise


def _with_log(terms: Terms) -> Terms:
    """Add the log. Python shows its warnings without a configuration, for example that the coordinator is unreachable."""
    return replace(terms, observers=[LogObserver(), *terms.observers])


def fulfil(future: "Future[m.Reason]", run: Callable[[], m.Reason]) -> None:
    """Set a future's result to what `run` returns or raises."""
    future.set_running_or_notify_cancel()  # from now on it cannot be cancelled
    try:
        future.set_result(run())
    except BaseException as error:  # noqa: BLE001 the future raises it
        future.set_exception(error)


@contextmanager
def connected(
    participant: Participant,
    coordinator_url: str,
    terms: Terms,
    *,
    transport: Transport | None = None,
    trace: Trace | None = None,
    measure: bool = False,
) -> Iterator[Runtime]:
    """Yield a participant that is ready to run, with its connections open. `measure`: report weight statistics to observers."""
    if not isinstance(participant, ParticipantABC):
        raise ConfigurationError(f"{type(participant).__name__} is not a subclass of fedround.ParticipantABC or NumPyParticipant")
    current = CurrentPhase()
    observe = Observers([current, *terms.observers])
    training = Training(participant, observe, Measuring(observe) if measure else None)
    with connection.connected(
        training, coordinator_url, terms, observe, transport=transport, trace=trace, current_phase=lambda: current.name
    ) as runtime:
        yield runtime
