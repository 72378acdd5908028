"""The relay at the coordinator's port: access, responses, and collectors of all kinds."""

import asyncio
import gzip
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from fedround.common import wire
from fedround.coordinator import app, relay
from fedround.coordinator.backlog import BURST, MOST_OF_ONE
from fedround.coordinator.plan import Plan
from fedround.coordinator.relay import Relay
from fedround.errors import NotConnected
from fedround.events import TelemetryForwarded, TelemetryReceived
from fedround.http.tokens import Tokens
from fedround.observability.stamping import MAX_BYTES
from observability.test_stamping import metric_of, metrics
from support.coordinating import MemoryBooks, Recorder, coordinating
from support.otlp import values

ANNA, BERTA = {"Authorization": "Bearer token-of-anna"}, {"Authorization": "Bearer token-of-berta"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}
AWAY = 0


@dataclass
class Collector:
    """A fake collector. `answers` returns the status; `AWAY`: no response."""

    answers: Callable[[bytes], int] = lambda _message: 200
    got: list[tuple[str, bytes]] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    hangs: asyncio.Event | None = None

    async def post(self, path: str, message: bytes) -> int:
        self.asked.set()
        if self.hangs is not None:
            await self.hangs.wait()
        status = self.answers(message)
        if status == AWAY:
            raise NotConnected("POST collector: connection refused")
        if status == 200:
            self.got.append((path, message))
        return status

    def names(self) -> Counter[object]:
        found: Counter[object] = Counter()
        for _, message in self.got:
            for of_resource in ExportMetricsServiceRequest.FromString(message).resource_metrics:
                found[values(of_resource.resource.attributes)["service.instance.id"]] += 1
        return found


@dataclass(frozen=True)
class Relaying:
    http: httpx.AsyncClient
    recorder: Recorder
    collector: Collector

    async def push(self, content: bytes = b"", headers: Mapping[str, str] = ANNA) -> httpx.Response:
        content, headers = content or metrics().SerializeToString(), {**PROTOBUF, **ANNA, **headers}
        return await self.http.post(wire.OTLP_METRICS, content=content, headers=headers)

    def outcomes(self) -> list[str]:
        return [fact.outcome for fact in self.recorder.all(TelemetryReceived)]

    async def forwarded(self, count: int = 1) -> list[bool]:
        await self.recorder.until(TelemetryForwarded, count)
        return [fact.arrived for fact in self.recorder.all(TelemetryForwarded)]


