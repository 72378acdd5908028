"""A strict platform of 0.8: coordinator and aggregator with the behaviour and the faults of XAIN FL 0.8. It records all requests.

- It responds to an upload before it reads it, and counts each one. The coordinator knows about it later (`race`).
- Credentials that are no longer valid get 405. It ignores fedround's headers.
- The coordinator ends at a heartbeat of an unknown id after the last round, and when an id times out that uploaded in the round.
- The removal of a selected id that timed out closes no round. An empty upload does, and its id is ignored.
- `faults` records what no participant may do.
"""

import io
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID, uuid4

import numpy as np

from support.http_server import Handler, Server

STAND_BY, FINISH, REJECT = (b'{"round":null,"state":"%s"}' % state for state in (b"stand_by", b"finish", b"reject"))


@dataclass
class Client:
    state: str = "waiting"
    token: str = ""
    seen: float = field(default_factory=time.monotonic)
    stale: int = 0
    """Number of heartbeats that do not yet know about the upload."""


@dataclass
class Answer:
    status: int
    body: bytes = b""
    kind: str = "application/json"


class Xain08:
    """The platform. `close`, `down` and `lose` are the numbers of further requests that fail, each in its way.

    Args:
        rounds: Number of rounds.
        clients: Minimum number of participants.
        race: Number of heartbeats after an upload that still get `round`.
        heartbeat_timeout: Seconds without a heartbeat after which an id is removed; `gone` shows that one was.
    """

    def __init__(self, rounds: int, clients: int, race: int = 0, heartbeat_timeout: float = math.inf) -> None:
        self.rounds, self.min_clients, self.race, self.heartbeat_timeout = rounds, clients, race, heartbeat_timeout
        self.faults: list[str] = []
        self.requests: Counter[str] = Counter()
        self.counted: Counter[tuple[int, str]] = Counter()
        self.close: Counter[str] = Counter()
        """Connections to close without a response, by kind. The uploads among them are processed."""
        self.down = 0
        """Number of start_training requests to answer with 404, as if the coordinator could not reach its aggregator."""
        self.lose = 0
        """Number of uploads that the aggregator forgets after its 200."""
        self.gone = threading.Event()
        self.model = b""
        self.round = 0
        self._clients: dict[str, Client] = {}
        self._updates: list[tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]] = []
        self._lock = threading.RLock()
        self.server = Server(_handler(self))
        self.url = self.server.url

    @property
    def complete(self) -> bool:
        return self.round >= self.rounds

    def forget(self) -> None:
        """Let a selected participant time out. Its next heartbeat is rejected."""
        with self._lock:
            del self._clients[next(id for id, client in self._clients.items() if client.state == "selected")]
            self._advance()

    def restart_aggregator(self) -> None:
        with self._lock:
            self.model = b""

    def answer(self, kind: str, ids: list[str]) -> Answer | None:
        """Return the response; None closes the connection without one, although the request was processed."""
        with self._lock:
            self.requests[kind] += 1
            self._look_for_silence()
            answer = Answer(404) if any(_uuid(id) is None for id in ids) else self._answer(kind, ids)
            if not self.close[kind]:
                return answer
            self.close[kind] -= 1
            if kind == "rendez_vous":
                # Nobody will ever send a heartbeat with this id: it is missed at once, where the real platform takes 15 s.
                self._clients.popitem()
            return None

    def take(self, id: str, token: str, body: bytes) -> None:
        """Process an upload that has already been answered."""
        with self._lock:
            client = self._clients.get(id)
            if self.lose:
                self.lose -= 1
            elif client is not None and client.token == token and (body or client.state == "selected"):
                self._count(id, client, body)

    def _answer(self, kind: str, ids: list[str]) -> Answer:
        match kind:
            case "rendez_vous":
                return self._join()
            case "heartbeat":
                return Answer(200, self._heartbeat(ids[0]))
            case "start_training":
                return self._start(ids[0])
            case "download":
                return self._download(*ids)
        return Answer(200)

    def _join(self) -> Answer:
        if self.complete:
            return Answer(200, b'{"id":null,"ok":false}')
        id = str(uuid4())
        self._clients[id] = Client()
        self._advance()
        return Answer(200, b'{"id":"%s","ok":true}' % id.encode())

    def _heartbeat(self, id: str) -> bytes:
        client = self._clients.get(id)
        if client is not None:
            client.seen = time.monotonic()
        if client is None:
            if self.complete:
                self.faults.append("a heartbeat of an unknown id after the last round: the coordinator panics")
            return REJECT
        if client.stale:
            answer = self._order()
            client.stale -= 1
            if not client.stale:
                client.state = "done"
                self._advance()
            return answer
        if self.complete:
            return FINISH
        return self._order() if client.state == "selected" else STAND_BY

    def _order(self) -> bytes:
        return b'{"round":%d,"state":"round"}' % self.round

    def _start(self, id: str) -> Answer:
        if self.down:
            self.down -= 1
            return Answer(404)
        client = self._clients.get(id)
        if client is None or client.state != "selected" or self.complete:
            return Answer(200, b'{"url":null,"token":null,"ok":false}')
        client.token = str(uuid4())
        return Answer(200, b'{"url":"%s","token":"%s","ok":true}' % (self.url.encode(), client.token.encode()))

    def _download(self, id: str, token: str) -> Answer:
        if (client := self._clients.get(id)) is None or client.token != token:
            return Answer(405, b"HTTP method not allowed", "text/plain")
        return Answer(200, self.model, "application/octet-stream")

    def _look_for_silence(self) -> None:
        since = time.monotonic() - self.heartbeat_timeout
        for id in [id for id, client in self._clients.items() if client.seen < since]:
            if self._clients.pop(id).state == "done":
                self.faults.append("an id that delivered fell silent before its round was over: the coordinator panics")
            self.gone.set()

    def _count(self, id: str, client: Client, body: bytes) -> None:
        if not body:
            self.requests["forfeit"] += 1
            client.state = "ignored"
            self._advance()
            return
        self.counted[self.round, id] += 1
        if self.counted[self.round, id] > 1:
            self.faults.append(f"an update of round {self.round} was counted twice")
        try:
            self._updates.append((int.from_bytes(body[:4], "big"), np.load(io.BytesIO(body[4:]), allow_pickle=False)))
        except (ValueError, EOFError) as error:
            self.faults.append(f"an upload that is no update: {error}")
            client.state = "ignored"
        else:
            client.stale = self.race
            client.state = "selected" if self.race else "done"
        self._advance()

    def _advance(self) -> None:
        """End the round when enough are done and none is selected. Select waiting participants when too few are."""
        states = Counter(client.state for client in self._clients.values())
        if states["done"] >= self.min_clients and not states["selected"]:
            self._aggregate()
            states.clear()
        if not self.complete and states["selected"] + states["done"] < self.min_clients <= len(self._clients):
            for client in self._clients.values():
                client.state = "selected" if client.state == "waiting" else client.state

    def _aggregate(self) -> None:
        total = math.fsum(samples for samples, _ in self._updates)
        mean = sum(samples * weights for samples, weights in self._updates) / total
        buffer = io.BytesIO()
        np.save(buffer, mean, allow_pickle=False)
        self.model, self._updates = buffer.getvalue(), []
        self.round += 1
        for client in self._clients.values():
            client.state, client.token = "waiting", ""


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _handler(platform: Xain08) -> type[Handler]:
    class Answering(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def take(self) -> None:
            kind, *ids = self.path.strip("/").split("/")
            match self.command:
                case "DELETE":
                    self._say(Answer(405, b"HTTP method not allowed", "text/plain"))
                case "POST":
                    body, (token,) = self.body(), ids
                    self._say(platform.answer("upload", [kind, token]))
                    platform.take(kind, token, body)
                case _ if kind in ("rendez_vous", "heartbeat", "start_training"):
                    self._say(platform.answer(kind, ids))
                case _:
                    self._say(platform.answer("download", [kind, *ids]))

        def _say(self, answer: Answer | None) -> None:
            if answer is None:
                self.close_connection = True
                return
            self.answer(answer.body, answer.status, {"Content-Type": answer.kind} if answer.body else {})

    return Answering
