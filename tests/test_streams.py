"""Standard streams that are closed, or whose reader stands still, like a stopped terminal: the services go on without them."""

import logging
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fedround import run_participant
from fedround.observability import stderr
from fedround.observability.stderr import Handler
from support.processes import LOOPBACK, PORTS, free_port
from support.silos import Plus1


@contextmanager
def unread(command: str, **settings: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A command whose log is full before it starts, and the pipe's end for its reader."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n" * 4096)
    os.set_blocking(writing, True)
    process = subprocess.Popen([sys.executable, "-m", "fedround", command], env=os.environ | LOOPBACK | settings, stderr=writing)
    os.close(writing)
    try:
        yield process, reading
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def free_ports() -> dict[str, str]:
    return {name: str(free_port()) for name in PORTS["platform"]}


def read_until(reading: int, text: bytes) -> bytes:
    found = b""
    while text not in found:
        found += os.read(reading, 65536)
    return found


def test_a_platform_whose_log_is_not_read_trains_and_stops() -> None:
    ports = free_ports()
    with unread("platform", **ports, COORDINATOR_ROUNDS="3", COORDINATOR_LOG_LEVEL="debug") as (process, log):
        run_participant(Plus1(), f"http://127.0.0.1:{ports['COORDINATOR_PORT']}", 0.1, give_up_after=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert b"Traceback" not in os.read(log, 1 << 20)


def test_dropped_lines_are_counted_when_the_log_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr, "PATIENCE", 0.1)
    reading, writing = os.pipe()
    handler = Handler(writing)

    def log_line(text: str) -> None:
        handler.handle(logging.LogRecord("mine", logging.WARNING, __file__, 1, text, None, None))

    for number in range(20):
        log_line(f"{number} {'x' * 10_000}")
    log, over = read_until(reading, b"x\n5 "), threading.Event()

    def go_on() -> None:
        log_line("y" * 500_000)
        while not over.wait(0.01):
            log_line("later")

    thread = threading.Thread(target=go_on)
    thread.start()
    log += read_until(reading, b"later\n")
    over.set()
    thread.join()
    lines = log.decode().splitlines()
    kept = [line for line in lines if line.endswith("xxx")]
    assert kept == [f"{number} {'x' * 10_000}" for number in range(len(kept))], "a line that was begun is whole"
    dropped = f"{20 - len(kept)} log lines were dropped: standard error was not read in time"
    assert lines[len(kept) : len(kept) + 2] == [dropped, "y" * 500_000]
    assert "later" in lines[len(kept) + 2 :]  # on a busy machine not the first of them
    os.close(reading)
    os.close(writing)


def test_a_terminal_that_nobody_reads_does_not_stop_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writable, for a terminal, means that it accepts one byte. `docker run -t` and `tty: true` make one for the log."""
    monkeypatch.setattr(stderr, "PATIENCE", 0.1)
    screen, terminal = pty.openpty()
    handler = Handler(terminal)
    for number in range(1000):
        handler.handle(logging.LogRecord("mine", logging.WARNING, __file__, 1, f"{number} {'x' * 99}", None, None))
    assert read_until(screen, b"x\r\n20 ").startswith(b"0 xxx")
    for descriptor in (screen, terminal):
        os.close(descriptor)
    handler.close()


def test_no_line_is_written_to_a_file_that_got_the_descriptor_of_the_log(tmp_path: Path) -> None:
    """Training code may close all descriptors, and then open files."""
    reading, writing = os.pipe()
    handler = Handler(writing)
    os.close(handler._fd)
    with (tmp_path / "mine").open("w") as mine:
        assert mine.fileno() == handler._fd
        handler.handle(logging.LogRecord("mine", logging.WARNING, __file__, 1, "a line", None, None))
        handler.close()
        mine.write("a result")
    assert (tmp_path / "mine").read_text() == "a result"
    assert os.read(reading, 100) == b"a line\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_services_train_and_stop_with_closed_streams(closed: str) -> None:
    ports = free_ports()
    environ = os.environ | LOOPBACK | ports | {"COORDINATOR_ROUNDS": "2", "PYTHONPATH": str(Path(__file__).parent)}
    environ |= {"PARTICIPANT_OPS_PORT": "0", "PARTICIPANT_CLASS": "support.silos:Plus1"}
    environ["PARTICIPANT_COORDINATOR_URL"] = f"http://127.0.0.1:{ports['COORDINATOR_PORT']}"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "fedround"]
    with subprocess.Popen([*command, "platform"], env=environ) as platform:
        try:
            assert subprocess.run([*command, "participant"], env=environ, check=False, timeout=50).returncode == 0
        finally:
            platform.send_signal(signal.SIGTERM)
        assert platform.wait(30) == 0
