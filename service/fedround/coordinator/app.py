"""The process of the coordinator: the app for participants, the endpoints of both ports, and what runs until SIGTERM."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from random import SystemRandom
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive

from fedround import events
from fedround.common import durable, process, secret, wire
from fedround.common.books import Books
from fedround.common.durable import Directory, Disk
from fedround.common.settings import CoordinatorSettings
from fedround.common.wire import Departure, Heartbeat, Problem, RendezVous, StartTraining
from fedround.coordinator import operators, page, store
from fedround.coordinator.archive import Archive
from fedround.coordinator.goal import SERVER, Goal, Stop
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.relay import Relay, relaying
from fedround.coordinator.relay import routes as routes_of_relay
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.run import Run
from fedround.coordinator.service import CoordinatorService
from fedround.errors import ConfigurationError, TooLarge
from fedround.events import Fact, Observer
from fedround.http import asgi, serve, tls
from fedround.http.remote_books import RemoteBooks
from fedround.http.serve import Endpoint
from fedround.http.tls import Names
from fedround.http.tokens import NO_TOKENS, TokenCheck, tokens_of
from fedround.http.transport import tls as client_tls
from fedround.observability import endpoints, ops
from fedround.observability.health import Health, running
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.pushes import exporting
from fedround.observability.telemetry import INSTANCE, Telemetry

LOG = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Number of attempts of a round that fail for lasting reasons until the coordinator is not ready."""
ANONYMOUS = "participant"
"""Name of a participant that sends none."""


# The app for participants


def public(
    service: CoordinatorService,
    *,
    tokens: TokenCheck = NO_TOKENS,
    origins: Sequence[str] = (),
    observe: Observer | None = None,
    trace: asgi.Trace | None = None,
    relay: Relay | None = None,
) -> ASGIApp:
    """Return the app for participants. A participant that uses no additions to the protocol gets exactly the bytes of 0.8.

    A participant with a proved identity has the name of that identity.

    Args:
        service: The coordinator.
        tokens: The tokens of participants. For this argument and the next three see `asgi.application`.
        origins: The web origins whose pages may read responses.
        observe: Receives facts about requests.
        trace: Opens the span of a request.
        relay: Receives telemetry; None: the coordinator refuses it.
    """

    async def rendez_vous(request: Request, _: str) -> Response:
        return _json(_join(service, request))

    async def heartbeat(request: Request, id: str) -> Response:
        wait = wire.parse_prefer_wait(request.headers.get(wire.PREFER))
        reported = {"trouble": wire.one_line(request.headers.get(wire.TROUBLE, "")), "phase": request.headers.get(wire.PHASE, "")}
        answer = await service.heartbeat(id, wait=wait or 0.0, **reported, hung_up=partial(_hung_up, request.receive))
        asgi.check_admitted(request)  # the token may have been revoked during a long poll
        if wait is None:
            return _json(Heartbeat(answer.state, answer.round))
        return _json(answer, {wire.PREFERENCE_APPLIED: f"wait={wait:.0f}"})

    async def start_training(request: Request, id: str) -> Response:
        return _json(service.start_training(id))

    async def leave(request: Request, id: str) -> Response:
        service.leave(id, await _failure(request))
        return Response(status_code=204)

    routes = [
        _route(wire.RENDEZ_VOUS, "GET", rendez_vous, service),
        _route(wire.HEARTBEAT, "GET", heartbeat, service),
        _route(wire.START_TRAINING, "GET", start_training, service),
        _route(wire.LEAVE, "DELETE", leave, service),
        *routes_of_relay(relay),
    ]
    return asgi.application(routes, tokens=tokens, origins=origins, observe=observe, trace=trace)


def _join(service: CoordinatorService, request: Request) -> RendezVous:
    name = request.headers.get(wire.PARTICIPANT_NAME)
    ordinal = request.headers.get(wire.ORDINAL, "")
    answer = service.join(
        request.state.owner or wire.parse_name(name) or ANONYMOUS,
        int(ordinal) if asgi.is_number(ordinal) and len(ordinal) <= 6 else None,
        extended=name is not None,
        owner=request.state.owner,
        evaluates=name is not None and request.headers.get(wire.EVALUATES) == "true",
        claim=wire.Claim.decode(request.headers) if name is not None else None,
    )
    return answer if name is not None else replace(answer, ordinal=None)


