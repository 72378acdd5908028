"""Runs a participant in a program of the user's. Touches neither its signals, unless asked to, nor how it logs."""

import asyncio
import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from types import FrameType
from typing import Any, Unpack
from urllib.parse import urlsplit

from fedround import hosts, http
from fedround.errors import ConfigurationError
from fedround.events import Observers
from fedround.observability.logs import LogObserver
from fedround.participant import moves as m
from fedround.participant.abc import ParticipantABC
from fedround.participant.lifecycle import Lifecycle
from fedround.participant.measuring import Measuring
from fedround.participant.round import Shard, find_shard
from fedround.participant.runtime import GRACE, Runtime
from fedround.participant.terms import Options, Terms
from fedround.participant.training import Training

LOG = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
MAX_SIGNALS = 2
"""The first asks to stop, the second at once; one more does not ask."""

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
    transport: http.Transport | None = None,
    pod_index: int | None = None,
    trace: http.Trace | None = None,
    measure: bool = False,
    beat: Callable[[float], None] = lambda _within: None,
) -> Iterator[Runtime]:
    """A participant that is ready to run, with its connections open. `measure`: tell observers of the weights, too."""
    if not isinstance(participant, ParticipantABC):
        raise ConfigurationError(f"{type(participant).__name__} is no subclass of fedround.ParticipantABC or NumPyParticipant")
    fixed = None if terms.shard is None else Shard(*terms.shard)
    observe = Observers(terms.observers)
    tls = http.tls(terms.tls_ca_file, terms.tls_cert_file, terms.tls_key_file)
    allow = [*terms.aggregator_allow, *filter(None, [urlsplit(terms.aggregator_url or "").hostname])]
    trusting = http.Options(trusted=partial(hosts.trusted, coordinator_url=coordinator_url, allow=allow))
    both = http.Options(token=terms.token, tls=tls, observe=observe, transport=transport, trace=trace)
    with (
        closing(http.CoordinatorClient(coordinator_url, **both)) as coordinator,
        closing(http.AggregatorClient(max_model_size=terms.max_model_size, **both | trusting)) as aggregator,
    ):
        yield Runtime(
            Training(participant, observe, Measuring(observe) if measure else None),
            coordinator,
            aggregator,
            Lifecycle(terms, random.random),
            name=terms.name,
            # Once for each number: it warns of one that wraps.
            shard=cache(lambda ordinal: find_shard(fixed, terms.shards, pod_index, ordinal, terms.name)),
            observe=observe,
            aggregator_url=terms.aggregator_url,
            beat=beat,
        )


@contextmanager
def signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` for each SIGTERM and SIGINT, on another thread, even while the main thread sits in somebody's C code.

    The third one ends the process: whoever sends it has seen that two were not enough.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch() -> None:
        caught = 0
        while number := reader.recv(1):
            if number[0] in SIGNALS:
                caught += 1
                if caught > MAX_SIGNALS:
                    os._exit(128 + number[0])
                on_signal()

    watcher = threading.Thread(target=watch, name="fedround-signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    former = {number: signal.signal(number, _ignore) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()
        watcher.join()
        reader.close()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """The byte in the socket says it all. A handler of Python's there must be, or no byte is written."""
