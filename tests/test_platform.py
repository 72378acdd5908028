import asyncio
import io
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import numpy as np
import pytest

from fedround import platform
from fedround.errors import ConfigurationError
from fedround.platform import Platform
from fedround.serve import Endpoint
from fedround.settings import AggregatorSettings, CoordinatorSettings

LONG_POLL = {"Prefer": "wait=15"}
ANY_PORT = {"bind": "127.0.0.1", "port": 0, "ops_port": 0}


def url(endpoint: Endpoint) -> str:
    return f"http://127.0.0.1:{endpoint.port}"


def update(weights: np.ndarray, samples: int) -> bytes:
    body = io.BytesIO()
    np.save(body, weights)
    return samples.to_bytes(4, "big") + body.getvalue()


def array(body: bytes) -> np.ndarray:
    return np.load(io.BytesIO(body), allow_pickle=False)  # type: ignore[no-any-return]  # numpy's own annotation


async def participate(http: httpx.AsyncClient, coordinator: str, value: float, *, delivered: asyncio.Event | None = None) -> int:
    """Take part until training is complete, each time with weights that are `value`. Returns the number of rounds."""
    rounds = 0
    id = (await http.get(f"{coordinator}/rendez_vous")).json()["id"]
    while (order := (await http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL)).json())["state"] != "finish":
        if order["state"] == "round":
            place = f"{order['url']}/{id}/{order['token']}"
            assert (await http.get(place)).status_code == 200
            answer = await http.post(place, content=update(np.full(5, value), samples=1))
            assert (answer.status_code, answer.headers["fedround-update"]) == (200, "counted")
            rounds += 1
            if delivered is not None:
                delivered.set()
    return rounds


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[tuple[Platform, httpx.AsyncClient]]:
    coordinator = CoordinatorSettings.model_validate({**ANY_PORT, **settings})
    aggregator = AggregatorSettings.model_validate(ANY_PORT)
    async with asyncio.timeout(30), httpx.AsyncClient() as http, platform.serving(coordinator, aggregator) as p:
        yield p, http


def test_a_federation_trains_on_one_process_that_goes_on_serving_its_result() -> None:
    async def main() -> None:
        async with serving(rounds=3, min_clients=4) as (p, http):
            coordinator = url(p.coordinator_public)
            trained = await asyncio.gather(*(participate(http, coordinator, value) for value in (0.0, 1.0, 2.0, 3.0)))
            assert trained == [3, 3, 3, 3]
            model = await http.get(f"{url(p.aggregator_ops)}/model")
            assert model.headers["etag"] == '"2"'
            assert array(model.content).tolist() == [1.5] * 5
            status = (await http.get(f"{url(p.coordinator_ops)}/status")).json()
            assert (status["state"], status["round"], len(status["last_rounds"])) == ("complete", 3, 3)
            assert (await http.get(f"{coordinator}/rendez_vous")).json() == {"id": None, "ok": False}
            for ops in (p.coordinator_ops, p.aggregator_ops):
                assert (await http.get(f"{url(ops)}/readyz")).status_code == 200

    asyncio.run(main())


def test_an_invalid_update_is_refused_and_the_round_goes_on_with_others() -> None:
    async def main() -> None:
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
            await http.post(f"{order['url']}/{id}/{order['token']}", content=update(np.ones(5), samples=1))
            # The update is counted, but its round may be a moment from being closed.
            assert (await http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL)).json()["state"] == "finish"

    asyncio.run(main())


def test_participants_are_sent_where_the_settings_say_if_they_say_so() -> None:
    async def main() -> None:
        async with serving(aggregator_url="http://elsewhere:1") as (p, _):
            assert p.coordinator.aggregator_url == "http://elsewhere:1"

    asyncio.run(main())


def test_a_port_in_use_is_a_wrong_setting() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigurationError, match=f"COORDINATOR_PORT={port}"):
                async with serving(port=port):
                    pass

    asyncio.run(main())


