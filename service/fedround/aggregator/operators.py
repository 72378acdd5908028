"""The aggregator's operations port: the routes for models, and its readiness."""

import json
import logging
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedround.aggregator.codecs import suffix_of
from fedround.aggregator.service import AggregatorService
from fedround.common import durable
from fedround.common.wire import media_type
from fedround.errors import DataDamaged, WeightsError
from fedround.events import Fact, Observer, WeightsMeasured
from fedround.http import asgi
from fedround.observability import ops
from fedround.observability.health import Health

LOG = logging.getLogger(__name__)

MAX_ROLLBACK = 1024
"""Maximum bytes of the body of a rollback request."""


def model_route(service: AggregatorService, access: ops.Access = ops.OPEN) -> Route:
    """Return the route `/model`: the newest global model, or that of `?round=N` or `?round=best`. The `ETag` is its round."""

    async def newest(request: Request) -> Response:
        wanted = request.query_params.get("round")
        if wanted == "best":
            if service.models.best is None:
                return asgi.problem(
                    404, "no best model is known: set COORDINATOR_BEST_BY to a metric of evaluations, and AGGREGATOR_DATA_DIR"
                )
            wanted = str(service.models.best)
        if wanted is not None and not asgi.is_number(wanted):
            return asgi.problem(400, "`round` must be the number of a round, or `best`")
        number = int(wanted) if wanted is not None else service.model.round if service.model else None
        try:
            buffers = await service.models.file_of(number)
        except DataDamaged as error:
            LOG.error("%s", error)
            return asgi.problem(500, str(error))
        if buffers is None and wanted is None:
            return asgi.problem(404, "there is no global model yet: the first round has not completed")
        if buffers is None:
            return asgi.problem(404, "no model of this round is stored: `/status` lists the rounds with one")
        headers = {"ETag": f'"{number}"', "Content-Disposition": f'attachment; filename="model{suffix_of(buffers[0])}"'}
        return asgi.Slices(buffers, headers=headers, media_type="application/octet-stream")

    return access.route("/model", newest)


def rollback_route(service: AggregatorService, access: ops.Access = ops.OPEN) -> Route:
    """Return the route `POST /rollback`: `{"round": N}` makes the stored model of round N the newest."""

    async def roll_back(request: Request) -> Response:
        # This type protects from web pages: they cannot send it to another origin without a preflight request.
        if media_type(request.headers) != "application/json":
            return asgi.problem(415, "the content type must be application/json")
        number = _round_of(await asgi.read_body(request, MAX_ROLLBACK))
        if number is None:
            return asgi.problem(400, 'send {"round": N}, where N is the number of a round')
        try:
            removed = await service.roll_back(number)
        except (DataDamaged, WeightsError) as error:
            LOG.error("%s", error)
            return asgi.problem(500, str(error))
        if removed is None:
            return asgi.problem(404, "no model of this round is stored (AGGREGATOR_DATA_DIR): `/status` lists the rounds with one")
        return Response(json.dumps({"round": number, "removed": removed}) + "\n", media_type="application/json")

    return access.route("/rollback", roll_back, method="POST")


def _round_of(body: bytearray) -> int | None:
    with suppress(ValueError, RecursionError):
        match json.loads(body):
            case {"round": int(number)} if 0 <= number <= durable.LARGEST:
                return number
    return None


def readiness(health: Health) -> Observer:
    """Return an observer that sets readiness: the newest model can be trained."""

    def observer(fact: Fact) -> None:
        if not isinstance(fact, WeightsMeasured):
            return
        if flaw := fact.statistics.flaw:
            health.fault("model", f"the newest model cannot be trained: {flaw}; return to an earlier one with `fedround rollback`")
        else:
            health.clear("model")

    return observer
