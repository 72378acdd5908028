"""The aggregator's HTTP: for participants, for the coordinator, for operators; and the process that serves all three."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from fedround.aggregator import evaluator as evaluators
from fedround.aggregator import operators
from fedround.aggregator.codecs import OPAQUE, Model, read_model
from fedround.aggregator.guards import Guard, Limits
from fedround.aggregator.running import Collected, CollectedBytes, Folded, Running
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool, check_writable
from fedround.aggregator.store import ModelStore
from fedround.aggregator.strategies import ROBUST, UNWEIGHTED, load_strategy
from fedround.common import durable, process, secret, wire
from fedround.common.books import (
    Admission,
    Admit,
    Answer,
    Books,
    Call,
    Close,
    Closed,
    Difference,
    Open,
    Revoke,
    Run,
    Verdict,
    admissions_from_json,
    carry_out,
    figures,
    page_to_json,
)
from fedround.common.durable import Disk
from fedround.common.secret import SecretHolder
from fedround.common.settings import AggregatorSettings
from fedround.common.text import short
from fedround.errors import ConfigurationError, WeightsError
from fedround.events import Observer
from fedround.http import asgi, serve, tls
from fedround.http.serve import Endpoint
from fedround.http.throttle import EXEMPT
from fedround.http.tokens import OPEN, Admitting, guard
from fedround.observability import endpoints, ops
from fedround.observability.health import Health, tended
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.pushes import exporting
from fedround.observability.telemetry import INSTANCE, Telemetry
from fedround.tensors.weights import Layout, Spec

LOG = logging.getLogger(__name__)

CHECK_EVERY = 2.0
"""Seconds between two looks at the directories."""
CHECK_WITHIN = 30.0
"""Seconds after which a look that has not ended is a fault: the disk hangs."""
MAX_CALL = 64 << 20
"""Bytes of a call of the books, which may list every participant."""


# For participants


def public(
    service: AggregatorService,
    *,
    tokens: Admitting = OPEN,
    origins: Sequence[str] = (),
    observe: Observer | None = None,
    trace: asgi.Trace | None = None,
) -> ASGIApp:
    """`GET` and `POST /{id}/{token}`. `tokens`, `origins`, `observe` and `trace`: see `asgi.application`."""

    async def model(request: Request) -> Response:
        model = service.read(*_credentials(request), request.state.owner)
        etag = model.etag if model else '"none"'
        if _matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers={"ETag": etag})
        return asgi.Slices(model.buffers if model else (), headers={"ETag": etag}, media_type="application/octet-stream")

    async def update(request: Request) -> Response:
        id, update_token = _credentials(request)
        length = request.headers.get("content-length", "")
        outcome = await service.deliver(
            id,
            update_token,
            _body(request),
            owner=request.state.owner,
            length=int(length) if length.isdecimal() else None,
            figures=_figures(id, request.headers.get(wire.METRICS)),
            evaluation=_evaluation(request.headers.get(wire.EVALUATION)),
        )
        return Response(headers={wire.UPDATE_OUTCOME: outcome})

    routes = [Route(wire.UPDATE, model), Route(wire.UPDATE, update, methods=["POST"])]
    return asgi.application(routes, tokens=tokens, origins=origins, observe=observe, trace=trace)


def _credentials(request: Request) -> tuple[str, str]:
    # What is no UUID was never admitted either.
    return wire.parse_id(request.path_params["id"]) or "", wire.parse_id(request.path_params["token"]) or ""


async def _body(request: Request) -> AsyncIterator[bytes]:
    """The body. Raises `Unauthorized` at its end if the participant's token was revoked in the meantime."""
    async for chunk in request.stream():
        yield chunk
    asgi.check_admitted(request)


def _ids(path: str) -> tuple[str, str]:
    id, _, token = path.strip("/").partition("/")
    return wire.parse_id(id) or "", wire.parse_id(token.rstrip("/")) or ""


def _matches(if_none_match: str, etag: str) -> bool:
    return etag in (candidate.strip().removeprefix("W/") for candidate in if_none_match.split(","))


def _figures(id: str, header: str | None) -> dict[str, float]:
    """What a participant reports, as far as it is figures. What is none is no reason to refuse its update."""
    if header is None:
        return {}
    reported = None
    with suppress(ValueError, RecursionError):
        reported = json.loads(header) if len(header) <= wire.MAX_METRICS else None
    found = figures(reported)
    if found != reported:
        LOG.warning("the %s of %s are no JSON object of a few finite numbers: what is none is ignored", wire.METRICS, short(id))
    return found


