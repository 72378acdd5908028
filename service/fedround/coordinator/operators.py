"""The routes of the coordinator's operations port for runs and their rounds."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fedround.commands.ops_port import HISTORY, RUNS
from fedround.coordinator.archive import Archive
from fedround.coordinator.service import CoordinatorService
from fedround.http import asgi
from fedround.observability import ops


def routes(service: CoordinatorService, access: ops.Access = ops.OPEN) -> list[Route]:
    """Return the routes `/runs` and `/history?run=NAME&points=NUMBER`.

    The default of `run` is the current run. With `points`, the history has at most this many rounds, for curves.
    """

    async def runs(request: Request) -> Response:
        archive = await service.archive()
        return JSONResponse({"runs": await asyncio.to_thread(archive.runs)})

    async def history(request: Request) -> Response:
        points = request.query_params.get("points", "0")
        if not asgi.is_number(points):
            return asgi.problem(400, "points must be a whole number, such as 1000")
        archive = await service.archive()
        found = await asyncio.to_thread(archive.runs, request.query_params.get("run") or service.current.id)
        if not found:
            return asgi.problem(404, "no run has this name or id: GET /runs lists all runs")
        return StreamingResponse(_written(archive, found[0], int(points)), media_type="application/json")

    return [access.route(RUNS, runs), access.route(HISTORY, history)]


async def _written(archive: Archive, run: Mapping[str, Any], most: int) -> AsyncIterator[str]:
    """Yield a run and its rounds as JSON. Each round is a line, so that a client can read one after the other."""
    yield f'{{"run": {json.dumps(run)}, "rounds": ['
    after, separator = -1, "\n"
    while batch := await asyncio.to_thread(archive.rounds, run, after, most):
        yield separator + ",\n".join(document for _, document in batch)
        after, separator = batch[-1][0], ",\n"
    yield "\n]}\n"
