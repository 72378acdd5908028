"""A participant as a service: how it starts, stops, and exits."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.federation import OldPlatform, our_platform
from support.link import Gate

MODULE = """
import os, time
from concurrent.futures import ThreadPoolExecutor
if "STUCK" in os.environ:
    print("importing", flush=True)
    time.sleep(100)
import fedround
import numpy as np

class Silo(fedround.NumPyParticipant):
    def __init__(self, *, mood="good"):
        self.mood = mood
        if "threads" in mood:
            ThreadPoolExecutor(1, "forgotten").submit(time.sleep, 100)
        if "unmade" in mood:
            raise ZeroDivisionError("no data at all")

    def train_round(self, training_input):
        print("training", flush=True)
        round = fedround.current_round()
        if "broken" in self.mood:
            raise ZeroDivisionError("no data today")
        while self.mood == "slow" and not round.cancelled:
            time.sleep(0.01)
        if self.mood == "deaf":
            time.sleep(100)
        return 1, np.ones(3)
"""


SLOW_UVICORN = """
import os, sys
open("gate").close()
sys.path.remove(os.getcwd())
del sys.modules["uvicorn"]
import uvicorn
"""


ENVIRON = {name: value for name, value in os.environ.items() if name.partition("_")[0] not in ("PARTICIPANT", "POD")}


def test_a_third_signal_ends_a_program_whose_code_does_not_return(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    with our_platform(rounds=2) as p:
        program = f"import fedround, mine; fedround.run_participant(mine.Silo(mood='deaf'), {p.url!r}, handle_signals=True)"
        with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "training\n"
            for number in (signal.SIGTERM, signal.SIGINT):
                process.send_signal(number)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM


class Service:
    """`fedround participant` as a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log = ""

    def until(self, pattern: str) -> str:
        """Wait for a line, and return its first group."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if match := re.search(pattern, line):
                return match[1] if match.groups() else ""
        raise AssertionError(f"{pattern} never came:\n{self.log}")

    def training(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "training\n"

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        self.log += self.process.communicate(timeout=30)[1]
        return self.process.returncode

    def ask(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def __enter__(self) -> "Service":
        self.port = 0
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def service(directory: Path, url: str, **settings: str) -> Iterator[Service]:
    (directory / "mine.py").write_text(MODULE)
    settings = {"COORDINATOR_URL": url, "CLASS": "mine:Silo", "OPS_PORT": "0", "OPS_BIND": "127.0.0.1", **settings}
    environ = ENVIRON | {f"PARTICIPANT_{name}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "fedround", "participant"],
        cwd=directory,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with Service(process) as running:
        yield running


def mood(word: str) -> str:
    return json.dumps({"mood": word})


def test_a_participant_exits_with_0_when_training_is_complete(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, NAME="silo-1") as s:
        assert s.end() == 0
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1, 1]
    assert "round 1 completed" in s.log
    assert "Traceback" not in s.log


def test_a_participant_that_stays_after_training_is_ready_and_ends_on_sigterm(tmp_path: Path) -> None:
    with our_platform(rounds=1) as p, service(tmp_path, p.url, AFTER_FINISH="wait", NAME="silo-1") as s:
        s.port = int(s.until(r"PARTICIPANT_OPS_PORT: listening on .* port (\d+)"))
        if "finished" not in s.log:
            s.until("finished")
        assert s.ask("/readyz") == (200, {"ready": True, "reasons": []})
        assert s.ask("/livez")[0] == 200
        status = s.ask("/status")[1]
        assert (status["name"], status["state"], status["rounds"]) == ("silo-1", "training complete", {"completed": 1})
        assert status["shard"] == "0/10"
        assert s.end(signal.SIGTERM) == 0


def test_a_participant_is_not_ready_while_the_coordinator_is_unreachable(tmp_path: Path) -> None:
    with OldPlatform() as p:
        pass
    with service(tmp_path, p.url) as s:
        s.port = int(s.until(r"PARTICIPANT_OPS_PORT: listening on .* port (\d+)"))
        if "no contact with the coordinator" not in s.log:  # either may be the first
            s.until("no contact with the coordinator")
        status, answer = s.ask("/readyz")
        assert status == 503
        assert "no contact with the coordinator" in answer["reasons"][0]
        assert s.ask("/livez")[0] == 200
        assert s.end(signal.SIGINT) == 0


def test_a_waiting_participant_leaves_immediately_on_sigterm(tmp_path: Path) -> None:
    with our_platform(min_clients=2) as p, service(tmp_path, p.url) as s:
        s.until("registered as")
        began = time.monotonic()
        assert s.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 6
        assert p.status()["participants"] == []


def test_on_sigterm_training_code_that_returns_early_still_delivers(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("slow")) as s:
        s.training()
        assert s.end(signal.SIGTERM) == 0
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1]
        assert p.status()["participants"] == []


def test_on_sigterm_training_code_that_does_not_return_is_abandoned(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("deaf"), DRAIN_TIMEOUT="300ms") as s:
        s.training()
        began = time.monotonic()
        assert s.end(signal.SIGTERM) == 0
        assert 0.3 <= time.monotonic() - began < 6
        assert p.status()["participants"] == []
    assert "does not return" in s.log


def test_a_second_signal_ends_a_participant_immediately(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("deaf"), DRAIN_TIMEOUT="60s") as s:
        s.training()
        s.process.send_signal(signal.SIGTERM)
        s.until("draining")
        assert s.end(signal.SIGTERM) == 0


def test_sigterm_during_a_slow_import_ends_a_participant_immediately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRON, "STUCK", "1")
    with service(tmp_path, "http://127.0.0.1:1") as s:
        assert s.process.stdout is not None
        assert s.process.stdout.readline() == "importing\n"
        began = time.monotonic()
        assert s.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 6
    assert "Traceback" not in s.log


def test_an_upload_under_way_is_finished_before_a_participant_ends(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, Gate(p.platform.aggregator_public.port) as gate:
        with service(tmp_path, p.url, AGGREGATOR_URL=gate.url) as s:
            assert gate.held.wait(20)
            s.process.send_signal(signal.SIGTERM)
            s.until("draining")
            gate.open.set()
            assert s.end() == 0
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1]
        assert p.status()["participants"] == []
    assert "round 0 completed" in s.log


def test_an_upload_that_takes_too_long_is_abandoned_and_the_participant_leaves(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, Gate(p.platform.aggregator_public.port) as gate:
        with service(tmp_path, p.url, AGGREGATOR_URL=gate.url, DRAIN_TIMEOUT="300ms") as s:
            assert gate.held.wait(20)
            began = time.monotonic()
            assert s.end(signal.SIGTERM) == 0
            assert 0.3 <= time.monotonic() - began < 6
            assert p.status()["participants"] == []
        assert p.status()["last_rounds"] == []
    assert "round 0 abandoned" in s.log


def test_an_unreachable_coordinator_exits_with_69_even_if_the_code_does_not_return(tmp_path: Path) -> None:
    options = {"OPTIONS": mood("deaf"), "GIVE_UP_AFTER": "300ms", "RECONNECT_MAX": "100ms", "HEARTBEAT_PERIOD": "100ms"}
    with ExitStack() as stack:
        with our_platform(rounds=2) as p:
            s = stack.enter_context(service(tmp_path, p.url, **options))
            s.training()
        assert s.end() == 69


def test_user_code_that_keeps_failing_exits_with_70_and_a_traceback(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("broken"), MAX_FAILURES="2") as s:
        assert s.end() == 70
    assert len(re.findall("^ *ZeroDivisionError: no data today", s.log, re.MULTILINE)) == 2
    assert "training.py" not in s.log


def test_a_slow_ops_port_does_not_change_the_exit_code(tmp_path: Path) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    (tmp_path / "uvicorn.py").write_text(SLOW_UVICORN)
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("broken"), MAX_FAILURES="1") as s:
        s.until("stopped")
        with pytest.raises(subprocess.TimeoutExpired):
            s.process.wait(1.5)
        gate.open("w").close()
        assert s.end() == 70
    assert "does not return" not in s.log
    assert "ZeroDivisionError: no data today" in s.log


@pytest.mark.parametrize(("word", "code"), [("threads", 0), ("broken threads", 70), ("unmade threads", 70)])
def test_threads_that_user_code_left_behind_do_not_delay_the_exit(word: str, code: int, tmp_path: Path) -> None:
    with our_platform(rounds=1) as p, service(tmp_path, p.url, OPTIONS=mood(word), MAX_FAILURES="1") as s:
        assert s.end() == code
    assert "threads of the training code (forgotten_0) do not end: exiting without them" in s.log


def test_an_unreachable_coordinator_exits_with_69(tmp_path: Path) -> None:
    with OldPlatform() as p:
        pass
    with service(tmp_path, p.url, GIVE_UP_AFTER="300ms", RECONNECT_MAX="100ms") as s:
        assert s.end() == 69


def test_a_class_that_does_not_exist_exits_with_78(tmp_path: Path) -> None:
    with service(tmp_path, "http://localhost:1", CLASS="yours:Silo") as s:
        assert s.end() == 78
    assert "PARTICIPANT_CLASS (--class): there is no module yours" in s.log


def test_an_ops_port_in_use_exits_with_78_after_leaving(tmp_path: Path) -> None:
    with our_platform(min_clients=2) as p, socket.create_server(("127.0.0.1", 0)) as taken:
        with service(tmp_path, p.url, OPS_PORT=str(taken.getsockname()[1])) as s:
            assert s.end() == 78
        assert p.status()["participants"] == []
    assert "PARTICIPANT_OPS_PORT" in s.log


def test_an_ops_port_in_use_exits_with_78_even_if_the_code_does_not_return(tmp_path: Path) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    (tmp_path / "uvicorn.py").write_text(SLOW_UVICORN)
    with our_platform() as p, socket.create_server(("127.0.0.1", 0)) as taken:
        with service(tmp_path, p.url, OPTIONS=mood("deaf"), OPS_PORT=str(taken.getsockname()[1])) as s:
            s.training()
            gate.open("w").close()
            assert s.end() == 78
        assert p.status()["participants"] == []
    assert "does not return" in s.log
    assert "PARTICIPANT_OPS_PORT" in s.log


def test_the_index_of_a_pod_is_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRON, "POD_INDEX", "12")
    with our_platform(rounds=1) as p, service(tmp_path, p.url) as s:
        assert s.end() == 0
    assert "number 12 wraps to 2" in s.log
