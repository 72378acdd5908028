"""What operators ask of a coordinator beside its status: its runs, and their rounds."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedround.commands.asking import HISTORY, RUNS
from fedround.coordinator.service import CoordinatorService
from fedround.http import asgi
from fedround.observability import ops


def routes(service: CoordinatorService, access: ops.Access = ops.OPEN) -> list[Route]:
    """`/runs`, and `/history?run=NAME`, without a name that of the current run."""

    async def runs(request: Request) -> Response:
        return JSONResponse({"runs": await service.runs()})

    async def history(request: Request) -> Response:
        found = await service.history(request.query_params.get("run") or service.current.id)
        if found is None:
            return asgi.problem(404, "there is no run of that name or id: GET /runs lists them")
        return Response(found, media_type="application/json")

    return [access.route(RUNS, runs), access.route(HISTORY, history)]