class Process:
    """One of our commands as a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, ports: dict[str, int]) -> None:
        self._process = process
        self.ports = ports

    async def stop(self, number: int) -> int:
        self._process.send_signal(number)
        await self._process.communicate()
        assert self._process.returncode is not None
        return self._process.returncode


async def start(command: str, *settings: str, **environ: str) -> Process:
    """Start `fedround command` and wait until it listens. `settings`: those of the ports that it is to open, and 0 for each."""
    ports = {name: environ.pop(name, "0") for name in settings}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fedround", command), env=os.environ | ports | environ, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    got: dict[str, int] = {}
    async for line in process.stderr:
        if match := re.search(r"(\w+): listening on .*, port (\d+)", line.decode()):
            got[match[1]] = int(match[2])
        if len(got) == len(settings):
            return Process(process, got)
    raise AssertionError(f"{command} ended: {await process.wait()}")


COORDINATOR = ("COORDINATOR_PORT", "COORDINATOR_OPS_PORT")
AGGREGATOR = ("AGGREGATOR_PORT", "AGGREGATOR_INTERNAL_PORT", "AGGREGATOR_OPS_PORT")


def test_sigterm_ends_a_platform_at_once_and_answers_who_is_held() -> None:
    async def main() -> None:
        async with asyncio.timeout(30), httpx.AsyncClient() as http:
            p = await start("platform", *COORDINATOR, "AGGREGATOR_PORT", "AGGREGATOR_OPS_PORT", COORDINATOR_MIN_CLIENTS="2")
            coordinator = f"http://127.0.0.1:{p.ports['COORDINATOR_PORT']}"
            id = (await http.get(f"{coordinator}/rendez_vous")).json()["id"]
            first = asyncio.create_task(http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL))
            second = asyncio.create_task(http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL))
            # One of the two ended the other's hold: so one is held now.
            (_,), (held,) = await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
            assert await p.stop(signal.SIGTERM) == 0
            assert (await held).json()["state"] == "stand_by"

    asyncio.run(main())


def test_a_federation_on_two_processes_survives_the_death_of_its_aggregator() -> None:
    async def main() -> None:
        async with asyncio.timeout(50), httpx.AsyncClient() as http, asyncio.TaskGroup() as tasks:
            aggregator = await start("aggregator", *AGGREGATOR)
            ports = {name: str(port) for name, port in aggregator.ports.items()}
            c = await start(
                "coordinator",
                *COORDINATOR,
                COORDINATOR_MIN_CLIENTS="2",
                COORDINATOR_ROUNDS="2",
                COORDINATOR_AGGREGATOR_URL=f"http://127.0.0.1:{ports['AGGREGATOR_PORT']}",
                COORDINATOR_AGGREGATOR_INTERNAL_URL=f"http://127.0.0.1:{ports['AGGREGATOR_INTERNAL_PORT']}",
            )
            coordinator = f"http://127.0.0.1:{c.ports['COORDINATOR_PORT']}"
            delivered = asyncio.Event()
            # Both are needed; the one that never delivers keeps the round open.
            first = tasks.create_task(participate(http, coordinator, 1.0, delivered=delivered))
            idle = (await http.get(f"{coordinator}/rendez_vous")).json()["id"]
            await delivered.wait()
            await aggregator.stop(signal.SIGKILL)
            aggregator = await start("aggregator", *AGGREGATOR, **ports)
            await http.delete(f"{coordinator}/rendez_vous/{idle}")
            second = tasks.create_task(participate(http, coordinator, 3.0))
            assert await first == 3
            assert await second == 2
            model = await http.get(f"http://127.0.0.1:{ports['AGGREGATOR_OPS_PORT']}/model")
            assert array(model.content).tolist() == [2.0] * 5
            assert await c.stop(signal.SIGTERM) == 0
            assert await aggregator.stop(signal.SIGTERM) == 0

    asyncio.run(main())
