"""A worker as a process: started with its socket and nothing else, ended with all that it has started, and why it ended."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from fedround.participant.channel import Channel

MODULE = "fedround.participant.worker"
SEND_TIMEOUT = 1.0
"""Seconds in which a worker reads what it is sent; else it is broken."""
TERM_GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL."""
REAP_TIMEOUT = 5.0
"""Seconds that a killed process may take to be gone."""


class Cause(StrEnum):
    """Why a worker ended, as a label."""

    EXITED = "exited"
    KILLED = "killed"
    CRASHED = "crashed"
    CANCELLED = "cancelled"
    UNUSABLE = "unusable"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class End:
    """The end of a worker: `text` is for people."""

    cause: Cause
    text: str


_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP}


def end_of(code: int) -> End:
    """The end that an exit code tells of; below 0 it is a signal's number."""
    if code >= 0:
        return End(Cause.EXITED, f"ended with exit code {code}")
    try:
        number = signal.Signals(-code)
    except ValueError:
        return End(Cause.KILLED, f"was killed by signal {-code}")
    if number in _CRASHES:
        return End(Cause.CRASHED, f"crashed with {number.name}")
    return End(Cause.KILLED, f"was killed by {number.name}" + (": out of memory?" if number == signal.SIGKILL else ""))


class Process:
    """A worker that was just started, in a session of its own, and its channel.

    The kernel kills it when the thread that made this ends: that thread must live as long as the worker shall.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        options = [f"-W{option}" for option in sys.warnoptions]
        options += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
        with theirs:
            self._popen = subprocess.Popen(  # noqa: S603 our own module
                [sys.executable, *options, "-m", MODULE, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.channel = Channel(ours)
        self.channel.give_up_after(SEND_TIMEOUT)
        self._exited = threading.Event()
        self._reaping = threading.Lock()
        self._code: int | None = None
        threading.Thread(target=self._watch, name="fedround-worker-exit", daemon=True).start()

    def exited(self, within: float) -> bool:
        """Wait so many seconds for its end; whether it has come."""
        return self._exited.wait(within)

    def kill(self, *, grace: float = TERM_GRACE) -> None:
        """End it and all processes of its session, with SIGTERM first."""
        if grace and not self._exited.is_set():
            self._signal(signal.SIGTERM)
            self._exited.wait(grace)
        self._signal(signal.SIGKILL)

    def reap(self) -> int:
        """Kill what is left of its session, and let go of it. Returns the exit code, below 0 a signal's number."""
        self._signal(signal.SIGKILL)
        self._exited.wait(REAP_TIMEOUT)
        with self._reaping:
            code = self._popen.poll()
            self._code = -signal.SIGKILL if code is None else code
        threading.Thread(target=self._reap_orphans, name="fedround-orphans", daemon=True).start()
        self.channel.close()
        return self._code

    def _signal(self, number: int) -> None:
        with self._reaping:
            if self._code is None:  # until it is reaped, its id is that of no other group
                with suppress(ProcessLookupError, PermissionError):  # all of them are gone, or zombies
                    os.killpg(self._popen.pid, number)

    def _reap_orphans(self) -> None:
        """What the worker had started is ours, if this is process 1 of a container. All of it was killed just now."""
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-self._popen.pid, 0)

    def _watch(self) -> None:
        """What a process that the worker has forked keeps open does not hide the worker's end."""
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._popen.wait()
        self._exited.set()
        self.channel.shut()
