import asyncio
import json
from collections.abc import Mapping
from itertools import count

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fedround.observability import ops
from fedround.observability.health import Health, running


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def extra(request: Request) -> Response:
    return Response("extra")


def ask(health: Health, path: str, *, method: str = "GET", status: Mapping[str, object] | None = None) -> httpx.Response:
    async def main() -> httpx.Response:
        app = ops.app(health, lambda: status or {}, routes=[Route("/extra", extra)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.request(method, path)

    return asyncio.run(main())


def test_a_service_without_faults_is_ready() -> None:
    answer = ask(Health(), "/readyz")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": []})
    assert answer.headers["cache-control"] == "no-store"


def test_a_service_with_a_fault_is_not_ready_and_names_the_reason() -> None:
    health = Health()
    health.fault("coordinator", "the coordinator is unreachable")
    health.fault("disk", "the disk is full")
    answer = ask(health, "/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"ready": False, "reasons": ["the coordinator is unreachable", "the disk is full"]}
    health.clear("disk")
    assert health.reasons == ["the coordinator is unreachable"]
    health.clear("coordinator")
    assert ask(health, "/readyz").status_code == 200


def test_missing_news_are_a_fault_if_they_were_announced() -> None:
    health = Health(clock=(clock := Clock()))
    health.clear("heartbeat", within=5)
    clock.now += 5
    assert health.reasons == []
    clock.now += 1
    assert health.reasons == ["no news of the heartbeat"]
    health.fault("heartbeat", "it failed")
    assert health.reasons == ["it failed"]
    health.clear("heartbeat", within=5)
    assert health.reasons == []


def test_a_service_with_a_blocked_loop_is_not_alive() -> None:
    health = Health(clock=(clock := Clock()))
    assert ask(health, "/livez").status_code == 200
    health.beat(within=10)
    clock.now += 10
    assert ask(health, "/livez").json() == {"alive": True}
    clock.now += 1
    answer = ask(health, "/livez")
    assert (answer.status_code, answer.json()) == (503, {"alive": False})
    health.beat(within=10)
    assert health.alive


async def test_a_service_is_alive_while_its_loop_runs_and_unready_from_its_shutdown() -> None:
    health, working, cancelled = Health(clock=(clock := Clock())), asyncio.Event(), asyncio.Event()

    async def chore() -> None:
        working.set()
        try:
            await asyncio.Future()
        finally:
            cancelled.set()

    async with running(health, chore()):
        await working.wait()
        assert (health.alive, health.reasons) == (True, [])
        clock.now += 16
        assert not health.alive
    assert cancelled.is_set()
    assert health.reasons == ["the process is stopping"]


def test_a_failed_background_task_ends_the_service() -> None:
    async def main() -> None:
        async def chore() -> None:
            raise LookupError

        async with running(Health(), chore()):
            await asyncio.Future()

    with pytest.raises(ExceptionGroup) as raised:
        asyncio.run(main())
    assert raised.group_contains(LookupError)


async def test_a_running_loop_beats_repeatedly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.observability.health.BEAT", 0.001)

    class Counting(Health):
        def beat(self, *, within: float) -> None:
            super().beat(within=within)
            if next(beats) == 2:
                thrice.set()

    beats, thrice = count(), asyncio.Event()
    async with running(Counting()):
        await thrice.wait()


def test_an_unready_service_is_alive() -> None:
    health = Health()
    health.fault("coordinator", "away")
    assert ask(health, "/livez").status_code == 200


def test_metrics_have_the_requested_format() -> None:
    def scrape(accept: str) -> tuple[bytes, str]:
        return f"asked for {accept}".encode(), "text/plain; version=0.0.4"

    async def main() -> httpx.Response:
        app = ops.app(Health(), dict, scrape=scrape)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.get("/metrics", headers={"Accept": "application/openmetrics-text"})

    answer = asyncio.run(main())
    assert (answer.text, answer.headers["content-type"]) == ("asked for application/openmetrics-text", "text/plain; version=0.0.4")


def test_a_service_without_metrics_responds_with_404() -> None:
    assert ask(Health(), "/metrics").status_code == 404


def test_the_status_is_that_of_the_service() -> None:
    answer = ask(Health(), "/status", status={"round": 3})
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "reasons": [], "round": 3})


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/status", "/extra"])
def test_every_endpoint_accepts_head_and_a_trailing_slash(path: str) -> None:
    assert ask(Health(), path, method="HEAD").status_code == 200
    assert ask(Health(), path + "/").status_code == 200


def test_responses_end_with_a_newline() -> None:
    assert ask(Health(), "/readyz").text == json.dumps({"ready": True, "reasons": []}) + "\n"
