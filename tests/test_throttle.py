import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from fedround.events import Fact, RequestThrottled
from fedround.http import asgi, throttle
from fedround.http.throttle import EXEMPT, Known, Throttle, no_participant


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BURST": 3.0, "RATE": 1.0, "KNOWN_BURST": 5.0, "KNOWN_RATE": 1.0, "DELAY": 0.0}.items():
        monkeypatch.setattr(throttle, name, value)


async def hello(request: Request) -> Response:
    return Response("hello")


@dataclass
class Port:
    """A throttled app. Its clock stands still until the test moves it."""

    known: Known = no_participant
    now: float = 100.0
    told: list[Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        app = asgi.application([Route("/livez", hello), Route("/{id}", hello)])
        self.app = Throttle(app, "public", self.told.append, known=self.known, clock=lambda: self.now)

    async def ask(self, path: str = "/a", address: str = "192.0.2.1") -> httpx.Response:
        transport = httpx.ASGITransport(self.app, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path)

    def asked(self, times: int, path: str = "/a", address: str = "192.0.2.1") -> list[int]:
        async def main() -> list[int]:
            return [(await self.ask(path, address)).status_code for _ in range(times)]

        return asyncio.run(main())


def test_an_address_has_a_burst_and_a_rate() -> None:
    port = Port()
    assert port.asked(5) == [200, 200, 200, 429, 429]
    assert port.asked(1, address="192.0.2.2") == [200]
    port.now += 2
    assert port.asked(3) == [200, 200, 429]
    assert port.told == [RequestThrottled("public")] * 3


def test_a_refusal_has_retry_after() -> None:
    port = Port()
    port.asked(3)
    answer = asyncio.run(port.ask())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "0")
    assert answer.json() == {"title": "Too Many Requests", "status": 429, "detail": "too many requests"}


def test_a_known_participant_has_its_own_rate_at_each_address() -> None:
    def known(scope: Scope) -> Hashable | None:
        return scope["path"] if scope["path"] in ("/anna", "/bert") else None

    port = Port(known)
    port.asked(4)
    assert port.asked(6, "/anna") == [200] * 5 + [429]
    assert port.asked(1, "/bert") == [200]
    assert port.asked(1, "/anna", "192.0.2.2") == [200], "who knows her id does not take her rate"


def test_exempt_requests_do_not_count() -> None:
    assert Port(lambda _: EXEMPT).asked(10) == [200] * 10


def test_probes_are_delayed_and_never_refused() -> None:
    port = Port()
    assert port.asked(10, "/livez") == [200] * 10
    assert len(port.told) == 7


async def test_beyond_the_delayed_requests_refusals_are_immediate_and_close_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throttle, "DELAY", 60.0)
    monkeypatch.setattr(throttle, "MAX_DELAYED", 2)
    port = Port()
    for _ in range(3):
        await port.ask()
    delayed = [asyncio.ensure_future(port.ask()) for _ in range(2)]
    await asyncio.wait(delayed, timeout=0.1)
    answer = await port.ask()
    assert (answer.status_code, answer.headers["connection"], answer.headers["retry-after"]) == (429, "close", "60")
    assert not any(task.done() for task in delayed)
    for task in delayed:
        task.cancel()
    await asyncio.gather(*delayed, return_exceptions=True)