@asynccontextmanager
async def relaying(tmp_path: Path, collector: Collector | None = None, *, tokens: Tokens | None = None) -> AsyncIterator[Relaying]:
    file = tmp_path / "tokens"
    file.write_text("anna token-of-anna\nberta token-of-berta\n")
    collector = collector or Collector()
    recorder = Recorder()
    passing = Relay(collector.post, recorder)
    async with coordinating(Plan(), MemoryBooks()) as c:
        public = app.public(c.service, tokens=tokens or Tokens(file=file), relay=passing)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://coordinator") as http:
            task = asyncio.create_task(passing.run())
            try:
                yield Relaying(http, recorder, collector)
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def test_a_message_arrives_at_the_collector_under_the_name_of_its_token(tmp_path: Path) -> None:
    async with relaying(tmp_path) as r:
        for headers in (ANNA, BERTA, ANNA | {"Content-Encoding": "gzip"}):
            body = metrics(service__instance__id="carla").SerializeToString()
            answer = await r.push(gzip.compress(body) if len(headers) > 1 else body, headers=headers)
            assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, wire.PROTOBUF, b"")
            await r.recorder.until(TelemetryForwarded)
            r.recorder.facts.clear()
        assert r.collector.names() == {"anna": 2, "berta": 1}


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"", {"Content-Type": "application/json"}, 415, "application/x-protobuf"),
        (b"", {"Content-Encoding": "br"}, 415, "gzip or identity"),
        (b"\xff\xff", {}, 400, "not an OTLP ExportMetricsServiceRequest"),
        (b"abc", {"Content-Encoding": "gzip"}, 400, "gzip"),
        (bytes(MAX_BYTES + 1), {}, 413, "at most"),
        (gzip.compress(bytes(50 << 20)), {"Content-Encoding": "gzip"}, 413, "decompressed"),
        (
            metrics().SerializeToString().replace(b"participant_round", b"coordinator_round"),
            {},
            400,
            "not a metric of a participant",
        ),
        (b"", {"Authorization": "Bearer nobody"}, 401, "token"),
    ],
)
async def test_an_invalid_message_is_refused_without_harm(
    tmp_path: Path, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    async with relaying(tmp_path) as r:
        answer = await r.push(content, headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert says in answer.json()["detail"]
        assert (await r.push()).status_code == 200
        await r.forwarded()
        assert r.collector.names() == {"anna": 1}


async def test_pushing_requires_a_proved_name(tmp_path: Path) -> None:
    for tokens, headers in ((Tokens(), {}), (Tokens("shared"), {"Authorization": "Bearer shared"})):
        async with relaying(tmp_path, tokens=tokens) as r:
            answer = await r.push(headers=headers)
            assert answer.status_code == 403
            assert "COORDINATOR_TOKENS_FILE" in answer.json()["detail"]
            assert not r.collector.got


async def test_without_a_collector_pushes_are_refused_with_the_reason(tmp_path: Path) -> None:
    async with coordinating(Plan(), MemoryBooks()) as c:
        transport = httpx.ASGITransport(app.public(c.service))
        async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as http:
            answer = await http.post(wire.OTLP_TRACES)
            assert (answer.status_code, "COORDINATOR_OTLP_ENDPOINT" in answer.json()["detail"]) == (404, True)
            assert (await http.get(wire.OTLP_TRACES)).status_code == 405


async def test_a_participant_that_pushes_too_often_gets_retry_after(tmp_path: Path) -> None:
    async with relaying(tmp_path) as r:
        answers = [(await r.push()) for _ in range(int(BURST) + 5)]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert answers[-1].headers["retry-after"] == "5"
        assert (await r.push(headers=BERTA)).status_code == 200
        assert r.outcomes().count("throttled") >= 4


async def test_labels_with_ever_new_values_are_refused(tmp_path: Path) -> None:
    def with_new_values(start: int) -> bytes:
        request = metrics()
        del metric_of(request).gauge.data_points[:]
        for number in range(start, start + 1500):
            point = metric_of(request).gauge.data_points.add(as_double=1)
            point.attributes.add(key="name").value.string_value = str(number)
        return bytes(request.SerializeToString())

    async with relaying(tmp_path) as r:
        assert (await r.push(with_new_values(0))).status_code == 200
        answer = await r.push(with_new_values(1500))
        assert (answer.status_code, "too many series" in answer.json()["detail"]) == (400, True)
        assert (await r.push(with_new_values(0))).status_code == 200


async def test_a_hanging_collector_delays_no_participant_and_a_full_queue_refuses(tmp_path: Path) -> None:
    request = metrics()
    metric_of(request).description = ""
    for number in range(1000):
        point = metric_of(request).gauge.data_points.add(as_double=1)
        point.attributes.add(key="name").value.string_value = f"{number}" * 50
    large = request.SerializeToString()
    collector = Collector(hangs=asyncio.Event())
    async with relaying(tmp_path, collector) as r:
        assert (await r.push()).status_code == 200
        await collector.asked.wait()
        statuses: list[int] = []
        while len(large) * len(statuses) < 3 * MOST_OF_ONE and 503 not in statuses:
            began = time.monotonic()
            statuses.append((await r.push(large)).status_code)
            assert time.monotonic() - began < 2
        assert set(statuses) == {200, 503}
        id = (await r.http.get("/rendez_vous", headers=ANNA)).json()["id"]
        began = time.monotonic()
        assert (await r.http.get(f"/heartbeat/{id}", headers=ANNA)).status_code == 200
        assert time.monotonic() - began < 1
        assert (await r.push(headers=BERTA)).status_code == 200, "another participant has its own part of the queue"
        assert r.outcomes().count("full") == 1
        assert collector.hangs is not None
        collector.hangs.set()
        assert all(await r.forwarded(2))


async def test_a_restored_collector_gets_the_queued_messages(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers: Sequence[int] = [AWAY, 503, 429, 200]
    caplog.set_level("INFO", "fedround")
    left = list(answers)
    async with relaying(tmp_path, Collector(lambda _message: left.pop(0) if left else 200)) as r:
        await r.push()
        assert await r.forwarded() == [True]
        assert not left
    lines = [record.message for record in caplog.records if record.name == relay.__name__]
    assert [line.partition(":")[0] for line in lines] == [
        "cannot forward metrics to the collector; retrying",
        "the collector accepts metrics again",
    ], "one line for an outage, one for its end"


async def test_an_unreachable_collector_loses_the_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "RETRY_FOR", 0.0)
    async with relaying(tmp_path, Collector(lambda _message: AWAY)) as r:
        await r.push()
        assert await r.forwarded() == [False]


async def test_metrics_are_not_delayed_by_a_collector_that_refuses_traces(tmp_path: Path) -> None:
    async with relaying(tmp_path, Collector(lambda message: 200 if b"round_number" in message else 503)) as r:
        assert (await r.http.post(wire.OTLP_TRACES, content=b"\n\0", headers={**PROTOBUF, **ANNA})).status_code == 200
        await r.collector.asked.wait()
        await r.push()
        assert await r.forwarded() == [True]
        assert r.collector.names() == {"anna": 1}


async def test_a_refused_message_does_not_lose_the_messages_of_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector(lambda message: 400 if b"berta" in message else 200, hangs=asyncio.Event())
    async with relaying(tmp_path, collector) as r:
        await r.push()
        await collector.asked.wait()
        for headers in (ANNA, BERTA, ANNA, BERTA):
            await r.push(headers=headers)
        assert collector.hangs is not None
        collector.hangs.set()
        assert sorted(await r.forwarded(5)) == [False, False, True, True, True]
        assert collector.names() == {"anna": 3}
        assert caplog.text.count("the collector rejects metrics, for example from berta: status 400") == 1


async def test_queued_messages_are_sent_at_the_end_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LAST_SECONDS", 0.3)
    hanging = Collector(hangs=asyncio.Event())
    began = time.monotonic()
    async with relaying(tmp_path, hanging) as r:
        await r.push()
        await hanging.asked.wait()
        await r.push()
    assert time.monotonic() - began < 3
    assert not hanging.got


async def test_a_body_that_arrives_too_slowly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "BODY_SECONDS", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield b"\n"
        await asyncio.sleep(0.5)
        yield b""

    async with relaying(tmp_path) as r:
        answer = await r.http.post(wire.OTLP_METRICS, content=slow(), headers=PROTOBUF | ANNA)
        assert answer.status_code == 408
        assert r.outcomes() == ["refused"]
