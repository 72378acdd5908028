"""Processes as operators see them: their probes, their shutdown, and what they never log."""

import http.client
import json
import logging
import os
import re
import resource
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedround import run_participant
from fedround.common.books import Admission, admissions_to_json
from support import silos
from support.federation import our_platform
from support.processes import ANY_PORT, LOOPBACK, PORTS, Process, fedround, joining, running, two_services, until

SECRET = "correct-horse-battery-staple"
UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def silo(coordinator: Process, kind: type = silos.Plus1, **settings: str) -> dict[str, str]:
    """The settings of a participant with a class of the tests."""
    return joining(coordinator, f"silos:{kind.__name__}") | {f"PARTICIPANT_{name}": value for name, value in settings.items()}


# Probes


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, Process]]:
    """All three services, waiting."""
    with (
        two_services(COORDINATOR_MIN_CLIENTS="2") as (coordinator, aggregator),
        running("participant", **silo(coordinator)) as participant,
    ):
        until(lambda: participant.probe("/readyz")[0] == 200)
        yield {"coordinator": coordinator, "aggregator": aggregator, "participant": participant}


@pytest.mark.parametrize("service", ["participant", "coordinator", "aggregator"])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/status", "/metrics", "/livez/"])
def test_a_probe_may_use_head_and_keep_alive_and_is_never_redirected(services: dict[str, Process], service: str, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(services[service].ports[f"{service.upper()}_OPS_PORT"]), timeout=10)
    connection.connect()
    used = connection.sock
    for method in ("GET", "HEAD", "HEAD", "GET"):
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        assert (answer.status, answer.getheader("location")) == (200, None)
        assert bool(body) is (method == "GET")
        assert answer.getheader("content-length") not in (None, "0")
    assert connection.sock is used
    connection.close()


