"""Attacks of unauthenticated clients and of participants. Each is a context manager, and lasts as long as its block.

Every attack is bounded by its block, by a number of connections, and by the bytes of one strike. All of them use loopback only.
"""

import http.client
import random
import select
import selectors
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Self
from uuid import uuid4

import numpy as np

from hostile.client import ENEMY, Client
from support.updates import npy

PIECE = 64 << 10
EVERYWHERE = "127.66.0.0/16"


class Attack:
    """An attack that strikes repeatedly on its threads until its block ends. `blows` is the number of strikes so far.

    Args:
        port: Port of the service on this machine.
        source: Address of the attacker; `EVERYWHERE`: another one for each strike.
        threads: Number of threads that strike.
        pause: Seconds between two strikes of a thread.
    """

    def __init__(self, port: int, *, source: str = ENEMY, threads: int = 1, pause: float = 0.0) -> None:
        self.port, self.pause = port, pause
        self._source = source
        self.blows = 0
        self.over = threading.Event()
        self._threads = [threading.Thread(target=self._attack, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

    @property
    def source(self) -> str:
        if self._source == EVERYWHERE:
            return f"127.66.{random.randrange(256)}.{random.randrange(1, 255)}"
        return self._source

    def strike(self) -> None:
        """Strike once. This ends soon after `over` is set. It may raise what sockets raise: the next strike starts again."""
        raise NotImplementedError

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=1, source_address=(self.source, 0))

    def send_slowly(self, connection: socket.socket, piece: bytes, every: float) -> None:
        """Send a piece repeatedly, with pauses, until the attack or the connection ends."""
        while not self.over.wait(every):
            connection.sendall(piece)
            if select.select([connection], [], [], 0)[0] and not connection.recv(PIECE):
                return

    def _attack(self) -> None:
        while not self.over.is_set():
            self.blows += 1
            # Cut off or refused: an attacker comes again, but not so fast that it is only busy with itself.
            with suppress(OSError, http.client.HTTPException, ValueError):
                self.strike()
                self.over.wait(self.pause)
                continue
            self.over.wait(max(self.pause, 0.01))


class Pipeliner(Attack):
    """An attack that sends one request after another on a connection, and never reads a response."""

    def __init__(self, port: int, path: str = "/", **options: object) -> None:
        super().__init__(port, **options)  # type: ignore[arg-type]  # those of an attack
        self._requests = f"GET {path} HTTP/1.1\r\n\r\n".encode() * 2000

    def strike(self) -> None:
        with self.connect() as connection:
            connection.setblocking(False)
            while not self.over.is_set():
                try:
                    connection.send(self._requests)
                except BlockingIOError:
                    select.select([], [connection], [], 0.05)


class IdleCrowd(Attack):
    """An attack that holds this many idle connections, and replaces those that the server closes."""

    def __init__(self, port: int, size: int = 1300, **options: object) -> None:
        super().__init__(port, **options)  # type: ignore[arg-type]  # those of an attack
        self.size = size

    def strike(self) -> None:
        crowd: set[socket.socket] = set()
        with selectors.DefaultSelector() as watched:
            try:
                while not self.over.wait(0.05):
                    for key, _ in watched.select(0):
                        watched.unregister(key.fileobj)
                        closed: socket.socket = key.fileobj  # type: ignore[assignment]  # only sockets are registered
                        crowd.discard(closed)
                        closed.close()
                    while len(crowd) < self.size and not self.over.is_set():
                        connection = self.connect()
                        crowd.add(connection)
                        watched.register(connection, selectors.EVENT_READ)
            finally:
                for connection in crowd:
                    connection.close()


class Flood(Attack):
    """A flood: it sends twenty requests at a time, as fast as the server responds, and counts the responses by status."""

    def __init__(self, port: int, path: str, *, method: str = "GET", head: str = "", **options: object) -> None:
        super().__init__(port, **options)  # type: ignore[arg-type]  # those of an attack
        self._requests = f"{method} {path} HTTP/1.1\r\nHost: here\r\n{head}\r\n".encode() * 20
        self.answers: dict[bytes, int] = {}

    def strike(self) -> None:
        with self.connect() as connection:
            while not self.over.is_set():
                connection.sendall(self._requests)
                piece = connection.recv(PIECE)
                if not piece:
                    return
                for line in piece.split(b"HTTP/1.1 ")[1:]:
                    self.answers[line[:3]] = self.answers.get(line[:3], 0) + 1


class SlowHeads(Attack):
    """An attack that holds connections with request heads that arrive byte by byte and never end."""

    def __init__(self, port: int, size: int = 200, **options: object) -> None:
        super().__init__(port, **options)  # type: ignore[arg-type]  # those of an attack
        self.size = size

    def strike(self) -> None:
        connections = [self.connect() for _ in range(self.size)]
        try:
            for connection in connections:
                connection.sendall(b"GET /rendez_vous HTTP/1.1\r\nX-Slow: ")
            while connections and not self.over.wait(0.2):
                for connection in connections.copy():
                    try:
                        connection.sendall(b"a")
                    except OSError:
                        connections.remove(connection)
                        connection.close()
        finally:
            for connection in connections:
                connection.close()


class DrippingBody(Attack):
    """An attack that announces a body of `size` bytes, or a chunked body without an end (None), and sends it slowly."""

    def __init__(self, port: int, path: str, size: int | None = 1 << 30, **options: object) -> None:
        super().__init__(port, **options)  # type: ignore[arg-type]  # those of an attack
        framing = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
        self._head = f"POST {path} HTTP/1.1\r\nHost: here\r\n{framing}\r\n\r\n".encode()
        self._piece = b"10\r\n0123456789abcdef\r\n" if size is None else b"0123456789abcdef"

    def strike(self) -> None:
        with self.connect() as connection:
            connection.sendall(self._head)
            self.send_slowly(connection, self._piece, every=0.05)


class EndlessUpload(Attack):
    """An attack that uploads chunk after chunk at full speed, without an end."""

    def __init__(self, port: int, path: str, **options: object) -> None:
        super().__init__(port, **options)  # type: ignore[arg-type]  # those of an attack
        self._head = f"POST {path} HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

    def strike(self) -> None:
        chunk = b"%x\r\n%b\r\n" % (PIECE, bytes(PIECE))
        with self.connect() as connection:
            connection.sendall(self._head)
            while not self.over.is_set():
                connection.sendall(chunk)


class Together(AbstractContextManager["Together"]):
    """Several attacks at the same time."""

    def __init__(self, *attacks: Attack) -> None:
        self.attacks = attacks
        self.title = ", ".join(dict.fromkeys(type(attack).__name__ for attack in attacks))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for attack in self.attacks:
            self._stack.enter_context(attack)
        return self

    def __exit__(self, *_: object) -> None:
        for attack in self.attacks:
            attack.over.set()
        self._stack.close()


# Attackers that speak the protocol


class Insider(Attack):
    """An attack by participants, one on each thread. It calls `act` whenever one is selected and has an upload token."""

    def __init__(
        self, coordinator: int, aggregator: int, *, names: Sequence[str], token: str | None = None, **options: object
    ) -> None:
        super().__init__(coordinator, threads=len(names), **options)  # type: ignore[arg-type]  # those of an attack
        self.aggregator, self.token = aggregator, token
        self._names = list(names)
        self._local = threading.local()
        self.selections = 0

    def act(self, client: Client) -> None:
        raise NotImplementedError

    def client(self) -> Client:
        """The registered participant of this thread."""
        if not hasattr(self._local, "client"):
            if not hasattr(self._local, "name"):
                self._local.name = self._names.pop()
            client = Client(self.port, self.aggregator, name=self._local.name, token=self.token, source=self.source)
            client.register()
            self._local.client = client
        found: Client = self._local.client
        return found

    def strike(self) -> None:
        client = self.client()
        client.update_token = ""
        answer = client.heartbeat(wait=1)
        if answer.status != 200 or answer.json["state"] == "reject":
            del self._local.client
            self.over.wait(0.2)
        elif client.update_token:
            self.selections += 1
            self.act(client)


class NeverDeliverer(Insider):
    """A participant that sends heartbeats, is selected, and uploads nothing."""

    def act(self, client: Client) -> None:
        self.over.wait(0.2)


class Liar(Insider):
    """A participant that uploads `lies` about the global model in turn, one for each selection, and records the statuses."""

    def __init__(self, coordinator: int, aggregator: int, lies: Callable[[bytes], bytes], **options: object) -> None:
        super().__init__(coordinator, aggregator, **options)  # type: ignore[arg-type]  # those of an insider
        self._lies = lies
        self.statuses: list[int] = []

    def act(self, client: Client) -> None:
        self.statuses.append(client.upload(self._lies(client.download().body)).status)


class Dripper(Insider):
    """A participant that announces an update of `size` bytes, and uploads it slowly."""

    def __init__(self, coordinator: int, aggregator: int, size: int = 1 << 30, **options: object) -> None:
        super().__init__(coordinator, aggregator, **options)  # type: ignore[arg-type]  # those of an insider
        self.size = size

    def act(self, client: Client) -> None:
        upload = DrippingBody(self.aggregator, client.update_path, self.size, source=self.source)
        upload.over = self.over
        upload.strike()


class Ghosts(Attack):
    """An attack that registers, and then sends nothing."""

    def __init__(self, port: int, *, name: str | None = None, **options: object) -> None:
        super().__init__(port, **{"pause": 0.05, **options})  # type: ignore[arg-type]  # those of an attack
        self.name = name

    def strike(self) -> None:
        Client(self.port, 0, name=self.name or f"ghost-{uuid4().hex[:8]}", source=self.source).register()


class Thief(Attack):
    """An attack that registers repeatedly under the name of another participant, with one heartbeat for each new id."""

    def __init__(self, port: int, name: str, *, beats: bool = True, **options: object) -> None:
        super().__init__(port, **{"pause": 0.2, **options})  # type: ignore[arg-type]  # those of an attack
        self.name, self.beats = name, beats

    def strike(self) -> None:
        client = Client(self.port, 0, name=self.name, source=self.source)
        client.register()
        if self.beats:
            client.heartbeat()


def scaled(factor: float, samples: int = 1) -> Callable[[bytes], bytes]:
    """Return a lie: an update of the model's size with equal weights."""

    def lie(model: bytes) -> bytes:
        count = len(np.frombuffer(model[128:], "<f8")) or 3
        return samples.to_bytes(4, "big") + npy(np.full(count, factor))

    return lie
