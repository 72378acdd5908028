"""The coordinator's public port, and its readiness."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from fedround import events
from fedround.common.durable import Directory
from fedround.common.settings import CoordinatorSettings
from fedround.coordinator import app, store
from fedround.coordinator.plan import Memory, Plan
from fedround.events import Observer, Observers
from fedround.http.asgi import METHODS
from fedround.http.serve import Endpoint, serving
from fedround.http.tokens import Tokens
from fedround.observability.health import Health
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.telemetry import Telemetry
from support.coordinating import AGGREGATOR_URL, Coordinating, MemoryBooks, Recorder, coordinating
from support.disks import MemoryDisk, files_of_at_most

UNKNOWN = "00000000-0000-4000-8000-000000000000"
PREFER = {"Prefer": "wait=25"}


@dataclass(frozen=True)
class Web(Coordinating):
    http: httpx.AsyncClient
    books: MemoryBooks

    async def join(self, **headers: str) -> str:
        id = str((await self.http.get("/rendez_vous", headers=headers)).json()["id"])
        await self.http.get(f"/heartbeat/{id}", headers=headers)
        return id


@asynccontextmanager
async def web(
    plan: Plan, *, token: str | None = None, origins: Sequence[str] = (), observe: Observer | None = None
) -> AsyncIterator[Web]:
    books = MemoryBooks()
    async with coordinating(plan, books) as c:
        transport = httpx.ASGITransport(app.public(c.service, tokens=Tokens(token), origins=origins, observe=observe))
        async with httpx.AsyncClient(transport=transport, base_url="http://coordinator") as http:
            yield Web(c.service, c.recorder, c.work, http, books)


async def test_responses_to_a_0_8_participant_are_those_of_0_8_to_the_byte() -> None:
    async with web(Plan(rounds=1)) as w:
        answer = await w.http.get("/rendez_vous")
        id = answer.json()["id"]
        assert answer.content == b'{"id":"%s","ok":true}' % id.encode()
        assert answer.headers["content-type"] == "application/json"
        assert UUID(id).version == 4
        assert (await w.http.get(f"/heartbeat/{id}")).content == b'{"round":null,"state":"stand_by"}'
        await w.recorder.until(events.Selected)
        assert (await w.http.get(f"/heartbeat/{id}")).content == b'{"round":0,"state":"round"}'
        answer = await w.http.get(f"/start_training/{id}")
        token = answer.json()["token"]
        assert answer.content == b'{"url":"%s","token":"%s","ok":true}' % (AGGREGATOR_URL.encode(), token.encode())
        late = await w.join()
        assert (await w.http.get(f"/heartbeat/{late}")).content == b'{"round":null,"state":"stand_by"}'
        assert (await w.http.get(f"/start_training/{late}")).content == b'{"url":null,"token":null,"ok":false}'
        w.books.deliver(id, token)
        await w.recorder.until(events.TrainingCompleted)
        await w.service.archive()  # which saves the end of the run
        assert (await w.http.get(f"/heartbeat/{id}")).content == b'{"round":null,"state":"finish"}'
        assert (await w.http.get("/rendez_vous")).content == b'{"id":null,"ok":false}'


async def test_an_unknown_id_is_rejected() -> None:
    async with web(Plan()) as w:
        assert (await w.http.get(f"/heartbeat/{UNKNOWN}")).content == b'{"round":null,"state":"reject"}'
        assert (await w.http.get(f"/start_training/{UNKNOWN}")).content == b'{"url":null,"token":null,"ok":false}'


@pytest.mark.parametrize("path", ["/heartbeat/7", "/start_training/7", "/heartbeat/ "])
async def test_an_id_that_is_not_a_uuid_gets_an_empty_404(path: str) -> None:
    async with web(Plan()) as w:
        answer = await w.http.get(path)
        assert (answer.status_code, answer.content) == (404, b"")


@pytest.mark.parametrize("form", ["{}/", "{}?x=1", "{}//", "urn:uuid:{}"])
async def test_paths_and_ids_may_have_every_form_that_0_8_accepts(form: str) -> None:
    async with web(Plan(min_clients=2)) as w:
        id = await w.join()
        for spelt in (id, id.upper(), id.replace("-", "")):
            answer = await w.http.get("/heartbeat/" + form.format(spelt))
            assert answer.json()["state"] == "stand_by"


async def test_the_origin_is_echoed_if_every_origin_is_allowed() -> None:
    async with web(Plan(), origins=["*"]) as w:
        answer = await w.http.get("/rendez_vous", headers={"Origin": "http://page"})
        assert answer.headers["access-control-allow-origin"] == "http://page"
        assert "access-control-allow-origin" not in (await w.http.get("/rendez_vous")).headers


@pytest.mark.parametrize("path", ["/rendez_vous", f"/heartbeat/{UNKNOWN}", f"/start_training/{UNKNOWN}"])
async def test_other_methods_than_get_are_not_allowed(path: str) -> None:
    async with web(Plan()) as w:
        assert (await w.http.post(path)).status_code == 405


async def test_head_changes_nothing() -> None:
    async with web(Plan()) as w:
        answer = await w.http.head("/rendez_vous")
        assert (answer.status_code, answer.content) == (200, b"")
        assert w.service.status()["participants"] == []


async def test_with_a_token_requests_without_it_are_refused() -> None:
    async with web(Plan(), token="s3cret") as w:
        assert (await w.http.get("/rendez_vous")).status_code == 401
        assert (await w.http.get("/rendez_vous", headers={"Authorization": "Bearer s3cret"})).json()["ok"] is True


async def test_prefer_wait_holds_the_heartbeat_and_its_response_is_complete() -> None:
    async with web(Plan(rounds=2, min_clients=2)) as w:
        ids = [await w.join(), await w.join()]
        answer = await w.http.get(f"/heartbeat/{ids[0]}", headers=PREFER)
        assert answer.headers["preference-applied"] == "wait=25"
        run = {"id": w.service.current.id, "name": "default", "rounds": 2, "config": {}}
        token = answer.json()["token"]
        assert answer.json() == {"round": 0, "state": "round", "url": AGGREGATOR_URL, "token": token, "run": run}
        w.books.deliver(ids[0], token)
        await w.recorder.until(events.UpdateCounted)
        # To ask for no wait is to know of the additions too.
        answer = await w.http.get(f"/heartbeat/{ids[0]}", headers={"Prefer": "wait=0"})
        assert answer.content == b'{"round":null,"state":"stand_by","counted":0}'
        assert "preference-applied" not in (await w.http.get(f"/heartbeat/{ids[0]}")).headers


async def test_a_named_participant_gets_its_former_ordinal_again() -> None:
    async with web(Plan(min_clients=9)) as w:
        names = ["silo-a", "silo-b", "NOT A NAME"]
        answers = [(await w.http.get("/rendez_vous", headers={"Fedround-Participant": name})).json() for name in names]
        assert [answer["ordinal"] for answer in answers] == [0, 1, 2]
        for answer in answers:
            await w.http.get(f"/heartbeat/{answer['id']}")
        shown = [(p["name"], p["id"]) for p in w.service.status()["participants"]]
        assert shown[0] == ("silo-a", answers[0]["id"][:8])
        assert shown[2][0] == "participant"
        assert (await w.http.delete(f"/rendez_vous/{answers[1]['id']}")).status_code == 204
        again = {"Fedround-Participant": "silo-b", "Fedround-Ordinal": "1"}
        assert (await w.http.get("/rendez_vous", headers=again)).json()["ordinal"] == 1
        nonsense = {"Fedround-Participant": "silo-c", "Fedround-Ordinal": "-1"}
        assert (await w.http.get("/rendez_vous", headers=nonsense)).json()["ordinal"] == 3


async def test_a_participant_can_leave_at_any_time_and_twice() -> None:
    async with web(Plan(min_clients=2)) as w:
        id = await w.join()
        for _ in range(2):
            answer = await w.http.delete(f"/rendez_vous/{id.upper()}")
            assert (answer.status_code, answer.content) == (204, b"")
        assert (await w.http.get(f"/heartbeat/{id}")).json()["state"] == "reject"


async def test_the_trouble_of_a_participant_is_shown_until_its_next_heartbeat() -> None:
    async with web(Plan(min_clients=2)) as w:
        id = await w.join(**{"Fedround-Participant": "anna"})
        for trouble, shown in (("413 without our header", "413 without our header"), ("x" * 300, "x" * 200), ("", "")):
            await w.http.get(f"/heartbeat/{id}", headers={"Fedround-Trouble": trouble})
            assert [p["trouble"] for p in w.service.status()["participants"]] == [shown]
        await w.http.get(f"/heartbeat/{uuid4()}", headers={"Fedround-Trouble": "of nobody"})


async def test_the_phase_of_a_selected_participant_is_shown() -> None:
    async with web(Plan(rounds=1)) as w:
        id = await w.join(**{"Fedround-Participant": "anna"})
        await w.http.get(f"/heartbeat/{id}", headers={"Fedround-Phase": "training"})
        await w.recorder.until(events.Selected)
        seen = []
        for phase in ("", "sleeping", "training", "uploading", ""):
            await w.http.get(f"/heartbeat/{id}", headers={"Fedround-Phase": phase})
            seen.append([p["phase"] for p in w.service.status()["participants"]])
        assert seen == [["selected"], ["selected"], ["training"], ["uploading"], ["uploading"]]
        await w.http.get(f"/heartbeat/{uuid4()}", headers={"Fedround-Phase": "training"})
        (silo,) = w.service.by_name(1)["silos"]
        assert silo["phase"]["uploading"]
        assert w.service.by_name(0) == {"silos": [], "omitted": 1}


PROBLEM = {"Content-Type": "application/problem+json"}


@pytest.mark.parametrize(
    ("body", "headers", "reason", "detail"),
    [
        (b'{"detail": "RuntimeError in train_round"}', PROBLEM, "failed", "RuntimeError in train_round"),
        (b'{"detail": "a\\u001b[2J\\nforged line"}', PROBLEM, "failed", "a [2J forged line"),
        (b'{"detail": "' + b"x" * 1000 + b'"}', PROBLEM, "failed", "x" * 200),
        (b'{"detail": "' + b"x" * 3000 + b'"}', PROBLEM, "left", ""),
        (b'{"detail": "RuntimeError"}', {"Content-Type": "application/json"}, "left", ""),
        (b"[" * 2000, PROBLEM, "left", ""),
        (b"", {}, "left", ""),
    ],
)
async def test_a_participant_may_report_the_failure_for_which_it_leaves(
    body: bytes, headers: dict[str, str], reason: str, detail: str
) -> None:
    async with web(Plan(min_clients=2)) as w:
        id = await w.join(**{"Fedround-Participant": "anna"})
        answer = await w.http.request("DELETE", f"/rendez_vous/{id}", content=body, headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
        gone = await w.recorder.until(events.ParticipantGone)
        assert (gone.name, gone.reason, gone.detail) == ("anna", reason, detail)
        assert [(f["name"], f["reason"]) for f in w.service.status()["failures"]] == ([("anna", detail)] if detail else [])


async def test_beyond_the_shared_seats_a_registration_gets_429_and_retry_after() -> None:
    async with web(Plan(min_clients=9, shared_seats=1)) as w:
        late = (await w.http.get("/rendez_vous")).json()["id"]
        await w.join()
        for path in ("/rendez_vous", f"/heartbeat/{late}"):
            answer = await w.http.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "10")
            assert answer.json()["detail"].startswith("all 1 seats for participants without an individual token or certificate")


async def take_part(w: Web, rounds: list[int]) -> None:
    """Take part until training is complete, with two requests per round, like our participant."""
    id = await w.join()
    while (answer := (await w.http.get(f"/heartbeat/{id}", headers=PREFER)).json())["state"] != "finish":
        if answer["state"] == "round":
            rounds.append(answer["round"])
            w.books.deliver(id, answer["token"])
            await w.recorder.until(events.RoundCompleted, answer["round"] + 1)


async def test_ten_participants_train_five_rounds_over_http() -> None:
    async with web(Plan(rounds=5, min_clients=10)) as w:
        trained: list[list[int]] = [[] for _ in range(10)]
        await asyncio.gather(*(take_part(w, rounds) for rounds in trained))
        assert trained == [[0, 1, 2, 3, 4]] * 10
        assert [len(fact.ids) for fact in w.recorder.all(events.RoundCompleted)] == [10] * 5


@dataclass(frozen=True)
class Served:
    """The app on a real port, with events for the begin and the end of a request."""

    endpoint: Endpoint
    began: asyncio.Event
    ended: asyncio.Event


@asynccontextmanager
async def served(w: Web) -> AsyncIterator[Served]:
    public, began, ended = app.public(w.service), asyncio.Event(), asyncio.Event()

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await public(scope, receive, send)
        ended.set()

    endpoint = Endpoint(watched, host="127.0.0.1", port=0, setting="COORDINATOR_PORT")
    async with serving(endpoint):
        yield Served(endpoint, began, ended)


@pytest.mark.parametrize("token", [None, "secret"])
async def test_a_client_that_tries_everything_creates_fewer_than_500_series(token: str | None) -> None:
    metrics = CoordinatorMetrics()
    async with web(Plan(min_clients=2), token=token, observe=metrics) as w:
        id = w.service.join("p").id
        for path in ("rendez_vous", "heartbeat", "start_training", "elsewhere", ""):
            for suffix in ("", "/", f"/{id}", f"/{UNKNOWN}", "/no-id", f"/{id}/{id}"):
                for method in (*METHODS, "BREW"):
                    for secret in ("secret", "wrong"):
                        await w.http.request(method, f"/{path}{suffix}", headers={"Authorization": f"Bearer {secret}"})
    series = [line for line in metrics.scrape("")[0].decode().splitlines() if line[0] != "#"]
    assert 200 < len(series) < 500


async def test_the_end_of_a_connection_ends_the_long_poll() -> None:
    async with web(Plan(min_clients=2)) as w, served(w) as s:
        _, writer = await asyncio.open_connection("127.0.0.1", s.endpoint.port)
        writer.write(f"GET /heartbeat/{await w.join()} HTTP/1.1\r\nHost: x\r\nPrefer: wait=25\r\n\r\n".encode())
        await s.began.wait()
        assert not s.ended.is_set()
        writer.close()
        await s.ended.wait()


async def test_a_stopping_coordinator_answers_long_polls() -> None:
    async with web(Plan(min_clients=2)) as w, served(w) as s, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{s.endpoint.port}/heartbeat/{await w.join()}"
        hold = asyncio.create_task(http.get(url, headers=PREFER))
        await s.began.wait()
        assert not s.ended.is_set()
        w.work.cancel()
        assert (await hold).json()["state"] == "stand_by"


@pytest.mark.parametrize(("rounds", "told"), [(3, True), (4, False), (0, False)])
async def test_a_restart_after_the_last_round_logs_how_to_continue(
    rounds: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk = MemoryDisk()
    store.save(disk, Memory(round=3))
    app.build(CoordinatorSettings(rounds=rounds), MemoryBooks(), Observers(), disk)
    more = "to continue it, raise COORDINATOR_ROUNDS; to start another run, change COORDINATOR_RUN_NAME"
    complete = f"run default is already complete, after 3 rounds: {more}"
    assert (complete in caplog.messages) is told


async def test_a_coordinator_is_ready_while_it_reaches_the_aggregator() -> None:
    books = MemoryBooks()
    changed = asyncio.Event()

    def observe(fact: events.Fact) -> None:
        if isinstance(fact, events.AggregatorReached | events.AggregatorUnreachable):
            changed.set()

    health, settings = Health(), CoordinatorSettings()
    telemetry = Telemetry(
        CoordinatorMetrics,
        [app.readiness(health), observe],
    )
    service = app.build(settings, books, telemetry.observe)
    operators = httpx.ASGITransport(app.ops_endpoint(settings, service, health, telemetry).app)
    async with httpx.AsyncClient(transport=operators, base_url="http://ops") as http:
        assert (await http.get("/readyz")).json()["reasons"] == ["the aggregator has not been reached yet"]
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(service.run())
            await changed.wait()
            assert (await http.get("/readyz")).status_code == 200
            changed.clear()
            books.fail(times=1)
            await changed.wait()
            assert (await http.get("/readyz")).json()["reasons"] == ["no contact with the aggregator: connection refused"]
            changed.clear()
            await changed.wait()
            assert (await http.get("/readyz")).status_code == 200
            status = (await http.get("/status")).json()
            assert (status["state"], status["round"], status["rounds"]) == ("waiting for participants: 0 of 1", 0, 10)
            assert (await http.get("/livez")).status_code == 200
            work.cancel()


def test_a_coordinator_whose_round_fails_repeatedly_is_not_ready_with_the_reason() -> None:
    health = Health()
    ready = app.readiness(health)
    ready(events.AggregatorReached())
    for failures in (1, 2):
        ready(events.AttemptDropped(4, UNKNOWN, 1, "anna: its update was refused", failures=failures))
        assert health.reasons == []
    ready(events.AttemptDropped(4, UNKNOWN, 1, "anna: its update was refused", failures=3))
    assert health.reasons == ["round 4 has failed 3 times: anna: its update was refused"]
    ready(events.RoundCompleted(4, UNKNOWN, (), 0, 0, 0, 1.0, ()))
    assert health.reasons == []


async def test_a_coordinator_that_cannot_persist_is_not_ready_with_the_reason(tmp_path: Path) -> None:
    health, recorder, settings = Health(), Recorder(), CoordinatorSettings()
    telemetry = Telemetry(CoordinatorMetrics, [app.readiness(health), recorder])
    service = app.build(settings, MemoryBooks(), telemetry.observe, Directory(tmp_path))
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        work = tasks.create_task(service.run())
        await recorder.until(events.AggregatorReached)
        await recorder.until(events.StateSaved)
        assert health.reasons == []
        with files_of_at_most(10):
            await service.heartbeat(service.join("anna").id or "")
            await recorder.until(events.SaveFailed)
            (reason,) = health.reasons
            assert reason.startswith("the state of the run cannot be written to the data directory, and no round begins: ")
            assert "File too large" in reason
        await recorder.until(events.Selected)
        assert health.reasons == []
        work.cancel()