@pytest.mark.parametrize("command", ["aggregator", "platform"])
def test_an_aggregator_without_its_spool_directory_is_not_ready(command: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    with running(command, AGGREGATOR_SPOOL_DIR=str(spool)) as process:

        def ready() -> tuple[bool, list[str]]:
            answer = process.probe("/readyz", "AGGREGATOR_OPS_PORT")[1]
            return answer["ready"], answer["reasons"]

        assert ready() == (True, [])
        spool.rename(tmp_path / "elsewhere")
        process.said("the spool directory cannot be written: ")
        assert ready() == (False, ["the spool directory cannot be written: No such file or directory"])
        (tmp_path / "elsewhere").rename(spool)
        process.said("the spool directory can be written again")
        assert ready() == (True, [])


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux only")
def test_an_aggregator_with_a_full_disk_is_not_ready(tmp_path: Path) -> None:
    with running("aggregator", AGGREGATOR_SPOOL_DIR=str(tmp_path)) as aggregator:
        limit = resource.prlimit(aggregator.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(aggregator.pid, resource.RLIMIT_FSIZE, (0, limit[1]))
        aggregator.said("the spool directory cannot be written: ")
        assert aggregator.probe("/readyz") == (
            503,
            {"ready": False, "reasons": ["the spool directory cannot be written: File too large"]},
        )
        resource.prlimit(aggregator.pid, resource.RLIMIT_FSIZE, limit)
        aggregator.said("the spool directory can be written again")
        assert aggregator.probe("/readyz")[0] == 200


@pytest.mark.parametrize(("command", "port"), [(command, port) for command, ports in PORTS.items() for port in ports])
def test_a_port_in_use_exits_with_78_and_names_the_setting(command: str, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        needed = {"PARTICIPANT_COORDINATOR_URL": "http://127.0.0.1:1", "PARTICIPANT_CLASS": "support.silos:Plus1"}
        done = fedround(command, **LOOPBACK | ANY_PORT | needed | {port: number})
    assert done.returncode == 78
    assert f"{port}={number}: cannot listen on 127.0.0.1: " in done.stderr
    assert "choose another port" in done.stderr
    assert "Traceback" not in done.stderr


# Stopping


def test_a_stopping_service_is_not_ready_while_it_still_serves(tmp_path: Path) -> None:
    """A probe shows that the participant is draining."""
    os.mkfifo(gate := tmp_path / "gate")
    with two_services() as (coordinator, _):
        options = json.dumps({"gate": str(gate)})
        with running("participant", **silo(coordinator, OPTIONS=options, DRAIN_TIMEOUT="20s")) as participant:
            with gate.open("w"):  # it is in training
                participant.send(signal.SIGTERM)
                participant.said("draining")
                status, answer = participant.probe("/readyz")
                assert (status, answer["reasons"][-1]) == (503, "the process is stopping")
                assert participant.probe("/livez")[0] == 200
                assert participant.probe("/status")[1]["draining"] is True
            assert participant.wait() == 0
            assert coordinator.status("COORDINATOR_OPS_PORT")["participants"] == []
            coordinator.said("round 0 completed")


def test_a_stopping_aggregator_is_not_ready_during_an_upload() -> None:
    id, token = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa", "11111111-1111-4111-8111-111111111111"
    with running("aggregator", FEDROUND_INTERNAL_SECRET=SECRET) as aggregator:
        url = aggregator.url("AGGREGATOR_INTERNAL_PORT") + "/books/open"
        opened = {"attempt": "one", "round": 0, "admissions": admissions_to_json([Admission(id, token)]), "forget": []}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"}
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(opened).encode(), headers)).close()
        with socket.create_connection(("127.0.0.1", int(aggregator.ports["AGGREGATOR_PORT"]))) as upload:
            upload.sendall(f"POST /{id}/{token} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode())
            assert upload.recv(100).startswith(b"HTTP/1.1 100 ")
            aggregator.send(signal.SIGTERM)
            aggregator.said("^stopping")
            assert aggregator.probe("/readyz") == (503, {"ready": False, "reasons": ["the process is stopping"]})
            assert aggregator.probe("/livez")[0] == 200
            upload.sendall(b"hello")
            assert upload.recv(100).startswith(b"HTTP/1.1 415 ")
        assert aggregator.wait() == 0


@pytest.mark.parametrize("which", [0, 1])
def test_services_with_open_long_polls_stop_immediately(which: int) -> None:
    with (
        two_services(COORDINATOR_MIN_CLIENTS="2") as services,
        running("participant", **silo(services[0])) as participant,
    ):
        until(lambda: participant.probe("/readyz")[0] == 200)
        began = time.monotonic()
        assert services[which].end() == 0
        assert time.monotonic() - began < 8
        assert "Traceback" not in services[which].log
        assert participant.end() == 0


# User code


def test_busy_training_code_delays_no_heartbeat() -> None:
    plan = {"COORDINATOR_ROUNDS": "1", "COORDINATOR_HEARTBEAT_TIMEOUT": "2s"}
    with running("platform", **plan) as platform:
        own = silo(platform, silos.Hog, OPTIONS='{"seconds": 6}', NAME="hog", AFTER_FINISH="wait")
        with running("participant", **own) as participant:
            participant.said("round 0: selected")
            slowest = 0.0
            while not (status := platform.status("COORDINATOR_OPS_PORT"))["last_rounds"]:
                slowest = max(slowest, *(shown["seconds_since_contact"] for shown in status["participants"]))
                assert participant.probe("/livez")[0] == 200
                ready, state = participant.probe("/readyz")[0], participant.probe("/status")[1]["state"]
                assert ready == 200 or state != "training"
                time.sleep(0.05)  # a faster client would get 429 from the ops port
            print(f"\nthe longest time without a heartbeat: {slowest:.2f} s")
            participant.said("^finished")
        # A client with this rate may get a status that is a quarter of a second old.
        until(lambda: [round["counted"] for round in platform.status("COORDINATOR_OPS_PORT")["last_rounds"]] == [1])
        assert platform.end() == 0
        assert "timed out" not in platform.log


# What is logged


def test_a_program_that_logs_everything_logs_no_id_or_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with our_platform(rounds=3, token=SECRET) as p:
        run_participant(silos.Plus1(), p.url, token=SECRET)
    assert {"fedround", "httpx", "httpcore.http11"} <= {record.name for record in caplog.records}
    assert not UUID.search(caplog.text)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_log_has_an_id_or_a_secret(log_format: str) -> None:
    roles = ("PARTICIPANT", "COORDINATOR", "AGGREGATOR")
    loud = {f"{role}_LOG_LEVEL": "debug" for role in roles} | {f"{role}_LOG_FORMAT": log_format for role in roles}
    secrets = {f"{role}_TOKEN": SECRET for role in roles} | {"FEDROUND_INTERNAL_SECRET": f"internal-{SECRET}"}
    logs = []
    with two_services(COORDINATOR_ROUNDS="3", **loud, **secrets) as (coordinator, aggregator):
        with running("participant", **silo(coordinator), **loud, **secrets) as participant:
            participant.said("stopped|finished")
            assert participant.wait() == 0
            logs.append(participant.log)
        for process in (coordinator, aggregator):
            assert process.end() == 0
            logs.append(process.log)
    for log in logs:
        assert re.search("debug", log, re.IGNORECASE)
        assert not UUID.search(re.sub('"run_id": "[^"]*"', "", log)), "that of a run is no secret"
        assert SECRET not in log
