"""A whole round as a 0.8 participant makes it, on a real socket, byte by byte."""

import asyncio
import io
import json
import re

import numpy as np

from support.federation import our_platform
from support.sockets import Answer, connected

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


async def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    async with connected(port) as connection:
        length = {"Content_Length": str(len(body))} if body else {}
        await connection.ask(method, path, **length, **headers)
        await connection.send(body)
        return await connection.answer()


def matched(pattern: str, answer: Answer) -> tuple[str, ...]:
    assert answer.status == 200
    match = re.fullmatch(pattern, answer.body.decode())
    assert match, answer.body
    return match.groups()


def saved(weights: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, weights, allow_pickle=False)
    return buffer.getvalue()


async def news(port: int, id: str) -> bytes:
    """Send heartbeats until the response is not `stand_by`, and return it."""
    for _ in range(1000):
        answer = await ask(port, "GET", f"/heartbeat/{id}")
        assert answer.status == 200
        if answer.body != b'{"round":null,"state":"stand_by"}':
            return answer.body
    raise AssertionError("it says `stand_by` for ever")


async def a_training(coordinator: int, aggregator: int) -> None:
    joined = await ask(coordinator, "GET", "/rendez_vous")
    (id,) = matched(rf'\{{"id":"({UUID})","ok":true\}}', joined)
    assert joined.headers["content-type"] == "application/json"
    assert not [name for name in joined.headers if name.startswith(("fedround", "access-control", "preference"))]
    for number, before in enumerate([b"", saved(np.array([1.0, 2.0]))]):
        assert await news(coordinator, id) == b'{"round":%d,"state":"round"}' % number
        started = await ask(coordinator, "GET", f"/start_training/{id}")
        (token,) = matched(rf'\{{"url":"http://[a-z0-9.]+:{aggregator}","token":"({UUID})","ok":true\}}', started)
        model = await ask(aggregator, "GET", f"/{id}/{token}")
        assert (model.status, model.headers["content-type"], model.body) == (200, "application/octet-stream", before)
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        sent = await ask(aggregator, "POST", f"/{id}/{token}", (7).to_bytes(4, "big") + saved(np.array([1.0, 2.0])), **form)
        assert (sent.status, sent.body) == (200, b"")
        again = await ask(coordinator, "GET", f"/heartbeat/{id}")
        assert again.body != b'{"round":%d,"state":"round"}' % number
    assert await news(coordinator, id) == b'{"round":null,"state":"finish"}'
    assert (await ask(coordinator, "GET", f"/start_training/{id}")).body == b'{"url":null,"token":null,"ok":false}'
    assert (await ask(coordinator, "GET", "/rendez_vous")).body == b'{"id":null,"ok":false}'


def test_two_rounds_are_those_of_0_8_to_the_byte() -> None:
    with our_platform(rounds=2) as p:
        asyncio.run(a_training(p.platform.coordinator_public.port, p.platform.aggregator_public.port))


async def refusals(coordinator: int, aggregator: int) -> None:
    stranger = "00000000-0000-4000-8000-000000000000"
    assert (await ask(coordinator, "GET", f"/heartbeat/{stranger}")).body == b'{"round":null,"state":"reject"}'
    assert (await ask(coordinator, "GET", f"/start_training/{stranger}")).body == b'{"url":null,"token":null,"ok":false}'
    for path in ("/heartbeat/nobody", "/start_training/nobody"):
        nobody = await ask(coordinator, "GET", path)
        assert (nobody.status, nobody.body) == (404, b"")
    for method in ("GET", "POST"):
        refused = await ask(aggregator, method, f"/{stranger}/{stranger}", b"update" if method == "POST" else b"")
        assert refused.status == 404
        assert refused.headers["content-type"] == "application/problem+json"
        assert json.loads(refused.body)["status"] == 404


def test_unknown_ids_are_refused_and_their_uploads_never_get_200() -> None:
    with our_platform() as p:
        asyncio.run(refusals(p.platform.coordinator_public.port, p.platform.aggregator_public.port))
