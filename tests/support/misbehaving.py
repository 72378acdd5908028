"""Training code that does what real code does: each function is a way to misbehave. Its argument is a directory."""

import ctypes
import logging.config
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

import fedround
from fedround.tensors.weights import Array

LEAKED: list[int] = []


def square(number: int) -> int:
    return number * number


def nap() -> None:
    time.sleep(60)


def pool(_: Path, workers: int = 2) -> None:
    with multiprocessing.get_context("fork").Pool(workers) as found:
        assert found.map(square, range(10)) == [square(number) for number in range(10)]


def large_pool(directory: Path) -> None:
    pool(directory, 4)


def terminated_child(_: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=nap)
    child.start()
    child.terminate()
    child.join(20)
    assert child.exitcode == -signal.SIGTERM, child.exitcode


def spawned_child(_: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=square, args=(3,))
    child.start()
    child.join(40)
    assert child.exitcode == 0, child.exitcode


def child_that_reports(_: Path) -> None:
    round = fedround.current_round()
    child = multiprocessing.get_context("fork").Process(target=round.report, kwargs={"loss": 0.5})
    child.start()
    child.join(20)
    assert child.exitcode == 0, child.exitcode


def children_that_stay(directory: Path) -> None:
    """Start children that never end, and write all ids to a file. Never return."""
    children = [multiprocessing.get_context("fork").Process(target=nap) for _ in range(2)]
    for child in children:
        child.start()
    (directory / "pids").write_text(" ".join(map(str, [os.getpid(), *(child.pid for child in children)])))
    (directory / "pids").rename(directory / "left")
    deaf(directory)


def orphan(_: Path) -> None:
    """A process in a session of its own, whose parent ends first: process 1 becomes its parent."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    os.wait()


def fork_that_returns(directory: Path) -> None:
    """A daemon in a session of its own; its id in a file."""
    if os.fork() == 0:
        os.setsid()
        (directory / "pid").write_text(str(os.getpid()))
        (directory / "pid").rename(directory / "left")


def deaf(_: Path) -> None:
    """Ignore SIGTERM, and never return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(60)


def hold_the_lock(_: Path) -> None:
    ctypes.PyDLL(None).sleep(6)


def trace_itself(_: Path) -> None:
    from opentelemetry import trace

    with trace.get_tracer("mine").start_as_current_span("epoch"):
        logging.getLogger("mine").warning("in the middle of an epoch")


def configure_logging(_: Path) -> None:
    logging.config.dictConfig({"version": 1, "root": {"level": "WARNING"}})


def seed(directory: Path) -> None:
    random.seed(42)
    fedround.current_round().report(number=random.random())
    (directory / "numbers").write_text(" ".join(str(random.random()) for _ in range(5)))


def handle_signals(_: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)


def change_the_process(directory: Path) -> None:
    os.chdir(directory)
    os.umask(0o777)
    os.environ.clear()


def close_the_standard_streams(_: Path) -> None:
    for fd in range(3):
        os.close(fd)


def abort(_: Path) -> None:
    os.abort()


def crash(_: Path) -> None:
    ctypes.string_at(0)


def be_killed(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_at_once(_: Path) -> None:
    os._exit(3)


def sys_exit(_: Path) -> None:
    sys.exit(3)


def interrupt(_: Path) -> None:
    raise KeyboardInterrupt


def become_another_program(_: Path) -> None:
    os.execv("/bin/sleep", ["sleep", "60"])  # noqa: S606 what is tested


def close_everything(_: Path) -> None:
    os.closerange(3, 1000)


def leak_descriptors(_: Path) -> None:
    """Open files until no descriptor is left, and keep them open."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    while True:
        LEAKED.append(os.open(os.devnull, os.O_RDONLY))


def take_too_much_memory(_: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limits[1]))
    try:
        np.ones(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


class Misbehaving(fedround.NumPyParticipant):
    """A participant that misbehaves once in each round, as `how` lists, and then trains. Files in `directory` record it."""

    def __init__(self, *, how: list[str], directory: str) -> None:
        self.how = how
        self.directory = Path(directory).resolve()

    def train_round(self, weights: Array | None, /) -> fedround.Update:
        done = self.directory / "done"
        number = fedround.current_round().number
        if number == len(done.read_text().splitlines() if done.exists() else []):
            with done.open("a") as file:
                file.write(f"{self.how[number]}\n")
            globals()[self.how[number]](self.directory)
        assert threading.current_thread() is threading.main_thread()
        return fedround.Update(1, np.ones(3) if weights is None else weights + 1)
