"""The process of the aggregator: the app for participants, the endpoints of all ports, and what runs until SIGTERM."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from fedround.aggregator import operators
from fedround.aggregator.build import build
from fedround.aggregator.internal import internal
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import check_writable
from fedround.common import durable, exiting, process, secret, wire
from fedround.common.books import valid_metrics
from fedround.common.durable import Disk
from fedround.common.secret import SecretHolder
from fedround.common.settings import AggregatorSettings
from fedround.common.text import short
from fedround.events import Observer
from fedround.http import asgi, serve, tls
from fedround.http.serve import Endpoint
from fedround.http.throttle import EXEMPT
from fedround.http.tokens import NO_TOKENS, TokenCheck, tokens_of
from fedround.observability import endpoints, ops
from fedround.observability.health import Health, running
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.pushes import exporting
from fedround.observability.telemetry import INSTANCE, Telemetry

LOG = logging.getLogger(__name__)

CHECK_EVERY = 2.0
"""Seconds between two checks of the directories."""
CHECK_WITHIN = 30.0
"""Seconds after which an unfinished check is a fault: the disk hangs."""


# The app for participants


def public(
    service: AggregatorService,
    *,
    tokens: TokenCheck = NO_TOKENS,
    origins: Sequence[str] = (),
    observe: Observer | None = None,
    trace: asgi.Trace | None = None,
) -> ASGIApp:
    """Return the app for participants: `GET` and `POST /{id}/{token}`. For the arguments see `asgi.application`."""

    async def model(request: Request) -> Response:
        model = service.read(*_ids(request.scope), request.state.owner)
        etag = model.etag if model else '"none"'
        if _matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers={"ETag": etag})
        return asgi.Slices(model.buffers if model else (), headers={"ETag": etag}, media_type="application/octet-stream")

    async def update(request: Request) -> Response:
        id, update_token = _ids(request.scope)
        length = request.headers.get("content-length", "")
        outcome = await service.deliver(
            id,
            update_token,
            _body(request),
            owner=request.state.owner,
            length=int(length) if length.isdecimal() else None,
            metrics=_metrics(id, request.headers.get(wire.METRICS)),
            evaluation=_evaluation(request.headers.get(wire.EVALUATION)),
        )
        return Response(headers={wire.UPDATE_OUTCOME: outcome})

    routes = [Route(wire.UPDATE, model), Route(wire.UPDATE, update, methods=["POST"])]
    return asgi.application(routes, tokens=tokens, origins=origins, observe=observe, trace=trace)


async def _body(request: Request) -> AsyncIterator[bytes]:
    """Yield the body. Raises `Unauthorized` at its end if the participant's token was revoked in the meantime."""
    async for chunk in request.stream():
        yield chunk
    asgi.check_admitted(request)


def _ids(scope: Scope) -> tuple[str, str]:
    """Return the id and the token in a path. Only UUIDs are ever admitted."""
    id, _, token = scope["path"].strip("/").partition("/")
    return wire.parse_id(id) or "", wire.parse_id(token) or ""


def _matches(if_none_match: str, etag: str) -> bool:
    return etag in (candidate.strip().removeprefix("W/") for candidate in if_none_match.split(","))


def _metrics(id: str, header: str | None) -> dict[str, float]:
    """Return the reported metrics that are valid. Invalid metrics are ignored: they are no reason to refuse the update."""
    if header is None:
        return {}
    reported = _decoded(header)
    found = valid_metrics(reported)
    if found != reported:
        LOG.warning("ignored invalid metrics: %s of %s is not a JSON object of a few finite numbers", wire.METRICS, short(id))
    return found


def _evaluation(header: str | None) -> tuple[int, Mapping[str, float]] | None:
    """Return the samples and the metrics of an evaluation; None without a valid one."""
    match _decoded(header or ""):
        case {"samples": int(samples), "metrics": dict(metrics)} if 0 <= samples < 2**32 and not isinstance(samples, bool):
            return samples, valid_metrics(metrics)
    return None


def _decoded(header: str) -> object:
    """Return the JSON value of a header; None if it is invalid or too long."""
    with suppress(ValueError, RecursionError):
        return json.loads(header) if len(header) <= wire.MAX_METRICS_BYTES else None
    return None


# The process


