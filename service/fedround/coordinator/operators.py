"""The routes of the coordinator's operations port for runs and their rounds."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedround.commands.ops_port import HISTORY, RUNS
from fedround.coordinator.service import CoordinatorService
from fedround.http import asgi
from fedround.observability import ops


def routes(service: CoordinatorService, access: ops.Access = ops.OPEN) -> list[Route]:
    """Return the routes `/runs` and `/history?run=NAME`. The default of `run` is the current run."""

    async def runs(request: Request) -> Response:
        return JSONResponse({"runs": await service.runs()})

    async def history(request: Request) -> Response:
        found = await service.history(request.query_params.get("run") or service.current.id)
        if found is None:
            return asgi.problem(404, "no run has this name or id: GET /runs lists all runs")
        return Response(found, media_type="application/json")

    return [access.route(RUNS, runs), access.route(HISTORY, history)]
