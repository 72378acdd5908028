"""Training code that misbehaves: the participant stays registered, ready and observable, can stop, and loses at most one round."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from support.federation import Running, our_platform
from support.footprint import MB, footprint
from support.misbehaving import Misbehaving
from support.otlp import receiving
from support.processes import PATH, Process, children, running, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' /proc and signals")

HARMLESS = [
    "pool",
    "large_pool",
    "terminated_child",
    "spawned_child",
    "child_that_reports",
    "seed",
    "configure_logging",
]
OF_THE_WORKER = ["handle_signals", "change_the_process", "close_the_standard_streams"]
"""Misbehaviour that the same process cannot repair."""
FATAL = {
    "abort": "the training process crashed with SIGABRT",
    "crash": "the training process crashed with SIGSEGV",
    "be_killed": "the training process was killed by SIGKILL: out of memory?",
    "exit_at_once": "the training process ended with exit code 3",
    "sys_exit": "SystemExit: 3",
    "interrupt": "KeyboardInterrupt: ",
    "become_another_program": "the training process was killed: it had closed its connection",
    "close_everything": "the training process ended with exit code 74",
    "take_too_much_memory": "MemoryError: Unable to allocate",
}
REASONS = {
    "abort": "crashed",
    "crash": "crashed",
    "be_killed": "killed",
    "exit_at_once": "exited",
    "become_another_program": "lost",
    "close_everything": "exited",
}


@contextmanager
def misbehaving(
    p: Running,
    directory: Path,
    *how: str,
    exporter: str = "none",
    endpoint: str = "",
    through: Sequence[str] = (),
    **settings: str,
) -> Iterator[Process]:
    """Run a participant with code that misbehaves. `through`: see `Process`."""
    options = {"how": how, "directory": str(directory)}
    own = {
        "COORDINATOR_URL": p.url,
        "CLASS": f"support.misbehaving:{Misbehaving.__name__}",
        "OPTIONS": json.dumps(options),
        "NAME": "silo-1",
        "AFTER_FINISH": "wait",
        **settings,
    }
    environ = {"OTEL_TRACES_EXPORTER": exporter, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    with running(
        "participant", through=through, **environ, **{f"PARTICIPANT_{name}": value for name, value in own.items()}
    ) as process:
        yield process


def alive(pid: int) -> bool:
    """Return whether this process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def metric(process: Process, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", process.get("PARTICIPANT_OPS_PORT", "/metrics").decode(), re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def finished(process: Process) -> None:
    """Wait until training is complete."""
    until(lambda: process.status("PARTICIPANT_OPS_PORT")["state"] == "training complete", within=80)


def replaced(process: Process, times: int) -> bool:
    """Return whether the worker was replaced this many times, and the last one is ready."""
    worker = process.status("PARTICIPANT_OPS_PORT")["worker"]
    return (worker["state"], worker["restarts"]) == ("idle", times)


@pytest.mark.parametrize(("isolation", "ways"), [("process", [*HARMLESS, *OF_THE_WORKER]), ("thread", HARMLESS)])
def test_permitted_code_costs_no_round(isolation: str, ways: list[str], tmp_path: Path) -> None:
    rounds = len(ways)
    with our_platform(rounds=rounds) as p, misbehaving(p, tmp_path, *ways, ISOLATION=isolation) as process:
        finished(process)
        assert process.probe("/readyz")[0] == 200
        assert process.status("PARTICIPANT_OPS_PORT")["rounds"] == {"completed": rounds}
        assert process.end() == 0
    assert (tmp_path / "done").read_text().split() == ways
    assert "Traceback" not in process.log
    assert process.log.count("registered as") == 1
    assert f"round {rounds - 1} completed" in process.log, "it goes on logging"


@pytest.mark.timeout(120)
def test_code_that_fails_or_dies_loses_only_its_round(tmp_path: Path) -> None:
    rounds = len(FATAL)
    with our_platform(rounds=rounds) as p, misbehaving(p, tmp_path, *FATAL) as process:
        finished(process)
        assert process.status("PARTICIPANT_OPS_PORT")["rounds"] == {"failed": rounds, "completed": rounds}
        assert process.probe("/readyz")[0] == 200
        for reason, count in Counter(REASONS.values()).items():
            assert metric(process, f'fedround_participant_worker_restarts_total{{reason="{reason}"}}') == count
        assert metric(process, "fedround_participant_worker_up") == 1
        worker = process.status("PARTICIPANT_OPS_PORT")["worker"]
        assert (worker["state"], worker["restarts"]) == ("idle", len(REASONS))
        assert process.end() == 0
    for number, (how, reason) in enumerate(FATAL.items()):
        assert re.search(
            rf"round {number} failed after [^\n]*: train failed in round {number}: {re.escape(reason)}", process.log
        ), how


def test_a_broken_training_process_is_replaced_after_two_failures(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, misbehaving(p, tmp_path, "seed", "leak_descriptors") as process:
        finished(process)
        assert process.status("PARTICIPANT_OPS_PORT")["rounds"] == {"failed": 2, "completed": 2}
        assert replaced(process, 1)
        assert metric(process, 'fedround_participant_worker_restarts_total{reason="failing"}') == 1
        assert process.end() == 0
    assert process.log.count("Too many open files") >= 2
    assert "the training process was replaced after 2 consecutive failures; starting another one" in process.log


def test_without_isolation_code_that_exits_has_failed(tmp_path: Path) -> None:
    with our_platform(rounds=1) as p, misbehaving(p, tmp_path, "sys_exit", ISOLATION="thread") as process:
        finished(process)
        assert process.end() == 0
    assert "train failed in round 0: SystemExit: 3" in process.log


def test_code_that_holds_the_gil_delays_no_heartbeat(tmp_path: Path) -> None:
    with our_platform(rounds=1, heartbeat_timeout=2) as p, misbehaving(p, tmp_path, "hold_the_lock") as process:
        process.said("round 0: selected")
        while not p.status()["last_rounds"]:
            assert process.probe("/livez")[0] == process.probe("/readyz")[0] == 200
            assert len(p.status()["participants"]) == 1
        process.said("finished")
        assert p.status()["joined"] == 1
        assert process.end() == 0


def test_code_that_ignores_a_cancellation_is_killed_and_trains_the_next_round(tmp_path: Path) -> None:
    with our_platform(rounds=1, round_timeout=2) as p, misbehaving(p, tmp_path, "deaf", CANCEL_TIMEOUT="1s") as process:
        process.said("was killed: it did not return after its round was cancelled")
        finished(process)
        assert metric(process, 'fedround_participant_worker_restarts_total{reason="cancelled"}') == 1
        assert process.end() == 0
    assert process.log.count("registered as") == 1, "it was never away"
    assert 'misbehaving.py", line' in process.log, "the stack shows where it hangs"


def test_processes_started_by_code_end_with_the_participant(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, misbehaving(p, tmp_path, "children_that_stay", DRAIN_TIMEOUT="300ms") as process:
        until((tmp_path / "left").exists)
        pids = [int(pid) for pid in (tmp_path / "left").read_text().split()]
        assert all(map(alive, pids))
        began = time.monotonic()
        assert process.end() == 0
        assert time.monotonic() - began < 8
        assert not any(map(alive, pids))
        assert p.status()["participants"] == []
    assert "the training code does not return: exiting without it" in process.log


def test_a_participant_that_is_process_1_reaps_what_code_leaves_behind(tmp_path: Path) -> None:
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("unshare cannot make a namespace of processes")
    with our_platform(rounds=3) as p, misbehaving(p, tmp_path, *["orphan"] * 3, through=alone) as process:
        finished(process)
        (participant,) = children(process.pid)
        until(lambda: len(children(participant)) == 1)
        assert process.status("PARTICIPANT_OPS_PORT")["worker"] == {"state": "idle", "restarts": 0, "last_end": None}
        os.kill(participant, signal.SIGTERM)
        assert process.wait() == 0


def test_a_fork_of_the_worker_that_returns_from_training_ends(tmp_path: Path) -> None:
    with our_platform(rounds=1) as p, misbehaving(p, tmp_path, "fork_that_returns") as process:
        finished(process)
        until((tmp_path / "left").exists)
        until(lambda: not alive(int((tmp_path / "left").read_text())))
        assert process.end() == 0


def test_a_worker_ends_with_a_killed_participant(tmp_path: Path) -> None:
    with our_platform(rounds=2) as p, misbehaving(p, tmp_path, "hold_the_lock") as process:
        until((tmp_path / "done").exists)
        (worker,) = children(process.pid)
        process.send(signal.SIGKILL)
        process.wait()
        assert until(lambda: not alive(worker)) < 3


def test_a_signal_to_the_group_of_a_participant_does_not_reach_its_worker(tmp_path: Path) -> None:
    """Ctrl-C in a terminal sends the signal to the group."""
    with our_platform(min_clients=2) as p, misbehaving(p, tmp_path, "pool") as process:
        until(lambda: process.probe("/readyz")[0] == 200)
        (worker,) = children(process.pid)
        assert os.getpgid(worker) == os.getsid(worker) == worker != os.getpgid(process.pid)
        assert process.end() == 0


def test_an_idle_worker_that_dies_is_replaced_silently(tmp_path: Path) -> None:
    with our_platform(min_clients=2) as p, misbehaving(p, tmp_path, "pool") as process:
        until(lambda: process.probe("/readyz")[0] == 200)
        for count in (1, 2):
            (worker,) = children(process.pid)
            os.kill(worker, signal.SIGKILL)
            until(partial(replaced, process, count))
            assert process.probe("/readyz")[0] == 200
        (shown,) = p.status()["participants"]
        assert shown["name"] == "silo-1"
        assert process.end() == 0
    assert process.log.count("registered as") == 1


def test_seeded_code_gets_the_same_numbers_with_or_without_traces(tmp_path: Path) -> None:
    numbers: list[str] = []
    with receiving() as (url, receiver):
        for isolation in ("process", "thread"):
            for exporter in ("none", "otlp"):
                directory = tmp_path / f"{isolation}-{exporter}"
                directory.mkdir()
                traced = {"exporter": exporter, "endpoint": url}
                with our_platform(rounds=1) as p, misbehaving(p, directory, "seed", ISOLATION=isolation, **traced) as process:
                    finished(process)
                    assert process.end() == 0
                numbers.append((directory / "numbers").read_text())
        spans = receiver.wait_for(lambda spans: sum(span.name == "fedround.round" for span in spans) == 2)
    assert len(set(numbers)) == 1
    assert len({span.id for span in spans}) == len(spans)


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_spans_of_user_code_are_children_of_the_training_span(isolation: str, tmp_path: Path) -> None:
    with receiving() as (url, receiver), our_platform(rounds=1) as p:
        with misbehaving(p, tmp_path, "trace_itself", ISOLATION=isolation, exporter="otlp", endpoint=url) as process:
            finished(process)
            assert process.end() == 0
        spans = receiver.wait_for(lambda spans: {"epoch", "train", "fedround.round"} <= {span.name for span in spans})
    (epoch,), (train,), (round,) = ([span for span in spans if span.name == name] for name in ("epoch", "train", "fedround.round"))
    assert (epoch.parent, train.parent) == (train.id, round.id)
    assert (epoch.trace, epoch.service) == (round.trace, "fedround-participant")
    (line,) = (json.loads(line) for line in process.log.splitlines() if "in the middle of an epoch" in line)
    assert (line["trace_id"], line["span_id"]) == (epoch.trace, epoch.id)


def test_training_in_place_needs_memory_for_one_model_in_both_processes(tmp_path: Path) -> None:
    size, journal = 8_000_000, tmp_path / "used"
    settings = {
        "PARTICIPANT_CLASS": "support.footprint:Weighed",
        "PARTICIPANT_OPTIONS": json.dumps({"size": size, "journal": str(journal)}),
    }
    with our_platform(rounds=3, min_clients=2, round_timeout=100) as p:
        settings["PARTICIPANT_COORDINATOR_URL"] = p.url
        with running("participant", PARTICIPANT_AFTER_FINISH="wait", **settings) as process:
            until(lambda: process.probe("/readyz")[0] == 200)
            idle = footprint([process.pid, *children(process.pid)])
            settings["PARTICIPANT_OPTIONS"] = json.dumps({"size": size, "journal": os.devnull})
            with running("participant", **settings):
                finished(process)
            assert process.end() == 0
    models = [(float(used) - idle) / (8 * size / MB) for used in journal.read_text().split()]
    print(f"\nidle {idle:.0f} MB; models beside that: {models}")
    assert len(models) == 2
    assert max(models) <= 1.1 + 6 / (8 * size / MB), "6 MB: samples for the metrics, and modules that training imports"


def test_a_program_that_handles_signals_may_fork(tmp_path: Path) -> None:
    with our_platform(rounds=3) as p:
        ways = ["large_pool", "terminated_child", "pool"]
        program = f"""
import fedround
from support.misbehaving import Misbehaving
participant = Misbehaving(how={ways!r}, directory={str(tmp_path)!r})
fedround.run_participant(participant, {p.url!r}, handle_signals=True)
"""
        environ = os.environ | PATH
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False, timeout=50)
        assert done.returncode == 0, done.stderr
        assert [completed["counted"] for completed in p.status()["last_rounds"]] == [1, 1, 1]
    assert (tmp_path / "done").read_text().split() == ways
