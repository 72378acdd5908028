import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from fedround import platform
from fedround.common.settings import AggregatorSettings, CoordinatorSettings
from fedround.errors import ConfigurationError
from fedround.http.serve import Endpoint
from fedround.platform import Platform
from support.federation import ANY_PORT
from support.processes import running
from support.updates import update

LONG_POLL = {"Prefer": "wait=15"}


def url(endpoint: Endpoint) -> str:
    return f"http://127.0.0.1:{endpoint.port}"


async def participate(http: httpx.AsyncClient, coordinator: str, value: float) -> int:
    """Train until the end, each time with weights of `value`. Return the number of rounds."""
    rounds = 0
    id = (await http.get(f"{coordinator}/rendez_vous")).json()["id"]
    while (order := (await http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL)).json())["state"] != "finish":
        if order["state"] == "round":
            place = f"{order['url']}/{id}/{order['token']}"
            assert (await http.get(place)).status_code == 200
            answer = await http.post(place, content=update(1, *[value] * 5))
            assert (answer.status_code, answer.headers["fedround-update"]) == (200, "counted")
            rounds += 1
    return rounds


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[tuple[Platform, httpx.AsyncClient]]:
    coordinator = CoordinatorSettings.model_validate({**ANY_PORT, **settings})
    aggregator = AggregatorSettings.model_validate(ANY_PORT)
    async with asyncio.timeout(30), httpx.AsyncClient() as http, platform.serving(coordinator, aggregator) as p:
        yield p, http


async def test_a_platform_in_one_process_trains_and_continues_to_serve_the_model() -> None:
    async with serving(rounds=3, min_clients=4) as (p, http):
        coordinator = url(p.coordinator_public)
        trained = await asyncio.gather(*(participate(http, coordinator, value) for value in (0.0, 1.0, 2.0, 3.0)))
        assert trained == [3, 3, 3, 3]
        model = await http.get(f"{url(p.aggregator_ops)}/model")
        assert model.headers["etag"] == '"2"'
        assert np.load(io.BytesIO(model.content)).tolist() == [1.5] * 5
        status = (await http.get(f"{url(p.coordinator_ops)}/status")).json()
        assert (status["state"], status["round"], len(status["last_rounds"])) == ("complete", 3, 3)
        assert (await http.get(f"{coordinator}/rendez_vous")).json() == {"id": None, "ok": False}
        for ops in (p.coordinator_ops, p.aggregator_ops):
            assert (await http.get(f"{url(ops)}/readyz")).status_code == 200


async def test_an_invalid_update_is_refused_and_the_round_continues() -> None:
    async with serving(rounds=1, min_clients=2, participants_ratio=0.5) as (p, http):
        coordinator = url(p.coordinator_public)
        ids = [(await http.get(f"{coordinator}/rendez_vous")).json()["id"] for _ in range(2)]
        orders = {id: asyncio.create_task(http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL)) for id in ids}
        (first,), (second,) = await asyncio.wait(orders.values(), return_when=asyncio.FIRST_COMPLETED)
        bad = first.result().json()
        id = next(id for id, task in orders.items() if task is first)
        refused = await http.post(f"{bad['url']}/{id}/{bad['token']}", content=b"nonsense")
        assert refused.status_code == 415
        order = (await second).json()
        id = next(id for id, task in orders.items() if task is second)
        await http.post(f"{order['url']}/{id}/{order['token']}", content=update(1, *[1.0] * 5))
        # The update is counted, but the round may take another moment to close.
        assert (await http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL)).json()["state"] == "finish"


async def test_participants_get_the_configured_address_of_the_aggregator() -> None:
    async with serving(aggregator_url="http://elsewhere:1") as (p, _):
        assert p.coordinator.aggregator_url == "http://elsewhere:1"


@pytest.mark.timeout(20)
def test_two_services_in_one_directory_are_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(tmp_path)
    coordinator = CoordinatorSettings(data_dir=tmp_path / "data")
    aggregator = AggregatorSettings(data_dir=tmp_path / "other" / "data")
    with pytest.raises(ConfigurationError, match=r"COORDINATOR_DATA_DIR and AGGREGATOR_DATA_DIR are the same"):
        platform.run(coordinator, aggregator)


async def test_sigterm_ends_a_platform_immediately_and_answers_long_polls() -> None:
    with running("platform", COORDINATOR_MIN_CLIENTS="2") as p:
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=p.url("COORDINATOR_PORT")) as http:
            id = (await http.get("/rendez_vous")).json()["id"]
            holds = [asyncio.create_task(http.get(f"/heartbeat/{id}", headers=LONG_POLL)) for _ in range(2)]
            # One of the two ended the other's hold: so one is held now.
            (_,), (held,) = await asyncio.wait(holds, return_when=asyncio.FIRST_COMPLETED)
            assert await asyncio.to_thread(p.end) == 0
            assert (await held).json()["state"] == "stand_by"
