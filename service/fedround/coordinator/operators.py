"""What operators ask of a coordinator beside its status: its runs, and their rounds."""

import asyncio
import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedround import asgi
from fedround.asking import HISTORY, RUNS
from fedround.coordinator.service import CoordinatorService
from fedround.observability import ops


def routes(service: CoordinatorService, access: ops.Access = ops.OPEN) -> list[Route]:
    """`/runs`, and `/history?run=NAME`, without a name that of the current run."""

    async def runs(request: Request) -> Response:
        return JSONResponse({"runs": await service.runs()})

    async def history(request: Request) -> Response:
        name = request.query_params.get("run") or service.current.id
        rounds = await service.history(name)
        if rounds is None:
            return asgi.problem(404, "there is no run of that name or id: GET /runs lists them")
        run = next(run for run in await service.runs() if name in (run["id"], run["name"]))
        # A long history takes a while: not on the event loop, which answers heartbeats.
        text = await asyncio.to_thread(json.dumps, {"run": run, "rounds": rounds})
        return Response(text, media_type="application/json")

    return [access.route(RUNS, runs), access.route(HISTORY, history)]
