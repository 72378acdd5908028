"""The socket between the supervisor and its worker: JSON objects behind their lengths, and descriptors. Sizes are bounded."""

import json
import os
import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from fedround.participant.memory import Memory, take

MAX_MESSAGE = 1 << 20
"""Bytes of a message."""
MAX_MEMORIES = 2
"""How many memories come with a message at most."""
_LENGTH = struct.Struct(">I")
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class BadMessage(Exception):
    """The other side sent what is no message."""


class Channel:
    """One end of the socket. Any thread may send; one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._open = True

    def give_up_after(self, seconds: float) -> None:
        """From now on `send` fails if the other side does not read for so long."""
        whole = int(seconds)
        timeval = struct.pack("ll", whole, int((seconds - whole) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def send(self, message: Mapping[str, object], memories: Iterable[Memory] = ()) -> None:
        """Send a message, and share memories. Nothing happens after `forget`. Raises `OSError`: the other side is gone."""
        if not self._open:
            return
        text = json.dumps(message).encode()
        if len(text) > MAX_MESSAGE:
            raise OSError("the message is too long")
        data = _LENGTH.pack(len(text)) + text
        with self._sending:
            if fds := [memory.fd for memory in memories]:
                data = data[socket.send_fds(self._socket, [data], fds) :]
            self._socket.sendall(data)

    def receive(self) -> tuple[Mapping[str, Any], list[Memory]] | None:
        """The next message and the memories that come with it; None when the other side has closed, or is gone.

        Raises:
            BadMessage: It is none.
        """
        try:
            head, fds, _, _ = socket.recv_fds(self._socket, _LENGTH.size, MAX_MEMORIES, _CLOEXEC)
            memories = take(fds)
            (length,) = _LENGTH.unpack(head + self._read(_LENGTH.size - len(head)))
            if length > MAX_MESSAGE:
                raise BadMessage(f"a message of {length} bytes")
            text = self._read(length)
        except (OSError, EOFError):
            return None
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise BadMessage("no JSON") from None
        if not isinstance(message, dict):
            raise BadMessage("no JSON object")
        return message, memories

    def shut(self) -> None:
        """What has come can still be received, and then there is the end."""
        with suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def forget(self) -> None:
        """In a forked process: the socket is not ours, and what is sent goes nowhere."""
        self._open = False
        os.close(self._socket.detach())

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(min(size - len(data), 1 << 16))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)
