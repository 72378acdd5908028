"""The aggregator's public port, and the whole process."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fedround.aggregator import app
from fedround.aggregator.running import Folded
from fedround.aggregator.service import AggregatorService
from fedround.aggregator.spool import Spool
from fedround.aggregator.strategies import WeightedAverage
from fedround.common.books import Admission, Closed, Entry, Open, Outcome
from fedround.events import Fact, Observer, UploadFailed
from fedround.http.serve import Endpoint, serving
from fedround.http.tokens import Tokens
from support.aggregating import stream
from support.sockets import Connection, connected
from support.updates import claiming, npy, update

ANNA, BERT = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"


TOKEN = {ANNA: "11111111-1111-4111-8111-111111111111", BERT: "22222222-2222-4222-8222-222222222222"}


MAX_SIZE = 4 << 20


GOOD = update(1, 1, 2)


OBJECTS = b"\0\0\0\1" + npy(np.array([{}], object))


def path(id: str) -> str:
    return f"/{id}/{TOKEN[id]}"


def make(*, directory: Path | None = None, window: float = 60.0, observer: Observer | None = None) -> AggregatorService:
    spool = Spool(directory, max_size=MAX_SIZE, window=window)
    return AggregatorService(partial(Folded, make=WeightedAverage), spool, observer=observer, hold=60.0, patience=0.0)


async def with_a_round(**options: Any) -> AggregatorService:
    service = make(**options)
    await service.open(Open("attempt-0", 0, tuple(Admission(id, token) for id, token in TOKEN.items())))
    return service


async def assert_the_others_go_on(service: AggregatorService, client: httpx.AsyncClient) -> None:
    """Check that Bert's update is counted, and becomes the model."""
    answer = await client.post(path(BERT), content=update(2, 1, 2))
    assert (answer.status_code, answer.content, answer.headers["fedround-update"]) == (200, b"", "counted")
    assert await service.close("attempt-0", [BERT]) == Closed(parameters=2)


@asynccontextmanager
async def asking(*, token: str | None = None, **options: Any) -> AsyncIterator[tuple[AggregatorService, httpx.AsyncClient]]:
    """Yield a service with an open round, and a client of its public app."""
    service = await with_a_round(**options)
    transport = httpx.ASGITransport(app.public(service, tokens=Tokens(token)))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        yield service, client


@asynccontextmanager
async def on_sockets(**options: Any) -> AsyncIterator[tuple[AggregatorService, int, httpx.AsyncClient]]:
    """Yield a service with an open round, the port of its public app, and a client."""
    service = await with_a_round(**options)
    endpoint = Endpoint(app.public(service), host="127.0.0.1", port=0, setting="PORT")
    async with serving(endpoint), httpx.AsyncClient(base_url=f"http://127.0.0.1:{endpoint.port}") as client:
        yield service, endpoint.port, client


async def test_before_the_first_aggregation_the_global_model_is_empty() -> None:
    async with asking() as (_, client):
        answer = await client.get(path(ANNA))
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert (await client.get(path(ANNA), headers={"If-None-Match": answer.headers["etag"]})).status_code == 304


async def test_the_global_model_has_the_bytes_that_numpy_saves() -> None:
    async with asking() as (service, client):
        await service.deliver(ANNA, TOKEN[ANNA], stream(update(1, 1, 2)))
        await service.close("attempt-0", [ANNA])
        answer = await client.get(path(ANNA))
        expected = npy(np.array([1, 2], "<f4"), version=(1, 0))
        assert (answer.content, answer.headers["content-length"]) == (expected, str(len(expected)))


async def test_a_participant_with_the_newest_model_gets_304() -> None:
    async with asking() as (service, client):
        await client.post(path(ANNA), content=update(1, 1, 2))
        await service.close("attempt-0", [ANNA])
        etag = (await client.get(path(ANNA))).headers["etag"]
        for known in (etag, f'"other", W/{etag}'):
            answer = await client.get(path(ANNA), headers={"If-None-Match": known})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert (await client.get(path(ANNA), headers={"If-None-Match": '"none"'})).status_code == 200


async def test_ids_and_tokens_may_have_every_form_that_0_8_accepts() -> None:
    async with asking() as (_, client):
        for written in (ANNA.upper(), ANNA.replace("-", ""), f"urn:uuid:{ANNA}"):
            assert (await client.get(f"/{written}/{TOKEN[ANNA].replace('-', '')}/?x=y")).status_code == 200


async def test_an_update_may_come_in_chunks_without_a_length() -> None:
    async with on_sockets() as (_, _, client):
        answer = await client.post(path(ANNA), content=stream(*(bytes([byte]) for byte in GOOD)))
        assert answer.headers["fedround-update"] == "counted"


