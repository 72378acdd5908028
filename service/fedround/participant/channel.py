"""The socket between supervisor and worker: length-prefixed JSON objects, and file descriptors. Sizes are bounded."""

import json
import os
import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from fedround.participant.memory import Memory, memories_of

MAX_MESSAGE = 1 << 20
"""Maximum bytes of a message."""
MAX_MEMORIES = 2
"""Maximum number of memories with a message."""
_LENGTH = struct.Struct(">I")
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class BadMessage(Exception):
    """The other side sent an invalid message."""


class Channel:
    """One end of the socket. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._open = True

    def give_up_after(self, seconds: float) -> None:
        """Make `send` fail if the other side does not read for this long."""
        whole = int(seconds)
        timeval = struct.pack("ll", whole, int((seconds - whole) * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def send(self, message: Mapping[str, object], memories: Iterable[Memory] = ()) -> None:
        """Send a message, and share memories. Does nothing after `forget`. Raises `OSError` if the other side is gone."""
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
        """Return the next message and its memories; None if the other side has closed, or is gone.

        Raises:
            BadMessage: The message is too long, or not a JSON object.
        """
        try:
            head, fds, _, _ = socket.recv_fds(self._socket, _LENGTH.size, MAX_MEMORIES, _CLOEXEC)
            memories = memories_of(fds)
            (length,) = _LENGTH.unpack(head + self._read(_LENGTH.size - len(head)))
            if length > MAX_MESSAGE:
                raise BadMessage(f"a message of {length} bytes")
            text = self._read(length)
        except (OSError, EOFError):
            return None
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            raise BadMessage("not JSON") from None
        if not isinstance(message, dict):
            raise BadMessage("not a JSON object")
        return message, memories

    def shut(self) -> None:
        """End the connection. Messages that have arrived can still be received."""
        with suppress(OSError):  # the other side has closed first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def forget(self) -> None:
        """Close the socket in a forked process, where `send` then does nothing."""
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
