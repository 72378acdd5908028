"""Running a participant: within a program with an event loop, and as a service that lives and ends as operators expect."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedround.common.settings import ParticipantSettings
from fedround.errors import ConfigurationError, TrainingError
from fedround.participant.abc import NumPyParticipant, Update
from fedround.participant.round import current_round
from fedround.participant.run import arun_participant, run_participant
from fedround.participant.signals import signals
from fedround.participant.terms import Options, Terms
from fedround.tensors.weights import Array
from support.federation import FINISH, After, OldPlatform, order, our_platform
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


class Ones(NumPyParticipant):
    def __init__(self) -> None:
        self.training = threading.Event()
        self.wait = False

    def train_round(self, training_input: Array | None) -> Update:
        self.training.set()
        while self.wait and not current_round().cancelled:
            threading.Event().wait(0.005)
        return Update(1, np.ones(3))


class Deaf(Ones):
    """Trains until it is let go, whatever it is told."""

    def __init__(self, free: threading.Event) -> None:
        super().__init__()
        self.free = free

    def train_round(self, training_input: Array | None) -> Update:
        self.training.set()
        self.free.wait(30)
        return Update(1, np.ones(3))


# Within a program


def test_a_program_with_an_event_loop_runs_several_participants() -> None:
    async def main(url: str) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(arun_participant(Ones(), url))

    with our_platform(rounds=2, min_clients=3) as p:
        asyncio.run(main(p.url))
        assert p.status()["state"] == "complete"


def test_a_cancelled_participant_delivers_its_round_and_leaves() -> None:
    async def main(url: str) -> None:
        participant = Ones()
        participant.wait = True
        task = asyncio.create_task(arun_participant(participant, url))
        await asyncio.to_thread(participant.training.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with our_platform(rounds=2) as p:
        asyncio.run(main(p.url))
        assert p.status()["participants"] == []
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1]


def test_a_participant_that_is_cancelled_twice_ends_at_once() -> None:
    async def main(url: str) -> None:
        participant = Deaf(free)
        task = asyncio.create_task(arun_participant(participant, url))
        await asyncio.to_thread(participant.training.wait)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    free = threading.Event()
    with our_platform(rounds=2) as p:
        began = time.monotonic()
        asyncio.run(main(p.url))
        assert time.monotonic() - began < 5
        free.set()


def test_a_cancelled_participant_whose_code_does_not_return_is_left_behind() -> None:
    async def main(url: str) -> None:
        participant = Deaf(free)
        task = asyncio.create_task(arun_participant(participant, url, drain_timeout=0.1))
        await asyncio.to_thread(participant.training.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    free = threading.Event()
    with our_platform(rounds=2) as p:
        began = time.monotonic()
        asyncio.run(main(p.url))
        assert 1.1 < time.monotonic() - began < 10
        assert p.status()["participants"] == []
        free.set()


def test_a_failure_is_raised_where_the_participant_is_awaited() -> None:
    class Broken(Ones):
        def train_round(self, training_input: Array | None) -> Update:
            raise ZeroDivisionError

    with our_platform(rounds=1) as p, pytest.raises(TrainingError):
        asyncio.run(arun_participant(Broken(), p.url))


def test_the_library_leaves_signals_alone_unless_asked() -> None:
    seen: list[object] = []

    class Looking(Ones):
        def train_round(self, training_input: Array | None) -> Update:
            seen.append(signal.getsignal(signal.SIGTERM))
            return super().train_round(training_input)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for handle_signals in (False, True):
        with OldPlatform(heartbeat=After("upload", order(0), FINISH)) as p:
            run_participant(Looking(), p.url, 0.02, handle_signals=handle_signals)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert (seen[0] is before[0], seen[1] is before[0]) == (True, False)


def test_a_signal_is_noticed_on_another_thread() -> None:
    noticed = threading.Event()
    with signals(noticed.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert noticed.wait(10)


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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"name": "Silo 1"}, "name must be 1 to 63 of the characters a-z, 0-9, '.' and '-'"),
        ({"name": None}, "name must be 1 to 63"),
        ({"token": "a b"}, "the token must consist of visible ASCII characters"),
        ({"long_poll": -1.0}, "long_poll must be a number of seconds, 0 or more"),
        ({"long_poll": "5s"}, "long_poll must be a number of seconds"),
        ({"shard": (3, 0)}, r"shard must be \(index, count\), whole numbers from 0 and from 1, or None"),
        ({"shard": (-1, 3)}, "shard must be"),
        ({"shard": 3}, "shard must be"),
        ({"shards": 0}, "shards must be a whole number, 1 or more"),
        ({"shards": 2.5}, "shards must be a whole number"),
        ({"aggregator_url": "aggregator:8082"}, "aggregator_url must be as http://host:port or https://host, or None"),
        ({"max_model_size": 0}, "max_model_size must be a whole number, 1 or more"),
        ({"reconnect_max": 0.0}, "reconnect_max must be a number of seconds, more than 0"),
        ({"give_up_after": -1.0}, "give_up_after must be a number of seconds, 0 or more, or None"),
        ({"max_failures": 0}, "max_failures must be a whole number, 1 or more"),
        ({"confirm_timeout": float("nan")}, "confirm_timeout must be a number of seconds"),
        ({"drain_timeout": float("inf")}, "drain_timeout must be a number of seconds"),
        ({"observers": print}, "observers must be a list of functions"),
        ({"heartbeat_period": 0}, "heartbeat_period must be a number of seconds, more than 0"),
        ({"shards": 0, "max_failures": 0}, "shards must be a whole number, 1 or more, or None; max_failures must be"),
        ({"long_pol": 5, "drain_timout": 60}, "unknown option long_pol, drain_timout; the options are name, token, tls_ca_file, "),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_asked(options: Any, complaint: str) -> None:
    with OldPlatform() as p:
        with pytest.raises(ConfigurationError, match=f"^{complaint}"):
            run_participant(Ones(), p.url, **options)
        assert p.requests == []


def test_numbers_of_numpy_are_numbers() -> None:
    options: Any = {"shards": np.int64(2), "long_poll": np.float32(0), "give_up_after": np.inf}
    with OldPlatform(heartbeat=[FINISH]) as p:
        run_participant(Ones(), p.url, **options)


def test_the_service_and_the_library_have_the_same_words_and_defaults() -> None:
    settings = ParticipantSettings(coordinator_url="http://coordinator", class_="mine:Silo")
    same = set(Options.__annotations__) - {"observers"}
    assert same <= set(ParticipantSettings.model_fields)
    differ = {name for name in same | {"heartbeat_period"} if getattr(Terms(), name) != getattr(settings, name)}
    assert differ == {"max_failures"}, "a program wants to see the first one"


def test_what_is_no_participant_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="int is not a subclass"):
        run_participant(5, "http://localhost:1")  # type: ignore[arg-type]  # that is what is tested


# As a service


class Service:
    """`fedround participant` as a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log = ""

    def until(self, pattern: str) -> str:
        """Wait for a line; its first group."""
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


