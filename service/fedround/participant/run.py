"""Runs a participant in a program of the user's. Touches neither its signals, unless asked to, nor how it logs."""

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
from fedround.participant.phase import Doing
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
    """Join a coordinator and train whenever selected, until training is finished. The participant's methods run on this thread.

    What happens is logged to `fedround`: rounds at INFO, what goes wrong as warnings.

    Args:
        participant: Usually a `NumPyParticipant`.
        coordinator_url: Such as `http://localhost:8081`.
        heartbeat_period: Seconds between two heartbeats while a round is on.
        handle_signals: End in good order on SIGTERM and SIGINT, as the service does: a second one ends it at once, a third one the
            process, even if the participant's own code does not return. Only on the main thread.
        options: See `Options`.

    Raises:
        ParticipantError: The participant's own code failed, `max_failures` times in a row; raised from what it raised.
        CoordinatorUnreachable: It was away for longer than `give_up_after`.
        ConfigurationError: An argument is wrong, or the global model is larger than `max_model_size`.
    """
    terms = _logged(Terms.of(heartbeat_period, options))
    with (
        connected(participant, coordinator_url, terms) as runtime,
        signals(partial(runtime.stop, terms.drain_timeout)) if handle_signals else nullcontext(),
    ):
        runtime.run()


async def arun_participant(
    participant: Participant, coordinator_url: str, heartbeat_period: float = 1.0, **options: Unpack[Options]
) -> None:
    """As `run_participant`, for programs with an event loop: the participant's methods run on a thread of their own.

    Cancelled, it ends the round if that takes no longer than `drain_timeout`, and leaves; code that does not return is left behind.
    Cancelled again, it ends at once.
    """
    terms = _logged(Terms.of(heartbeat_period, options))
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
            # Whatever it still brings, nobody asks for it: an error would be logged as forgotten.
            waiting.cancel() or waiting.exception()
            raise


def _logged(terms: Terms) -> Terms:
    """Who waits for a coordinator that is not there is told: Python shows warnings although nobody configures logging."""
    return replace(terms, observers=[LogObserver(), *terms.observers])


def fulfil(future: "Future[m.Reason]", run: Callable[[], m.Reason]) -> None:
    """Give a future what `run` returns or raises."""
    future.set_running_or_notify_cancel()  # nobody can cancel it any more
    try:
        future.set_result(run())
    except BaseException as error:  # noqa: BLE001 raised by who waits
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
    """A participant that is ready to run, with its connections open. `measure`: tell observers of the weights, too."""
    if not isinstance(participant, ParticipantABC):
        raise ConfigurationError(f"{type(participant).__name__} is no subclass of fedround.ParticipantABC or NumPyParticipant")
    doing = Doing()
    observe = Observers([doing, *terms.observers])
    training = Training(participant, observe, Measuring(observe) if measure else None)
    with connection.connected(
        training, coordinator_url, terms, observe, transport=transport, trace=trace, doing=lambda: doing.now
    ) as runtime:
        yield runtime