def _route(path: str, method: str, handler: Callable[[Request, str], Awaitable[Response]], service: CoordinatorService) -> Route:
    async def endpoint(request: Request) -> Response:
        id = wire.parse_id(request.path_params["id"]) if "id" in request.path_params else ""
        if id is None:
            return Response(status_code=404)
        if request.method == "HEAD":
            # HEAD is safe (RFC 9110, section 9.2.1): it must neither register a participant nor count as a heartbeat.
            return Response(media_type="application/json")
        service.authorize(id, request.state.owner)
        service.note_certificate(id, request.state.certificate)
        return await handler(request, id)

    return Route(path, endpoint, methods=[method])


def _json(answer: RendezVous | Heartbeat | StartTraining, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.encode(), headers=headers, media_type="application/json")


async def _failure(request: Request) -> str:
    """Return why a participant failed; empty if its request has no valid reason."""
    if wire.media_type(request.headers) == Problem.media_type:
        with suppress(TimeoutError, TooLarge):
            async with asyncio.timeout(wire.DRAIN_SECONDS):
                return Departure.decode(bytes(await asgi.read_body(request, wire.MAX_PROBLEM))).reason
    return ""


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# The process


def build(
    settings: CoordinatorSettings,
    books: Books,
    observer: Observer,
    disk: Disk | None = None,
    trace: Callable[[], Mapping[str, str]] = dict,
) -> CoordinatorService:
    """Return the service for the settings.

    Args:
        settings: The settings of the coordinator.
        books: The books of the aggregator.
        observer: Receives every fact.
        disk: The data directory, with the state from before a restart; None: state does not persist.
        trace: See `CoordinatorService`.

    Raises:
        ConfigurationError: The settings contradict each other, or another run has the name.
        DataDamaged: The state in the data directory cannot be read.
    """
    plan = Plan(
        rounds=settings.rounds,
        participants_ratio=settings.participants_ratio,
        min_clients=settings.min_clients,
        heartbeat_timeout=settings.heartbeat_timeout,
        round_timeout=settings.round_timeout,
        seats=settings.seats,
        shared_seats=settings.shared_seats,
        config=settings.round_config,
        evaluate_every=settings.evaluate_every,
        evaluate_timeout=settings.evaluate_timeout,
        goal=_goal(settings),
        evaluate_ratio=settings.evaluate_ratio,
        quorum=settings.quorum,
        quorum_grace=settings.grace,
        overselect=settings.overselect,
    )
    memory = with_run(store.load(disk) if disk else Memory(), settings.run_name)
    rounds = Rounds(plan, SystemRandom(), time.monotonic(), memory)  # the random numbers must be unpredictable: they become tokens
    if memory.participants:
        LOG.info("resumed after a restart: round %d, %d known participants", memory.round, len(memory.participants))
    if rounds.complete:
        stopped = rounds.ending.stopped
        how = "change COORDINATOR_STOP_WHEN or COORDINATOR_PATIENCE" if stopped else "raise COORDINATOR_ROUNDS"
        more = f"to continue it, {how}; to start another run, change COORDINATOR_RUN_NAME"
        done = f"{rounds.round - rounds.run.first} rounds" + (f", stopped early ({stopped})" if stopped else "")
        LOG.info("run %s is already complete, after %s: %s", settings.run_name, done, more)
    archive = Archive(disk.path if isinstance(disk, Directory) else None)
    known: Any = {"archive": archive, "save": partial(store.save, disk) if disk else None}
    archive.check(rounds.run)
    return CoordinatorService(rounds, books, aggregator_url=settings.aggregator_url, observer=observer, trace=trace, **known)


def _goal(settings: CoordinatorSettings) -> Goal:
    if settings.patience and settings.best_by is None:
        raise ConfigurationError("COORDINATOR_PATIENCE: set COORDINATOR_BEST_BY too: the metric that selects the best model")
    metric, largest = settings.best_by or ("", True)
    goal = Goal(metric, largest, settings.patience, Stop(*settings.stop_when) if settings.stop_when else None)
    for setting, metric in goal.metrics.items():
        if settings.evaluate_every == 0 and not metric.startswith(SERVER):
            raise ConfigurationError(f"COORDINATOR_EVALUATE_EVERY: 0 turns off the evaluations that {setting} needs")
    return goal