def test_a_service_trains_until_training_is_finished(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, NAME="silo-1") as s:
        assert s.end() == 0
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1, 1]
    assert "round 1 completed" in s.log
    assert "Traceback" not in s.log


def test_a_service_that_is_to_stay_says_that_training_is_complete_and_ends_on_sigterm(tmp_path: Path) -> None:
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


def test_a_service_is_not_ready_while_the_coordinator_is_away(tmp_path: Path) -> None:
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


def test_a_waiting_service_leaves_at_once_on_sigterm(tmp_path: Path) -> None:
    with our_platform(min_clients=2) as p, service(tmp_path, p.url) as s:
        s.until("registered as")
        began = time.monotonic()
        assert s.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 6
        assert p.status()["participants"] == []


def test_a_training_service_that_listens_delivers_before_it_ends(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("slow")) as s:
        s.training()
        assert s.end(signal.SIGTERM) == 0
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1]
        assert p.status()["participants"] == []


def test_a_training_service_that_does_not_listen_ends_all_the_same(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("deaf"), DRAIN_TIMEOUT="300ms") as s:
        s.training()
        began = time.monotonic()
        assert s.end(signal.SIGTERM) == 0
        assert 0.3 <= time.monotonic() - began < 6
        assert p.status()["participants"] == []
    assert "does not return" in s.log


