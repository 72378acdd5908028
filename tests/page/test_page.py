"""The page on the coordinator's ops port: it loads nothing from other hosts, follows the training, and delays no participant."""

import asyncio
import base64
import json
import re
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Scope

from fedround.coordinator import page
from fedround.observability import ops
from fedround.observability.health import Health
from support.processes import Process, joining, running


def participant(platform: Process) -> dict[str, str]:
    return joining(platform, "silos:Plus1", PARTICIPANT_NAME="anna")


def events(platform: Process, **headers: str) -> Iterator[Any]:
    """Yield the events of the stream, until it ends."""
    with platform.open("COORDINATOR_OPS_PORT", "/events", **headers) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert stream.headers["X-Accel-Buffering"] == "no", "nginx passes each event on at once"
        for line in stream:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


def test_the_page_loads_nothing_from_other_hosts() -> None:
    with running("platform") as platform, platform.open("COORDINATOR_OPS_PORT", "/") as answer:
        html = answer.read().decode()
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert re.findall(r"(?:src|href)=[\"'](?!data:)|@import|url\(", html) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html) == []


def test_events_follow_training_and_end_with_the_coordinator() -> None:
    with running("platform", COORDINATOR_ROUNDS="0") as platform:
        told = events(platform)
        assert next(told)["participants"] == []
        with running("participant", **participant(platform)):
            now = next(now for now in told if now["round"] > 1)
            assert [shown["name"] for shown in now["participants"]] == ["anna"]
            assert now["last_rounds"][-1]["counted"] == 1
            # The newest may have none yet: they come with the first update of the next round.
            measured = {done["round"]: done["weights"]["mean"] for done in now["last_rounds"] if done["weights"]}
            assert measured == {number: number + 1.0 for number in measured} != {}
        assert platform.end() == 0
        assert len(list(told)) < 5, "the stream ends"
        assert "Traceback" not in platform.log


def test_the_page_asks_for_the_operators_token_as_a_password() -> None:
    with running("platform", COORDINATOR_OPS_TOKEN="secret") as platform:
        for path, scheme in {"/": "Basic ", "/events": "Bearer"}.items():
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                platform.open("COORDINATOR_OPS_PORT", path)
            refused.value.close()
            assert refused.value.headers["WWW-Authenticate"].startswith(scheme)
        password = f"Basic {base64.b64encode(b'me:secret').decode()}"
        assert next(events(platform, Authorization=password))["state"].startswith("waiting")


async def test_pages_opened_simultaneously_beyond_the_limit_get_no_events() -> None:
    app = ops.app(Health(), dict, routes=page.routes(Health(), lambda: {"participants": []}))
    answers: asyncio.Queue[int] = asyncio.Queue()
    closed = asyncio.Event()

    async def receive() -> Message:
        await closed.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.start":
            answers.put_nowait(message["status"])

    async def ask() -> None:
        await app(dict(SCOPE), receive, send)

    async def open(count: int) -> list[int]:
        for _ in range(count):
            tasks.create_task(ask())
        return sorted([await answers.get() for _ in range(count)])

    async with asyncio.TaskGroup() as tasks:
        assert await open(page.MAX_STREAMS + 2) == [200] * page.MAX_STREAMS + [503, 503]
        closed.set()
    closed.clear()
    async with asyncio.TaskGroup() as tasks:
        assert await open(1) == [200]
        closed.set()


SCOPE: Scope = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "method": "GET",
    "path": "/events",
    "raw_path": b"/events",
    "query_string": b"",
    "headers": [],
}


def test_the_number_of_pages_with_events_is_limited() -> None:
    with running("platform") as platform:
        streams = [events(platform) for _ in range(50)]
        assert [next(stream)["round"] for stream in streams] == [0] * 50
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            next(events(platform))
        refused.value.close()
        for stream in streams:
            stream.close()  # type: ignore[attr-defined]