async def test_a_repeated_update_is_answered_with_200_and_repeated() -> None:
    async with asking() as (service, client):
        await client.post(path(ANNA), content=GOOD)
        again = await client.post(path(ANNA), content=GOOD)
        assert (again.status_code, again.content, again.headers["fedround-update"]) == (200, b"", "repeated")
        await client.post(path(BERT), content=GOOD)
        assert await service.close("attempt-0", [ANNA, BERT]) == Closed(parameters=2)


@pytest.mark.parametrize(
    "address",
    [
        f"/{ANNA}/{TOKEN[BERT]}",
        f"/{TOKEN[ANNA]}/{ANNA}",
        "/no-uuid/neither",
        f"/{ANNA}/{TOKEN[ANNA]}0",
        f"/{ANNA}",
        "/",
    ],
)
async def test_without_a_valid_id_and_token_the_response_is_404(address: str) -> None:
    async with asking() as (service, client):
        for method in ("GET", "POST"):
            answer = await client.request(method, address, content=update(1, 1, 2) if method == "POST" else None)
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["title"] == "Not Found"
        await assert_the_others_go_on(service, client)


async def test_an_aggregator_with_a_token_requires_it() -> None:
    async with asking(token="secret") as (service, client):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await client.post(path(ANNA), content=update(1, 1, 2), headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert (await client.get(path(ANNA), headers=headers)).status_code == 401
        client.headers["Authorization"] = "Bearer secret"
        await assert_the_others_go_on(service, client)


async def test_an_update_for_a_round_that_is_over_is_answered_with_409() -> None:
    async with asking() as (service, client):
        await service.revoke("attempt-0", ANNA)
        answer = await client.post(path(ANNA), content=update(1, 1, 2))
        assert answer.status_code == 409
        assert answer.json() == {
            "title": "Conflict",
            "status": 409,
            "detail": "the round of this token is over, or was reassigned to other participants",
        }
        await assert_the_others_go_on(service, client)


GOOD = update(1, 1, 2)


OBJECTS = b"\0\0\0\1" + npy(np.array([{}], object))


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        pytest.param(b"", 422, "begins with a sample count of 4 bytes, but this one has 0 bytes", id="empty"),
        pytest.param(GOOD[:50], 422, "ends within its header", id="cut within the header"),
        pytest.param(GOOD[:-1], 422, "announces 8 bytes of weights, but 7 follow", id="cut within the weights"),
        pytest.param(GOOD + b"!", 422, "announces 8 bytes of weights, but 9 follow", id="too long"),
        pytest.param(b"\0\0\0\1" + b"PK\3\4" + bytes(100), 415, "neither an .npy array nor safetensors", id="wrong magic"),
        pytest.param(GOOD[:10] + b"\x09" + GOOD[11:], 415, "format version 9.0", id="version 9"),
        pytest.param(OBJECTS, 415, "objects are pickled, which is never accepted", id="objects"),
        pytest.param(claiming("(1000000000000,)"), 422, "announces 4000000000000 bytes", id="a terabyte in a row"),
        pytest.param(claiming("(1048576, 1048576)"), 422, "announces 4398046511104 bytes", id="a terabyte in a square"),
        pytest.param(claiming("(2,)", descr="<c8", data=bytes(16)), 415, "dtype '<c8' cannot be averaged", id="complex"),
        pytest.param(update(1, 1, float("nan")), 422, "weights: NaN in 1 of 2 elements", id="NaN"),
        pytest.param(update(1, 1, float("inf")), 422, "weights: infinity in 1 of 2 elements", id="infinite"),
        pytest.param(bytes(MAX_SIZE + 1), 413, f"more than {MAX_SIZE} bytes", id="too large"),
    ],
)
async def test_an_invalid_update_is_refused_with_the_reason(body: bytes, status: int, detail: str) -> None:
    async with on_sockets() as (service, _, client):
        answer = await client.post(path(ANNA), content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert detail in answer.json()["detail"]
        entry = (await service.ledger("another", 0)).entries[0]
        assert (entry.id, entry.outcome) == (ANNA, Outcome.REFUSED)
        await assert_the_others_go_on(service, client)


async def test_an_update_without_a_length_that_grows_too_large_is_refused() -> None:
    async with on_sockets() as (service, _, client):
        assert (await client.post(path(ANNA), content=stream(*[bytes(100_000)] * 100))).status_code == 413
        await assert_the_others_go_on(service, client)


async def test_a_full_spool_is_answered_with_503_and_retry_after(tmp_path: Path) -> None:
    async with asking(directory=tmp_path / "gone") as (_, client):
        large = b"\0\0\0\1" + npy(np.zeros(1 << 19, "<f4"))
        answer = await client.post(path(ANNA), content=large)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "cannot write the update to the spool directory" in answer.json()["detail"]
        (tmp_path / "gone").mkdir()
        assert (await client.post(path(ANNA), content=large)).headers["fedround-update"] == "counted"


@pytest.mark.parametrize(
    ("header", "figures"),
    [
        ('{"loss": 0.5, "epochs": 3}', {"loss": 0.5, "epochs": 3.0}),
        ("{}", {}),
        ("no JSON", {}),
        ("[1]", {}),
        ('{"loss": NaN}', {}),
        ('{"loss": 1e999}', {}),
        ('{"loss": "low"}', {}),
        ('{"loss": true}', {}),
        ('{"loss": 1' + "0" * 400 + "}", {}),
        ("[" * 1500, {}),
        ('{"loss": 0.5, "x": "' + "x" * 2048 + '"}', {}),
        ('{"loss": 1e290, "gain": -1e290}', {"loss": 1e290, "gain": -1e290}),
        ('{"loss": 0.5, "gain": 1.1e290, "depth": -1.7e308, "epochs": "3"}', {"loss": 0.5}),
        ('{"loss": 0.5, "a\\nERROR forged": 1, "\\u001b[31m": 1, "\\u202e": 1, "\\ud800": 1, "": 1}', {"loss": 0.5}),
        (json.dumps({"n" * 64: 1, "m" * 65: 1, "größe \u65e5": 2}), {"n" * 64: 1.0, "größe \u65e5": 2.0}),
        (json.dumps({f"figure {n}": n for n in range(25)}), {f"figure {n}": float(n) for n in range(20)}),
    ],
)
async def test_the_ledger_records_only_finite_metrics_with_printable_names(header: str, figures: Mapping[str, float]) -> None:
    async with asking() as (service, client):
        await client.post(path(ANNA), content=GOOD, headers={"Fedround-Metrics": header})
        assert (await service.ledger("another", 0)).entries == (Entry(1, "attempt-0", ANNA, Outcome.COUNTED, 1, figures),)


Misbehaving = Callable[[Connection], Awaitable[None]]


async def hang_up(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Content_Length=str(len(GOOD)))
    await connection.send(GOOD[:-1])
    connection.reset()


async def hang_up_in_a_large_one(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Content_Length=str(3 << 20))
    await connection.send(bytes(2 << 20))
    connection.reset()


async def hang_up_in_a_chunk(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Transfer_Encoding="chunked")
    await connection.send(b"5\r\nhel")
    connection.reset()


async def be_slow(connection: Connection) -> None:
    await connection.ask("POST", path(ANNA), Content_Length=str(len(GOOD)))
    await connection.send(GOOD[:-1])
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert "less than 10000 bytes per second" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize("misbehave", [hang_up, hang_up_in_a_large_one, hang_up_in_a_chunk, be_slow])
async def test_an_incomplete_upload_does_not_count(misbehave: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedround.http.asgi.DRAIN_SECONDS", 0.05)
    failed = asyncio.Event()

    def observe(fact: Fact) -> None:
        if isinstance(fact, UploadFailed):
            assert fact.id == ANNA
            failed.set()

    async with on_sockets(window=0.2, observer=observe) as (service, port, client):
        async with connected(port) as connection:
            await misbehave(connection)
            await failed.wait()
        await assert_the_others_go_on(service, client)


async def test_more_bytes_than_announced_harm_no_other_upload() -> None:
    async with on_sockets() as (service, port, client):
        async with connected(port) as connection:
            await connection.ask("POST", path(ANNA), Content_Length=str(len(GOOD) - 1))
            await connection.send(GOOD)
            # The rest is not a request: the server responds with 400 and closes the connection.
            assert (await connection.answer()).status in (400, 422)
        await assert_the_others_go_on(service, client)


async def test_a_client_that_reads_only_after_writing_gets_its_refusal() -> None:
    async with on_sockets() as (_, port, _), connected(port) as connection:
        for address, status in [(f"/{ANNA}/{TOKEN[BERT]}", 404), (path(ANNA), 413)]:
            await connection.ask("POST", address, Content_Length=str(5 << 20))
            await connection.send(bytes(5 << 20))
            answer = await connection.answer()
            assert (answer.status, json.loads(answer.body)["status"]) == (status, status)


async def test_a_client_that_hangs_up_during_a_download_harms_no_other() -> None:
    async with on_sockets() as (service, port, client):
        await service.deliver(ANNA, TOKEN[ANNA], stream(b"\0\0\0\1" + npy(np.zeros(1 << 18))))
        await service.close("attempt-0", [ANNA])
        async with connected(port) as connection:
            await connection.ask("GET", path(ANNA))
            connection.reset()
        assert len((await client.get(path(ANNA))).content) == (8 << 18) + 128


def test_an_aggregator_serves_three_ports_until_sigterm() -> None:
    command = [sys.executable, "-m", "fedround", "aggregator", "--port", "0", "--internal-port", "0", "--ops-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}) as process:
        assert process.stderr is not None
        ports: list[str] = []
        while len(ports) < 3:
            ports += re.findall(r"AGGREGATOR_\w*PORT: listening on .*, port (\d+)", process.stderr.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[2]}/readyz", timeout=10) as answer:
            assert json.load(answer) == {"ready": True, "reasons": []}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert "Traceback" not in process.stderr.read()