def test_a_second_signal_ends_a_service_at_once(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("deaf"), DRAIN_TIMEOUT="60s") as s:
        s.training()
        s.process.send_signal(signal.SIGTERM)
        s.until("draining")
        assert s.end(signal.SIGTERM) == 0


def test_a_service_whose_class_takes_long_to_import_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRON, "STUCK", "1")
    with service(tmp_path, "http://127.0.0.1:1") as s:
        assert s.process.stdout is not None
        assert s.process.stdout.readline() == "importing\n"
        began = time.monotonic()
        assert s.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < 6
    assert "Traceback" not in s.log


def test_an_upload_under_way_is_finished_before_a_service_ends(tmp_path: Path) -> None:
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


def test_an_upload_that_takes_too_long_is_given_up_and_the_coordinator_knows_at_once(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, Gate(p.platform.aggregator_public.port) as gate:
        with service(tmp_path, p.url, AGGREGATOR_URL=gate.url, DRAIN_TIMEOUT="300ms") as s:
            assert gate.held.wait(20)
            began = time.monotonic()
            assert s.end(signal.SIGTERM) == 0
            assert 0.3 <= time.monotonic() - began < 6
            assert p.status()["participants"] == []
        assert p.status()["last_rounds"] == []
    assert "round 0 abandoned" in s.log


def test_a_coordinator_that_stays_away_exits_with_69_even_if_the_code_does_not_return(tmp_path: Path) -> None:
    options = {"OPTIONS": mood("deaf"), "GIVE_UP_AFTER": "300ms", "RECONNECT_MAX": "100ms", "HEARTBEAT_PERIOD": "100ms"}
    with ExitStack() as stack:
        with our_platform(rounds=2) as p:
            s = stack.enter_context(service(tmp_path, p.url, **options))
            s.training()
        assert s.end() == 69


def test_user_code_that_keeps_failing_exits_with_70_and_its_traceback(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, service(tmp_path, p.url, OPTIONS=mood("broken"), MAX_FAILURES="2") as s:
        assert s.end() == 70
    assert len(re.findall("^ *ZeroDivisionError: no data today", s.log, re.MULTILINE)) == 2
    assert "training.py" not in s.log


def test_the_ops_port_may_take_its_time_without_costing_the_exit_code(tmp_path: Path) -> None:
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
def test_threads_that_user_code_has_left_do_not_keep_a_service(word: str, code: int, tmp_path: Path) -> None:
    with our_platform(rounds=1) as p, service(tmp_path, p.url, OPTIONS=mood(word), MAX_FAILURES="1") as s:
        assert s.end() == code
    assert "threads of the training code (forgotten_0) do not end: exiting without them" in s.log


def test_a_coordinator_that_stays_away_exits_with_69(tmp_path: Path) -> None:
    with OldPlatform() as p:
        pass
    with service(tmp_path, p.url, GIVE_UP_AFTER="300ms", RECONNECT_MAX="100ms") as s:
        assert s.end() == 69


def test_a_class_that_is_not_there_exits_with_78(tmp_path: Path) -> None:
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


def test_a_pods_number_is_its_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRON, "POD_INDEX", "12")
    with our_platform(rounds=1) as p, service(tmp_path, p.url) as s:
        assert s.end() == 0
    assert "number 12 wraps to 2" in s.log