def with_run(memory: Memory, name: str) -> Memory:
    """Return the memory with the run of this name. In a new run, round numbers continue, and participants register again."""
    if memory.run is None:
        return replace(memory, run=Run(str(uuid4()), name, 0, time.time()))
    if memory.run.name == name:
        return memory
    run = Run(str(uuid4()), name, memory.round, time.time())
    return Memory(memory.round, generation=memory.generation, run=run, evaluated=memory.evaluated)


def readiness(health: Health) -> Observer:
    """Return an observer that sets readiness: the aggregator is reachable, writes succeed, and rounds complete."""
    health.fault("aggregator", "the aggregator has not been reached yet")

    def observer(fact: Fact) -> None:
        match fact:
            case events.AggregatorUnreachable(reason=reason):
                health.fault("aggregator", f"no contact with the aggregator: {reason}")
            case events.AggregatorReached():
                health.clear("aggregator")
            case events.AttemptDropped(failures=failures) if failures >= MOST_FAILURES:
                health.fault("round", f"round {fact.round} has failed {failures} times: {fact.reason}")
            case events.RoundCompleted() | events.TrainingCompleted():
                health.clear("round")
            case events.SaveFailed(what, reason):
                health.fault("data directory", f"{what} cannot be written to the data directory, and no round begins: {reason}")
            case events.StateSaved():
                health.clear("data directory")

    return observer


def public_endpoint(
    settings: CoordinatorSettings, service: CoordinatorService, telemetry: Telemetry, relay: Relay | None = None
) -> Endpoint:
    """Return the endpoint of the participants' port."""
    observed: Any = {"observe": telemetry.observe, "trace": telemetry.server}
    app = public(service, tokens=tokens_of(settings), origins=settings.cors_origins, relay=relay, **observed)
    return Endpoint(
        app,
        host=settings.bind,
        port=settings.port,
        setting="COORDINATOR_PORT",
        kind="public",
        limits=settings.limits,
        known=lambda scope: service.known(wire.parse_id(scope["path"].rstrip("/").rpartition("/")[2]) or ""),
        tls=telemetry.watched(tls.public(settings)),
        observe=telemetry.observe,
    )


def ops_endpoint(settings: CoordinatorSettings, service: CoordinatorService, health: Health, telemetry: Telemetry) -> Endpoint:
    """Return the endpoint of the operations port."""

    def status() -> Mapping[str, object]:
        return service.status() | {"warnings": telemetry.log.warnings}

    telemetry.show(lambda: service.status() | service.by_name(settings.metrics_participants))
    access = ops.access(settings)
    routes = [*page.routes(health, status, access), *operators.routes(service, access)]
    app = ops.app(health, status, scrape=telemetry.scrape, routes=routes, access=access, api=endpoints.COORDINATOR)
    return Endpoint(
        app,
        host=settings.bind,
        port=settings.ops_port,
        setting="COORDINATOR_OPS_PORT",
        kind="ops",
        last=True,
        tls=tls.operators(settings),
        observe=telemetry.observe,
        known=access.known,
    )


def run(settings: CoordinatorSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigurationError`."""
    with durable.locked(settings.data_dir, "COORDINATOR_DATA_DIR") as disk:
        process.run(_run(settings, disk))


def _books(settings: CoordinatorSettings, telemetry: Telemetry) -> RemoteBooks:
    names = Names.of("COORDINATOR_INTERNAL")
    files = settings.internal_tls_ca_file, settings.internal_tls_cert_file, settings.internal_tls_key_file
    url, internal_secret = settings.aggregator_internal_url, secret.of_coordinator(settings)
    internal_tls = telemetry.watched(client_tls(*files, names))
    return RemoteBooks(url, secret=internal_secret, tls=internal_tls, trace=telemetry.client)


async def _run(settings: CoordinatorSettings, disk: Disk | None) -> None:
    health = Health()
    with process.capture_signals() as stop, exporting("coordinator", INSTANCE) as exports:
        telemetry = Telemetry(CoordinatorMetrics, [readiness(health)], exports.tracing)
        async with aclosing(_books(settings, telemetry)) as books, relaying(settings, telemetry.observe) as relay:
            service = build(settings, books, telemetry.observe, disk, telemetry.round_context)
            endpoints = (
                public_endpoint(settings, service, telemetry, relay),
                ops_endpoint(settings, service, health, telemetry),
            )
            exports.add("coordinator", telemetry)
            async with serve.serving(*endpoints), running(health, service.run()):
                await stop.wait()
                LOG.info("stopping")