def public_endpoint(settings: AggregatorSettings, service: AggregatorService, telemetry: Telemetry) -> Endpoint:
    """Return the endpoint of the participants' port."""
    app = public(
        service, tokens=tokens_of(settings), origins=settings.cors_origins, observe=telemetry.observe, trace=telemetry.server
    )
    return Endpoint(
        app,
        host=settings.bind,
        port=settings.port,
        setting="AGGREGATOR_PORT",
        kind="public",
        limits=settings.limits,
        known=lambda scope: service.known(*_ids(scope)),
        tls=telemetry.watched(tls.public(settings)),
        observe=telemetry.observe,
    )


def internal_endpoint(settings: AggregatorSettings, service: AggregatorService, telemetry: Telemetry) -> Endpoint:
    """Return the endpoint of the internal port, for a coordinator in another process."""
    tokens = SecretHolder(secret.of_aggregator(settings))
    app = internal(service, tokens=tokens, observe=telemetry.observe, trace=telemetry.server)
    files = settings.internal_tls_cert_file, settings.internal_tls_key_file, settings.internal_tls_client_ca_file
    secured = telemetry.watched(tls.server("AGGREGATOR_INTERNAL", *files))

    def known(scope: Scope) -> object | None:
        return None if asgi.bearer(Headers(scope=scope), tokens) is None else EXEMPT

    return Endpoint(
        app,
        host=settings.internal_bind,
        port=settings.internal_port,
        setting="AGGREGATOR_INTERNAL_PORT",
        kind="internal",
        tls=secured,
        observe=telemetry.observe,
        known=known,
    )


def ops_endpoint(settings: AggregatorSettings, service: AggregatorService, health: Health, telemetry: Telemetry) -> Endpoint:
    """Return the endpoint of the operations port."""
    telemetry.show(service.status)
    service.faults = lambda: health.reasons
    access = ops.access(settings)
    routes = [operators.model_route(service, access), operators.rollback_route(service, access)]
    app = ops.app(health, service.status, scrape=telemetry.scrape, routes=routes, access=access, api=endpoints.AGGREGATOR)
    return Endpoint(
        app,
        host=settings.bind,
        port=settings.ops_port,
        setting="AGGREGATOR_OPS_PORT",
        kind="ops",
        last=True,
        tls=tls.operators(settings),
        observe=telemetry.observe,
        known=access.known,
    )


def run(settings: AggregatorSettings) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigurationError`."""
    with durable.locked(settings.data_dir, "AGGREGATOR_DATA_DIR") as disk:
        evaluating = process.run(_run(settings, disk))
    if evaluating:
        exiting.exit_now(0)


async def keep_checking(settings: AggregatorSettings, health: Health, *, every: float = CHECK_EVERY) -> None:
    """Check every `every` seconds that the directories are writable, until cancelled. If one is not, the service is not ready."""
    directories = {"spool directory": settings.spool_dir} | ({"data directory": settings.data_dir} if settings.data_dir else {})
    failing: set[str] = set()
    while True:
        for topic, directory in directories.items():
            try:
                await asyncio.to_thread(check_writable, directory)
            except OSError as error:
                health.fault(topic, f"the {topic} cannot be written: {error.strerror}")
                if topic not in failing:
                    LOG.warning("the %s cannot be written: %s", topic, error)
                failing.add(topic)
            else:
                health.clear(topic, within=CHECK_WITHIN)
                if topic in failing:
                    LOG.info("the %s can be written again", topic)
                failing.discard(topic)
        await asyncio.sleep(every)


async def _run(settings: AggregatorSettings, disk: Disk | None) -> bool:
    """Serve until a signal. Return whether a model is still being evaluated."""
    health = Health()
    with exporting("aggregator", INSTANCE) as exports:
        telemetry = Telemetry(AggregatorMetrics, [operators.readiness(health)], exports.tracing)
        service = build(settings, telemetry.observe, disk)
        endpoints = (
            public_endpoint(settings, service, telemetry),
            internal_endpoint(settings, service, telemetry),
            ops_endpoint(settings, service, health, telemetry),
        )
        exports.add("aggregator", telemetry)
        with process.capture_signals() as stop:
            async with serve.serving(*endpoints):
                async with running(health, keep_checking(settings, health), service.models.begin()):
                    await stop.wait()
                    LOG.info("stopping")
                service.stop()
    return service.models.evaluating
