"""What strangers and bad participants do to a service: one class each, at work from the beginning of a block to its end.

Every attack is bounded: by its block, by the connections it may hold, and by the bytes of one blow. All of them are on loopback.
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
    """Strikes again and again, on so many threads, until its block ends. `blows` counts the strikes that were begun.

    Args:
        port: Port of the service on this machine.
        source: Address that the attack comes from; `EVERYWHERE`: another one for each strike.
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
        """One strike, which ends soon after `over` is set. May raise what sockets raise: the next strike begins anew."""
        raise NotImplementedError

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=1, source_address=(self.source, 0))

    def send_slowly(self, connection: socket.socket, piece: bytes, every: float) -> None:
        """Send the piece again and again with pauses, until the attack or the connection is over."""
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
    """Sends request after request on one connection and never reads an answer."""

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
    """Holds so many connections on which it says nothing, and replaces those that are closed."""

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
    """Sends one request after the other as fast as they are answered, twenty at a time, and counts the answers by status."""

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
    """Holds connections on which the head of a request comes a byte at a time and never ends."""

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
    """Announces a body of so many bytes, None for a chunked one without an end, and sends a few bytes of it now and then."""

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
    """Uploads chunk after chunk at full speed, and never ends."""

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
    """Several attacks at once."""

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
    """Takes part, on each thread as another participant. `act` is called whenever it is selected, with its upload token."""

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
        """The participant of this thread, registered."""
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
    """Sends its heartbeats, is selected, and uploads nothing."""

    def act(self, client: Client) -> None:
        self.over.wait(0.2)


class Liar(Insider):
    """Uploads, for each selection, the next of the updates that `lies` make of the global model. Keeps the answers' statuses."""

    def __init__(self, coordinator: int, aggregator: int, lies: Callable[[bytes], bytes], **options: object) -> None:
        super().__init__(coordinator, aggregator, **options)  # type: ignore[arg-type]  # those of an insider
        self._lies = lies
        self.statuses: list[int] = []

    def act(self, client: Client) -> None:
        self.statuses.append(client.upload(self._lies(client.download().body)).status)


class Dripper(Insider):
    """Uploads what it announces as `size` bytes, a few at a time."""

    def __init__(self, coordinator: int, aggregator: int, size: int = 1 << 30, **options: object) -> None:
        super().__init__(coordinator, aggregator, **options)  # type: ignore[arg-type]  # those of an insider
        self.size = size

    def act(self, client: Client) -> None:
        upload = DrippingBody(self.aggregator, client.update_path, self.size, source=self.source)
        upload.over = self.over
        upload.strike()


class Ghosts(Attack):
    """Registers and is never heard of again."""

    def __init__(self, port: int, *, name: str | None = None, **options: object) -> None:
        super().__init__(port, **{"pause": 0.05, **options})  # type: ignore[arg-type]  # those of an attack
        self.name = name

    def strike(self) -> None:
        Client(self.port, 0, name=self.name or f"ghost-{uuid4().hex[:8]}", source=self.source).register()


class Thief(Attack):
    """Registers under somebody else's name, again and again, and beats once with each new id."""

    def __init__(self, port: int, name: str, *, beats: bool = True, **options: object) -> None:
        super().__init__(port, **{"pause": 0.2, **options})  # type: ignore[arg-type]  # those of an attack
        self.name, self.beats = name, beats

    def strike(self) -> None:
        client = Client(self.port, 0, name=self.name, source=self.source)
        client.register()
        if self.beats:
            client.heartbeat()


def scaled(factor: float, samples: int = 1) -> Callable[[bytes], bytes]:
    """A lie: every weight is so large, of as many as the model has."""

    def lie(model: bytes) -> bytes:
        count = len(np.frombuffer(model[128:], "<f8")) or 3
        return samples.to_bytes(4, "big") + npy(np.full(count, factor))

    return lie
