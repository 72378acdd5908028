"""The worker's process: how it starts, with only its socket, how it ends with all its child processes, and why it ended."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from fedround.participant.channel import Channel

MODULE = "fedround.participant.worker"
SEND_TIMEOUT = 1.0
"""Seconds within which a worker must read a message; otherwise it counts as broken."""
STACK_GRACE = 0.2
"""Seconds to print the stacks."""
TERM_GRACE = 0.5
"""Seconds between SIGTERM and SIGKILL."""
REAP_TIMEOUT = 5.0
"""Seconds to wait for the exit of a killed process."""


class Cause(StrEnum):
    """The cause of a worker's end, as the label of a metric."""

    EXITED = "exited"
    KILLED = "killed"
    CRASHED = "crashed"
    CANCELLED = "cancelled"
    FAILING = "failing"
    UNUSABLE = "unusable"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class End:
    """The end of a worker: its cause, and a text for logs."""

    cause: Cause
    text: str


_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS, signal.SIGTRAP}


def end_of(code: int) -> End:
    """Return the end for an exit code. Below 0 it is a signal's number."""
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
    """A new worker in a separate session, and its channel.

    The kernel kills the worker when the thread that created this object ends, so that thread must live as long as the worker.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        options = [f"-W{option}" for option in sys.warnoptions]
        options += [f"-X{name}" if value is True else f"-X{name}={value}" for name, value in sys._xoptions.items()]
        options.append("-P")  # modules in the working directory must not replace ours: `load` adds it to the path later
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
        """Wait at most `within` seconds for its end, and return whether it has ended."""
        return self._exited.wait(within)

    def kill(self, stacks: bool = False, *, grace: float = TERM_GRACE) -> None:
        """End all processes of its session: first with SIGTERM, and after `grace` seconds with SIGKILL.

        `stacks`: whether the worker first prints the stacks of its threads, which show where it hangs.
        """
        if stacks and not self._exited.is_set():
            self._signal(signal.SIGUSR1, os.kill)
            self._exited.wait(STACK_GRACE)
        if grace and not self._exited.is_set():
            self._signal(signal.SIGTERM)
            self._exited.wait(grace)
        self._signal(signal.SIGKILL)

    def reap(self) -> int:
        """Kill the remaining processes of its session, and return the exit code; below 0 it is a signal's number."""
        self._signal(signal.SIGKILL)
        self._exited.wait(REAP_TIMEOUT)
        with self._reaping:
            code = self._popen.poll()
            self._code = -signal.SIGKILL if code is None else code
        threading.Thread(target=self._reap_orphans, name="fedround-orphans", daemon=True).start()
        self.channel.close()
        return self._code

    def _signal(self, number: int, send: Callable[[int, int], None] = os.killpg) -> None:
        with self._reaping:
            if self._code is None:  # until it is reaped, no other group can have its id
                with suppress(ProcessLookupError, PermissionError):  # all of them have ended, or are zombies
                    send(self._popen.pid, number)

    def _reap_orphans(self) -> None:
        """Reap the worker's killed child processes. If this is process 1 of a container, they are now our children."""
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-self._popen.pid, 0)

    def _watch(self) -> None:
        """Wait for the worker's exit. The socket's end of file is not enough: a forked child may keep the socket open.

        Process 1 of a container also gets the processes whose parents have ended, and reaps them. It starts no process but workers.
        """
        if os.getpid() == 1:
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) and ended.si_pid != self._popen.pid:
                if self._code is not None:  # `reap` no longer waits for this worker, and `ended` may be the next one
                    break
                with suppress(ChildProcessError):  # `_reap_orphans` was faster
                    os.waitpid(ended.si_pid, 0)
        elif hasattr(os, "waitid"):
            os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._popen.wait()
        self._exited.set()
        self.channel.shut()
