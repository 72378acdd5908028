"""Floods of requests against a real platform: it serves known participants, and refuses other clients that send too many."""

import json
from typing import Any

import pytest
from pydantic import SecretStr

from fedround import platform
from fedround.aggregator.build import build
from fedround.common.settings import AggregatorSettings, CoordinatorSettings
from fedround.http import throttle
from support.sockets import Answer, connected

LOOPBACK: dict[str, Any] = {"bind": "127.0.0.1", "port": 0, "ops_port": 0}
SOME_ID = "0b8b3f6e-52a5-4b44-8e51-5f0a3c1f0a77"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BURST": 5.0, "RATE": 0.001, "KNOWN_BURST": 8.0, "KNOWN_RATE": 0.001, "DELAY": 0.0}.items():
        monkeypatch.setattr(throttle, name, value)


async def ask(port: int, path: str, **headers: str) -> Answer:
    async with connected(port) as connection:
        await connection.ask("GET", path, **headers)
        return await connection.answer()


async def flood(port: int, path: str, **headers: str) -> set[int]:
    return {(await ask(port, path, **headers)).status for _ in range(30)}


async def test_a_flood_from_an_address_is_refused_but_not_its_known_participants() -> None:
    coordinator = CoordinatorSettings(**LOOPBACK, min_clients=1)
    async with platform.serving(coordinator, AggregatorSettings(**LOOPBACK)) as running:
        at_coordinator, at_aggregator = running.coordinator_public.port, running.aggregator_public.port
        id = json.loads((await ask(at_coordinator, "/rendez_vous")).body)["id"]
        assert await flood(at_coordinator, "/nowhere") == {404, 429}
        assert await flood(at_aggregator, f"/{SOME_ID}/{SOME_ID}") == {404, 429}
        assert (await ask(at_coordinator, "/rendez_vous")).status == 429
        assert (await ask(at_coordinator, f"/heartbeat/{SOME_ID}")).status == 429
        refused = await ask(at_aggregator, f"/{id}/{SOME_ID}")
        assert (refused.status, refused.headers["retry-after"]) == (429, "0"), "to know an id is not enough there"
        await ask(at_coordinator, f"/heartbeat/{id.upper()}/", Prefer="wait=5")
        order = json.loads((await ask(at_coordinator, f"/start_training/{id}")).body)
        assert (await ask(at_aggregator, f"/{id}/{order['token']}")).status == 200


async def test_one_known_participant_cannot_overload_the_service() -> None:
    coordinator = CoordinatorSettings(**LOOPBACK, min_clients=2)
    async with platform.serving(coordinator, AggregatorSettings(**LOOPBACK)) as running:
        port = running.coordinator_public.port
        ids = [json.loads((await ask(port, "/rendez_vous")).body)["id"] for _ in range(2)]
        assert await flood(port, f"/heartbeat/{ids[0]}") == {200, 429}
        assert (await ask(port, f"/heartbeat/{ids[1]}")).status == 200


async def test_operators_and_probes_are_answered_during_a_flood() -> None:
    aggregator = AggregatorSettings(**LOOPBACK, ops_token=SecretStr("geheim"))
    async with platform.serving(CoordinatorSettings(**LOOPBACK), aggregator) as running:
        port = running.aggregator_ops.port
        assert await flood(port, "/metrics") == {401, 429}
        assert await flood(port, "/livez") == {200}
        assert await flood(port, "/status", Authorization="Bearer geheim") == {200}
        port = running.coordinator_ops.port
        assert await flood(port, "/status") == {200, 429}
        assert await flood(port, "/readyz") <= {200, 503}


async def test_internal_requests_of_the_coordinator_are_not_limited() -> None:
    from fedround.aggregator import app
    from fedround.http.serve import serving
    from fedround.observability.metrics.aggregator import AggregatorMetrics
    from fedround.observability.telemetry import Telemetry

    settings = AggregatorSettings(internal_port=0, internal_secret=SecretStr("geheim"))
    telemetry = Telemetry(AggregatorMetrics)
    endpoint = app.internal_endpoint(settings, build(settings, telemetry.observe), telemetry)
    async with serving(endpoint):
        path = "/books/ledger?after=nonsense"
        assert await flood(endpoint.port, path) == {401, 429}
        assert await flood(endpoint.port, path, Authorization="Bearer geheim") == {400}
