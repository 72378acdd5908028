"""Platforms for participants: ours, running in the background, and one of 0.8 with responses that a test has written."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvloop

from fedround import platform
from fedround.common.settings import AggregatorSettings, CoordinatorSettings
from fedround.platform import Platform
from support.http_server import Handler, Server

if TYPE_CHECKING:
    from fedround.observability.tracing import Tracing

ID = "11111111-1111-4111-8111-111111111111"
TOKEN = "22222222-2222-4222-8222-222222222222"
ANY_PORT = {"bind": "127.0.0.1", "port": 0, "ops_port": 0}


@dataclass(frozen=True)
class Running:
    """Our platform, on its own event loop."""

    platform: Platform
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.platform.coordinator_public.port}"

    def status(self) -> dict[str, Any]:
        return self.platform.coordinator.status()


@contextmanager
def our_platform(*, traces: "Tracing | None" = None, **settings: object) -> Iterator[Running]:
    """Run our platform within the block, with the coordinator's `settings`. Both services have the same tokens."""
    stop = asyncio.Event()
    ready, ended = threading.Event(), threading.Event()
    running: list[Running] = []

    async def serve() -> None:
        coordinator = CoordinatorSettings.model_validate({**ANY_PORT, **settings})
        tokens = {name: settings[name] for name in ("token", "tokens_file") if name in settings}
        aggregator = AggregatorSettings.model_validate({**ANY_PORT, **tokens})
        async with platform.serving(coordinator, aggregator, traces=traces) as p:
            running.append(Running(p, asyncio.get_running_loop()))
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            # As in production. asyncio's own loop keeps Nagle's algorithm on, which adds 40 ms to many responses.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        finally:
            ready.set()
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    ready.wait()
    try:
        yield running[0]
    finally:
        running[0].loop.call_soon_threadsafe(stop.set)
        ended.wait()


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    kind: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def say(data: Mapping[str, object]) -> Answer:
    return Answer(body=json.dumps(data).encode())


STAND_BY = say({"state": "stand_by", "round": None})
FINISH = say({"state": "finish", "round": None})
REJECT = say({"state": "reject", "round": None})
REFUSED = say({"url": None, "token": None, "ok": False})


def order(number: int) -> Answer:
    return say({"state": "round", "round": number})


Line = Answer | Callable[[], Answer]


class After:
    """Responses to heartbeats. After n requests of `kind`, stage n responds: a line, or several, of which the last is repeated."""

    def __init__(self, kind: str, *stages: Line | Sequence[Line]) -> None:
        self.kind = kind
        self.stages = [list(stage) if isinstance(stage, Sequence) else [stage] for stage in stages]


class OldPlatform(Server):
    """A coordinator and an aggregator of 0.8 on one port. Each kind of request has a list of responses; the last one is repeated.

    A response may be a function that waits. `requests` records all requests. `seen(kind, n)` waits for n requests of a kind.
    """

    def __init__(
        self,
        *,
        heartbeat: Sequence[Line] | After = (STAND_BY,),
        rendez_vous: Sequence[Line] | None = None,
        start_training: Sequence[Line] | None = None,
        download: Sequence[Line] = (Answer(),),
        upload: Sequence[Line] = (Answer(),),
        leave: Sequence[Line] = (Answer(405),),
    ) -> None:
        super().__init__(self._handler())
        self._heartbeat = heartbeat if isinstance(heartbeat, After) else After("", heartbeat)
        self._lines = {
            "rendez_vous": list(rendez_vous or [say({"id": ID, "ok": True})]),
            "start_training": list(start_training or [say({"url": self.url, "token": TOKEN, "ok": True})]),
            "download": list(download),
            "upload": list(upload),
            "leave": list(leave),
        }
        self.requests: list[Request] = []
        self._news = threading.Condition()

    def of(self, kind: str) -> list[Request]:
        return [request for request in self.requests if request.kind == kind]

    def seen(self, kind: str, count: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.of(kind)) >= count, timeout=20), f"no {count} of {kind}"

    def _take(self, request: Request) -> Answer:
        with self._news:
            lines = self._stage() if request.kind == "heartbeat" else self._lines[request.kind]
            line = lines.pop(0) if len(lines) > 1 else lines[0]
            self.requests.append(request)
            self._news.notify_all()
        return line if isinstance(line, Answer) else line()

    def _stage(self) -> list[Line]:
        stages = self._heartbeat.stages
        return stages[min(len(self.of(self._heartbeat.kind)), len(stages) - 1)]

    def _handler(self) -> type[Handler]:
        platform = self

        class Answering(Handler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def take(self) -> None:
                answer = platform._take(Request(_kind(self.command, self.path), self.path, dict(self.headers), self.body()))
                try:
                    self.answer(answer.body, answer.status, answer.headers)
                except OSError:
                    self.close_connection = True

        return Answering


def _kind(method: str, path: str) -> str:
    first = path.split("/")[1]
    if method == "DELETE":
        return "leave"
    if first in ("rendez_vous", "heartbeat", "start_training"):
        return first
    return "upload" if method == "POST" else "download"
