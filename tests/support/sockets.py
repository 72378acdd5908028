"""Handwritten HTTP on real sockets, for requests that no well-behaved HTTP library sends."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A connection to a server on this machine, at `port`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def ask(self, method: str, path: str, **headers: str) -> None:
        """Send the head of a request; `Content_Length=5` is `Content-Length: 5`."""
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: here",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def answer(self) -> Answer:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(head[0].split()[1]), headers, body)

    async def at_end(self) -> bool:
        """Wait until the server has closed the connection or sent data. Return whether it has closed."""
        try:
            return await self._reader.read(1) == b""
        except ConnectionResetError:
            return True

    async def rest(self) -> bytes:
        """Return everything that the server sends until it closes."""
        sent = bytearray()
        with suppress(ConnectionError):
            while more := await self._reader.read(1 << 16):
                sent += more
        return bytes(sent)

    def reset(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def connected(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()
