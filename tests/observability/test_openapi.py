"""The OpenAPI document of each service is valid, and describes exactly the endpoints that the service has."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from fedround.aggregator import app as aggregator_app
from fedround.aggregator.build import build
from fedround.common import wire
from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings
from fedround.coordinator import app as coordinator_app
from fedround.events import Observers
from fedround.http import asgi
from fedround.observability import endpoints, ops
from fedround.observability.health import Health
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.observability.openapi import REASONS, Api
from fedround.observability.telemetry import Telemetry

APIS = {api.service: api for api in (endpoints.PARTICIPANT, endpoints.COORDINATOR, endpoints.AGGREGATOR)}
RUN = wire.Run("id", "default", 10, {"rate": 0.1}, evaluate=True, shard=(0, 3))


def apps(service: str, **settings: Any) -> tuple[ASGIApp, ASGIApp | None]:
    """Return the app for operators, and the app for participants."""
    if service == "participant":
        silo = ParticipantSettings(coordinator_url="http://coordinator:8081", class_="silo:Silo", **settings)
        return ops.app(Health(), dict, scrape=Telemetry(ParticipantMetrics).scrape, access=ops.access(silo)), None
    if service == "aggregator":
        of_aggregator = AggregatorSettings(**settings)
        aggregator = build(of_aggregator, Observers())
        telemetry = Telemetry(AggregatorMetrics)
        return aggregator_app.ops_endpoint(of_aggregator, aggregator, Health(), telemetry).app, aggregator_app.public(aggregator)
    of_coordinator = CoordinatorSettings(**settings)
    books = build(AggregatorSettings(), Observers())
    coordinator = coordinator_app.build(of_coordinator, books, Observers())
    telemetry = Telemetry(CoordinatorMetrics)
    return coordinator_app.ops_endpoint(of_coordinator, coordinator, Health(), telemetry).app, coordinator_app.public(coordinator)


def requests(app: ASGIApp | None) -> set[tuple[str, str]]:
    """Return the methods and paths of an app. HEAD goes with GET."""
    if app is None:
        return set()
    assert isinstance(app, asgi.Front)
    assert isinstance(app._app, Starlette)
    routes = [route for route in app._app.routes if isinstance(route, Route)]
    return {(method.lower(), route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}}


def request(app: ASGIApp, method: str, path: str, **headers: str) -> httpx.Response:
    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return await client.request(method, path, headers=headers)

    return asyncio.run(main())


def messages_of(document: dict[str, Any], name: str) -> OAS31Validator:
    return OAS31Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]})


@pytest.mark.parametrize("service", APIS)
def test_the_document_is_valid_and_has_exactly_the_routes_of_the_apps(service: str) -> None:
    operators, participants = apps(service)
    document = request(operators, "get", "/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    methods = {"get", "post", "delete"}
    described = {(method, path) for path, item in document["paths"].items() for method in item.keys() & methods}
    assert described == requests(operators) | requests(participants)
    on_operations_port = {path for path, item in document["paths"].items() if item["servers"][0]["url"] == "/"}
    assert on_operations_port == {path for _, path in requests(operators)}


@pytest.mark.parametrize("service", APIS)
def test_the_document_is_public_unless_operators_have_a_token(service: str) -> None:
    operators, _ = apps(service, ops_token="secret")
    assert request(operators, "get", "/openapi.json").status_code == 401
    found = request(operators, "get", "/openapi.json", Authorization="Bearer secret")
    assert found.json() == APIS[service].document()


@pytest.mark.parametrize(
    "message",
    [
        wire.RendezVous(None),
        wire.RendezVous("0b8b3f6e-52a5-4b44-8e51-5f0a3c1f0a77", 3),
        wire.Heartbeat(wire.HeartbeatState.STAND_BY, counted=7),
        wire.Heartbeat(wire.HeartbeatState.ROUND, 7, "http://aggregator:8082", "token", traceparent="00-...", run=RUN),
        wire.StartTraining(None, None),
        wire.StartTraining("http://aggregator:8082", "token", run=RUN),
        wire.Problem(409, "Conflict", "the round is over"),
    ],
    ids=lambda message: f"{message}"[:40],
)
def test_encoded_messages_fit_their_schemas_and_broken_ones_do_not(message: Any) -> None:
    validator = messages_of(endpoints.COORDINATOR.document(), type(message).__name__)
    sent = json.loads(message.encode())
    validator.validate(sent)
    properties = endpoints.COORDINATOR.document()["components"]["schemas"][type(message).__name__]["properties"]
    assert sent.keys() <= properties.keys()
    assert not validator.is_valid({key: [] for key in sent})


@pytest.mark.parametrize("settings", [{}, {"ops_token": "secret"}], ids=["open", "token"])
@pytest.mark.parametrize("service", APIS)
def test_the_responses_of_every_endpoint_are_described(service: str, settings: Any) -> None:
    """Checks all responses that a request without a body and without a token can cause."""
    for app in filter(None, apps(service, **settings)):
        for method, path in requests(app) - {("get", "/events")}:  # which has no end
            url = path.replace("{id}", "0b8b3f6e-52a5-4b44-8e51-5f0a3c1f0a77").replace("{token}", "x")
            response = request(app, method, url)
            described = APIS[service].document()["paths"][path][method]["responses"]
            assert str(response.status_code) in described, (method, path)
            if response.content:
                media_type = response.headers["content-type"].partition(";")[0]
                assert media_type in described[str(response.status_code)].get("content", {}), (method, path)


@pytest.mark.parametrize("api", APIS.values(), ids=lambda api: api.service)
def test_every_described_reason_is_used(api: Api) -> None:
    used = {status for each in APIS.values() for operation in each.operations for status in operation.refusals}
    assert used == REASONS.keys()