def _evaluation(header: str | None) -> tuple[int, Mapping[str, float]] | None:
    """The samples and the metrics of an evaluation; None where there is none."""
    found = None
    with suppress(ValueError, RecursionError):
        found = json.loads(header) if header is not None and len(header) <= wire.MAX_METRICS else None
    match found:
        case {"samples": int(samples), "metrics": dict(metrics)} if 0 <= samples < 2**32 and not isinstance(samples, bool):
            return samples, figures(metrics)
    return None


# For the coordinator


def internal(
    books: Books, *, tokens: Admitting = OPEN, observe: Observer | None = None, trace: asgi.Trace | None = None
) -> ASGIApp:
    """The books over HTTP (see `fedround.http.remote_books.RemoteBooks`), for the coordinator, which `tokens` knows.

    No web page can call them from a browser: what a page sends has an `Origin`, or another type than JSON.
    """

    async def call(request: Request) -> Response:
        if "origin" in request.headers:
            return asgi.problem(403, "web pages have no access to the books")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return asgi.problem(415, "a call of the books is `application/json`")
        body = await asgi.whole(request, MAX_CALL)
        try:
            call = _CALLS[request.path_params["operation"]](json.loads(body))
        except (KeyError, TypeError, ValueError, RecursionError):
            return asgi.problem(400, "this is no call of the books")
        return _answer(_answer_to_json(await carry_out(books, call)))

    async def ledger(request: Request) -> Response:
        if "origin" in request.headers:
            return asgi.problem(403, "web pages have no access to the books")
        after = request.query_params.get("after", "0")
        if not asgi.is_number(after):
            return asgi.problem(400, "`after` is the number of an entry")
        best = request.query_params.get("best", "")
        best_round = int(best) if asgi.is_number(best) else None
        return _answer(page_to_json(await books.ledger(request.query_params.get("incarnation", ""), int(after), best_round)))

    routes = [Route("/books/ledger", ledger), Route("/books/{operation}", call, methods=["POST"])]
    return asgi.application(routes, tokens=tokens, whose="internal secret (FEDROUND_INTERNAL_SECRET)", observe=observe, trace=trace)


_CALLS: Mapping[str, Callable[[Any], Call]] = {
    "open": lambda data: Open(
        _text(data["attempt"]),
        _number(data["round"]),
        _admissions(data["admissions"]),
        tuple(map(_text, data["forget"])),
        Run(*map(_text, data.get("run", ()))),
        data.get("train", True) is not False,
    ),
    "admit": lambda data: Admit(_text(data["attempt"]), _admissions(data["admissions"])),
    "revoke": lambda data: Revoke(_text(data["attempt"]), _text(data["id"]), _seconds(data.get("patience", 0.0))),
    "close": lambda data: Close(_text(data["attempt"]), tuple(map(_text, data["ids"]))),
}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise ValueError
    return float(value)


def _admissions(data: Any) -> tuple[Admission, ...]:
    admissions = tuple(admissions_from_json(data))
    for admission in admissions:
        for value in astuple(admission):
            _text(value)
    return admissions


def _answer_to_json(answer: Answer) -> dict[str, object]:
    match answer:
        case None:
            return {}
        case Verdict():
            return {"verdict": answer}
        case Closed(parameters):
            return {"closed": {"parameters": parameters}}
        case Difference(missing, surplus):
            return {"difference": {"missing": sorted(missing), "surplus": sorted(surplus)}}


def _answer(data: Mapping[str, object]) -> Response:
    return Response(json.dumps(data, separators=(",", ":")), media_type="application/json")


# The process


def build(settings: AggregatorSettings, observer: Observer, disk: Disk | None = None) -> AggregatorService:
    """The service as the settings want it, with the models that `disk` keeps. Raises `ConfigurationError`."""
    spool = Spool(settings.spool_dir, max_size=settings.max_model_size)
    spool.check()
    layout, begin = _strategy(settings, spool)
    store = ModelStore(disk, keep=settings.keep_models) if disk else None
    model = _model(settings, layout, store, spool)
    limits = Limits(
        change=math.inf if settings.max_update_norm is None else settings.max_update_norm,
        ratio=0.0 if settings.strategy in ROBUST else settings.max_update_ratio,
        samples=settings.max_samples,
        weighted=settings.strategy not in UNWEIGHTED,
    )
    guard = Guard(limits, store.lessons if store else ())
    initial = partial(_initial, settings, layout, spool) if settings.initial_model else None
    evaluator = evaluators.load(settings.evaluate, observer) if settings.evaluate else None
    known: Any = {"layout": layout, "model": model, "initial": initial, "store": store, "evaluator": evaluator}
    options = json.dumps(settings.strategy_options) if settings.strategy_options else ""
    strategy = f"{settings.strategy} {options}".strip()
    return AggregatorService(begin, spool, **known, guard=guard, observer=observer, strategy=strategy)


