"""What a participant can do with the id of another one, on a real platform with a tokens file."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from fedround import platform
from fedround.common.settings import AggregatorSettings, CoordinatorSettings
from fedround.http.serve import Endpoint
from fedround.platform import Platform
from support.federation import ANY_PORT
from support.processes import until
from support.updates import update

LONG_POLL = {"Prefer": "wait=15"}


def url(endpoint: Endpoint) -> str:
    return f"http://127.0.0.1:{endpoint.port}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def guarded(tmp_path: Path, **settings: object) -> AsyncIterator[tuple[Platform, httpx.AsyncClient]]:
    """A platform with tokens of anna and bert, and a token that all others share."""
    tokens = tmp_path / "tokens"
    tokens.write_text("anna token-of-anna\nbert token-of-bert\n")
    guard = {**ANY_PORT, "tokens_file": tokens, "token": "shared"}
    coordinator = CoordinatorSettings.model_validate({"rounds": 2, **guard, **settings})
    aggregator = AggregatorSettings.model_validate(guard)
    async with asyncio.timeout(30), httpx.AsyncClient() as http, platform.serving(coordinator, aggregator) as p:
        yield p, http


async def joined(http: httpx.AsyncClient, coordinator: str, token: str) -> str:
    return str((await http.get(f"{coordinator}/rendez_vous", headers=bearer(token))).json()["id"])


@pytest.mark.parametrize("thief", ["token-of-bert", "shared"])
async def test_no_other_identity_can_act_with_the_id_of_a_participant(tmp_path: Path, thief: str) -> None:
    async with guarded(tmp_path) as (p, http):
        coordinator = url(p.coordinator_public)
        id = await joined(http, coordinator, "token-of-anna")
        order = (await http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL | bearer("token-of-anna"))).json()
        place = f"{order['url']}/{id}/{order['token']}"
        refused = [
            await http.get(f"{coordinator}/heartbeat/{id}", headers=bearer(thief)),
            await http.get(f"{coordinator}/start_training/{id}", headers=bearer(thief)),
            await http.delete(f"{coordinator}/rendez_vous/{id}", headers=bearer(thief)),
            await http.get(place, headers=bearer(thief)),
            await http.post(place, headers=bearer(thief), content=update(1, 9.0)),
        ]
        assert [answer.status_code for answer in refused] == [403] * 5
        assert {answer.headers["content-type"] for answer in refused} == {"application/problem+json"}
        assert {answer.json()["detail"] for answer in refused} == {
            "this id belongs to another participant: use the token or the certificate with which it registered"
        }
        assert p.coordinator.status()["counted"] == 0
        mine = await http.post(place, headers=bearer("token-of-anna"), content=update(1, 1.0))
        assert mine.headers["fedround-update"] == "counted"
        assert p.coordinator.status()["round"] == 1 or p.coordinator.status()["counted"] == 1


async def test_an_id_without_an_identity_can_be_used_by_all_with_the_shared_token(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (p, http):
        coordinator = url(p.coordinator_public)
        id = await joined(http, coordinator, "shared")
        order = (await http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL | bearer("token-of-anna"))).json()
        answer = await http.post(f"{order['url']}/{id}/{order['token']}", headers=bearer("token-of-bert"), content=update(1, 1.0))
        assert answer.headers["fedround-update"] == "counted"


def revoke(tokens: Path) -> None:
    """Replace the tokens file by one without anna's token."""
    other = tokens.with_name("other")
    other.write_text("bert token-of-bert\n")
    other.replace(tokens)


async def test_an_upload_does_not_count_if_its_token_is_revoked_meanwhile(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (p, http):
        coordinator = url(p.coordinator_public)
        id = await joined(http, coordinator, "token-of-anna")
        order = (await http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL | bearer("token-of-anna"))).json()
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            whole = update(1, 1.0)
            yield whole[:20]
            begun.set()
            await revoked.wait()
            yield whole[20:]

        async with asyncio.TaskGroup() as tasks:
            revoked = asyncio.Event()
            place = f"{order['url']}/{id}/{order['token']}"
            upload = tasks.create_task(http.post(place, headers=bearer("token-of-anna"), content=body()))
            await begun.wait()
            revoke(tmp_path / "tokens")
            revoked.set()
        answer = upload.result()
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["detail"] == "the token was revoked during this request"
        assert (p.aggregator.status()["counted"], p.aggregator.status()["receiving"]) == (0, 0)


async def test_a_held_heartbeat_of_a_revoked_token_is_not_answered_with_a_training_request(tmp_path: Path) -> None:
    async with guarded(tmp_path, min_clients=2) as (p, http):
        coordinator = url(p.coordinator_public)
        id = await joined(http, coordinator, "token-of-anna")
        async with asyncio.TaskGroup() as tasks:
            held = tasks.create_task(http.get(f"{coordinator}/heartbeat/{id}", headers=LONG_POLL | bearer("token-of-anna")))
            await asyncio.to_thread(until, lambda: id in p.coordinator._long_polls)
            revoke(tmp_path / "tokens")
            other = await joined(http, coordinator, "token-of-bert")  # now enough participants are present
            tasks.create_task(http.get(f"{coordinator}/heartbeat/{other}", headers=LONG_POLL | bearer("token-of-bert")))
        assert held.result().status_code == 401
        assert "url" not in held.result().json()


async def test_an_unknown_id_gets_the_same_response_for_every_identity(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (p, http):
        coordinator, aggregator = url(p.coordinator_public), url(p.aggregator_public)
        id = await joined(http, coordinator, "token-of-anna")
        unknown = "00000000-0000-4000-8000-000000000000"
        for token in ("token-of-anna", "token-of-bert"):
            answer = await http.get(f"{coordinator}/heartbeat/{unknown}", headers=bearer(token))
            assert (answer.status_code, answer.json()["state"]) == (200, "reject")
            # A client that knows an id, but not its upload token, learns nothing from the aggregator.
            assert (await http.get(f"{aggregator}/{id}/{unknown}", headers=bearer(token))).status_code == 404
