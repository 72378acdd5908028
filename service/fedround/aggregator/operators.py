"""What the aggregator's ops port has for operators beside `observability.ops`: its models."""

import json
import logging
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedround.aggregator.codecs import suffix_of
from fedround.aggregator.service import AggregatorService
from fedround.common import durable
from fedround.errors import DataDamaged, WeightsError
from fedround.events import Fact, Observer, WeightsMeasured
from fedround.http import asgi
from fedround.observability import ops
from fedround.observability.health import Health

LOG = logging.getLogger(__name__)

MAX_ROLLBACK = 1024
"""Bytes of a request to roll back."""


def model_route(service: AggregatorService, access: ops.Access = ops.OPEN) -> Route:
    """`/model` for the ops port: the newest global model, that of `?round=N`, or of `?round=best`; its round is the `ETag`."""

    async def newest(request: Request) -> Response:
        wanted = request.query_params.get("round")
        if wanted == "best":
            if service.models.best is None:
                return asgi.problem(404, "no model is known as the best: set COORDINATOR_BEST_BY and AGGREGATOR_DATA_DIR")
            wanted = str(service.models.best)
        if wanted is not None and not asgi.is_number(wanted):
            return asgi.problem(400, "`round` is the number of a round, or best")
        number = int(wanted) if wanted is not None else service.model.round if service.model else None
        try:
            buffers = await service.models.kept(number)
        except DataDamaged as error:
            LOG.error("%s", error)
            return asgi.problem(500, str(error))
        if buffers is None and wanted is None:
            return asgi.problem(404, "there is no global model before the first round is completed")
        if buffers is None:
            return asgi.problem(404, "that model is not kept: `/status` names the rounds whose models are")
        headers = {"ETag": f'"{number}"', "Content-Disposition": f'attachment; filename="model{suffix_of(buffers[0])}"'}
        return asgi.Slices(buffers, headers=headers, media_type="application/octet-stream")

    return access.route("/model", newest)


def rollback_route(service: AggregatorService, access: ops.Access = ops.OPEN) -> Route:
    """`POST /rollback` for the ops port, with `{"round": N}`: makes the kept model of that round the newest."""

    async def roll_back(request: Request) -> Response:
        # A web page cannot send this type to another origin unasked.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return asgi.problem(415, "send application/json")
        number = _round_of(await asgi.whole(request, MAX_ROLLBACK))
        if number is None:
            return asgi.problem(400, 'send {"round": N}, the number of a round')
        try:
            removed = await service.roll_back(number)
        except (DataDamaged, WeightsError) as error:
            LOG.error("%s", error)
            return asgi.problem(500, str(error))
        if removed is None:
            return asgi.problem(404, "that model is not kept: `/status` names the rounds whose models are (AGGREGATOR_DATA_DIR)")
        return Response(json.dumps({"round": number, "removed": removed}) + "\n", media_type="application/json")

    return access.route("/rollback", roll_back, method="POST")


def _round_of(body: bytearray) -> int | None:
    with suppress(ValueError, RecursionError):
        match json.loads(body):
            case {"round": int(number)} if 0 <= number <= durable.LARGEST:
                return number
    return None


def readiness(health: Health) -> Observer:
    """An observer by which the aggregator is ready while its newest model is one that can be trained on."""

    def observer(fact: Fact) -> None:
        if not isinstance(fact, WeightsMeasured):
            return
        if flaw := fact.statistics.flaw:
            health.fault("model", f"nobody can train on the newest model: {flaw}; `fedround rollback` returns to a former one")
        else:
            health.fine("model")

    return observer