def _strategy(settings: AggregatorSettings, spool: Spool) -> tuple[Layout | None, Callable[[Layout], Running]]:
    make: Callable[[Spec], Any] = partial(load_strategy(settings.strategy), **settings.strategy_options)
    try:
        example = make(Spec(np.dtype("<f4"), (1,)))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"AGGREGATOR_STRATEGY_OPTIONS: {settings.strategy} does not take them: {error}") from error
    combines, folds = hasattr(example, "combine"), hasattr(example, "fold") and hasattr(example, "result")
    match getattr(example, "codec", "npy"):
        case "npy" if combines:
            return None, lambda layout: Collected(layout, make, spool)
        case "npy" if folds:
            return None, lambda layout: Folded(layout, make)
        case "bytes" if combines:
            return OPAQUE, lambda layout: CollectedBytes(make(layout.tensors[0]), spool)
    raise ConfigurationError(
        f"AGGREGATOR_STRATEGY: {settings.strategy} has neither `fold` and `result` nor `combine`, or an unknown `codec`"
    )


def _model(settings: AggregatorSettings, layout: Layout | None, store: ModelStore | None, spool: Spool) -> Model | None:
    """What training goes on from."""
    if store is not None and store.rounds:
        newest = store.rounds[-1]
        LOG.info("back with the model of round %d", newest)
        try:
            return read_model(newest, store.read(newest), layout, store.read_state(newest))
        except WeightsError as error:
            why = f"the model of round {newest} in AGGREGATOR_DATA_DIR is of another: {error}"
            raise ConfigurationError(f"AGGREGATOR_STRATEGY={settings.strategy}: {why}") from error
    return None if settings.initial_model is None else _initial(settings, layout, spool)


def _initial(settings: AggregatorSettings, layout: Layout | None, spool: Spool) -> Model:
    """Return the initial model. Raises `ConfigurationError`."""
    path = settings.initial_model
    assert path is not None  # noqa: S101 the callers look
    try:
        model = read_model(None, memoryview(bytearray(path.read_bytes())), layout)
        spool.check_size(sum(array.nbytes for array in model.tensors), "as a model it has ")
        return model
    except (OSError, WeightsError) as error:
        raise ConfigurationError(f"AGGREGATOR_INITIAL_MODEL={path}: {error}") from error


def public_endpoint(settings: AggregatorSettings, service: AggregatorService, telemetry: Telemetry) -> Endpoint:
    """Where participants are served."""
    app = public(service, tokens=guard(settings), origins=settings.cors_origins, observe=telemetry.observe, trace=telemetry.server)
    return Endpoint(
        app,
        host=settings.bind,
        port=settings.port,
        setting="AGGREGATOR_PORT",
        kind="public",
        limits=settings.limits,
        known=lambda scope: service.known(*_ids(scope["path"])),
        tls=tls.public(settings),
        observe=telemetry.observe,
    )


def internal_endpoint(settings: AggregatorSettings, service: AggregatorService, telemetry: Telemetry) -> Endpoint:
    """Where the coordinator is served, if it is another process."""
    tokens = SecretHolder(secret.of_aggregator(settings))
    app = internal(service, tokens=tokens, observe=telemetry.observe, trace=telemetry.server)
    files = settings.internal_tls_cert_file, settings.internal_tls_key_file, settings.internal_tls_client_ca_file
    secured = tls.server("AGGREGATOR_INTERNAL", *files)

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
    """Where operators are served."""
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
    with durable.held(settings.data_dir, "AGGREGATOR_DATA_DIR") as disk:
        evaluating = process.run(_run(settings, disk))
    if evaluating:
        process.leave()


async def keep_checking(settings: AggregatorSettings, health: Health, *, every: float = CHECK_EVERY) -> None:
    """Not ready while a directory cannot be written, for as long as this runs."""
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
                health.fine(topic, within=CHECK_WITHIN)
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
        exports.show("aggregator", telemetry)
        with process.capture_signals() as stop:
            async with serve.serving(*endpoints):
                async with tended(health, keep_checking(settings, health), service.models.begin()):
                    await stop.wait()
                    LOG.info("stopping")
                service.stop()
    return service.models.evaluating
