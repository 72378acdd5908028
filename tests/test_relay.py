"""Silos that Prometheus cannot scrape: their telemetry reaches a real receiver through the coordinator, with real processes."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.otlp import Receiver, receiving
from support.processes import Process, running, until

PUSH = {
    "PARTICIPANT_CLASS": "fedround.demo:HousePrices",
    "PARTICIPANT_PUSH": "coordinator",
    "OTEL_METRIC_EXPORT_INTERVAL": "500",
    "OTEL_BSP_SCHEDULE_DELAY": "500",
}


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "tokens"
    file.write_text("anna token-of-anna\nberta token-of-berta\n")
    return {"COORDINATOR_TOKENS_FILE": str(file), "AGGREGATOR_TOKENS_FILE": str(file)}


def silo(platform: Process, name: str, **settings: str) -> dict[str, str]:
    where = {"PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"), "PARTICIPANT_TOKEN": f"token-of-{name}"}
    return PUSH | where | settings


def whose(receiver: Receiver) -> set[object]:
    return {each.resource["service.instance.id"] for each in receiver.series}


def test_metrics_and_spans_of_a_silo_arrive_under_its_proved_name(tokens: dict[str, str]) -> None:
    collector = {"COORDINATOR_OTLP_HEADERS": "Authorization=Bearer%20of%20the%20collector"}
    claims = {"PARTICIPANT_NAME": "berta", "OTEL_RESOURCE_ATTRIBUTES": "service.name=fedround-coordinator,host.name=secret"}
    with (
        receiving() as (url, receiver),
        running("platform", COORDINATOR_ROUNDS="2", COORDINATOR_OTLP_ENDPOINT=url, **tokens, **collector) as platform,
    ):
        with running("participant", **silo(platform, "anna", **claims)) as anna:
            assert anna.wait() == 0
        names = {"fedround.round", "train", "upload", "fedround.register"}
        spans = receiver.wait_for(lambda spans: names <= {span.name for span in spans})
        until(lambda: newest(receiver, "fedround_participant_rounds_total", outcome="completed") == 2)
        relayed = platform.get("COORDINATOR_OPS_PORT", "/metrics").decode()
        assert platform.end() == 0
    assert whose(receiver) == {"anna"} == {span.resource["fedround.participant"] for span in spans}
    assert {each.resource["service.name"] for each in receiver.series} == {"fedround-participant"}
    assert b"secret" not in receiver.raw
    assert b"berta" not in receiver.raw
    local = [each.name for each in receiver.series if each.labels.get("source") == "local"]
    assert not local, "statistics of the local model stay in the silo"
    assert {headers["authorization"] for _, headers in receiver.requests} == {"Bearer of the collector"}
    assert 'relay_messages_total{outcome="accepted",signal="metrics"} 0.0' not in relayed
    assert 'relay_forwarded_total{outcome="dropped",signal="metrics"} 0.0' in relayed


def newest(receiver: Receiver, name: str, **labels: str) -> float:
    """Return the last value of a series; -1 if there is none."""
    found = [each for each in receiver.series.copy() if each.name == name and labels.items() <= each.labels.items()]
    return float(found[-1].point.as_double) if found else -1


def test_a_silo_chooses_the_metrics_that_it_pushes(tokens: dict[str, str]) -> None:
    allow = 'fedround_participant_state,fedround_participant_weight_*{source="local"}'
    with (
        receiving() as (url, receiver),
        running("platform", COORDINATOR_OTLP_ENDPOINT=url, **tokens) as platform,
        running("participant", **silo(platform, "anna", PARTICIPANT_PUSH_ALLOW=allow)),
    ):
        receiver.wait_for_series("fedround_participant_weight_mean", source="local")
    assert not receiver.spans
    assert {each.name for each in receiver.series if each.labels.get("source") != "local"} == {"fedround_participant_state"}


@pytest.mark.parametrize("collector", ["hangs", "is away"])
def test_a_hanging_or_unreachable_collector_delays_no_training(collector: str, tokens: dict[str, str]) -> None:
    answers = threading.Event()
    with receiving(answers=answers) as (url, _):
        url = url if collector == "hangs" else "http://127.0.0.1:9"
        with running("platform", COORDINATOR_ROUNDS="5", COORDINATOR_OTLP_ENDPOINT=url, **tokens) as platform:
            with running("participant", **silo(platform, "anna")) as anna:
                assert anna.wait() == 0
            status = platform.status("COORDINATOR_OPS_PORT")
            assert (status["state"], status["missing"]) == ("complete", [])
            began = time.monotonic()
            assert platform.end() == 0
            assert time.monotonic() - began < 6
            if collector == "is away":
                assert [platform.log.count(f"cannot forward {signal} to") for signal in ("metrics", "traces")] == [1, 1]
        answers.set()


def test_without_a_relay_a_participant_logs_one_line_per_signal(tokens: dict[str, str]) -> None:
    with (
        running("platform", COORDINATOR_ROUNDS="3", **tokens) as platform,
        running("participant", **silo(platform, "anna")) as anna,
    ):
        assert anna.wait() == 0
    assert 1 <= anna.log.count("COORDINATOR_OTLP_ENDPOINT is not set") <= 2
    assert "Traceback" not in anna.log


def test_telemetry_uses_the_proxy_of_the_participant(tokens: dict[str, str]) -> None:
    """The participant uses only its connection to the coordinator: it resolves no other name, and bypasses no proxy."""
    with receiving() as (url, receiver), running("platform", COORDINATOR_OTLP_ENDPOINT=url, **tokens) as platform:
        dead = {"HTTP_PROXY": "http://127.0.0.1:9", "PARTICIPANT_COORDINATOR_URL": "http://coordinator.invalid:80"}
        with running("participant", **silo(platform, "anna") | dead) as anna:
            anna.said("cannot push to the coordinator; retrying: POST coordinator.invalid:80")
        assert not receiver.requests


# One way out


@contextmanager
def namespace(number: int, ports: list[str]) -> Iterator[tuple[str, list[str]]]:
    """A network namespace from which nothing can be reached but these TCP ports of this machine.

    Yields the machine's address there, and the command that runs another command inside. The namespace has no name:
    `ip netns add` mounts `/run/netns` over itself, after which a container runtime cannot remove the namespaces it made there.
    """
    subnet, link = f"10.213.{number}", f"fr{os.getpid() % 10000}-{number}"
    rules = f"""
        table inet fedround {{
            chain out {{
                type filter hook output priority 0; policy drop;
                oifname "lo" accept
                ip daddr {subnet}.1 tcp dport {{ {", ".join(ports)} }} accept
            }}
        }}
    """
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up && exec sleep infinity"], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"up\n"
            inside = f"nsenter --target {holder.pid} --net"
            commands = [
                f"ip link add {link} type veth peer name eth0 netns {holder.pid}",
                f"ip addr add {subnet}.1/24 dev {link}",
                f"ip link set {link} up",
                f"{inside} ip addr add {subnet}.2/24 dev eth0",
                f"{inside} ip link set eth0 up",
                f"{inside} ip link set lo up",
            ]
            for command in commands:
                subprocess.run(command.split(), check=True, capture_output=True)
            subprocess.run([*inside.split(), "nft", "-f", "-"], input=rules, text=True, check=True, capture_output=True)
            yield f"{subnet}.1", inside.split()
        finally:
            subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
            holder.kill()


def allowed() -> bool:
    """Whether this user may make network namespaces."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nft", "nsenter"))):
        return False
    probe = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True)
    return probe.returncode == 0


def test_operators_see_silos_that_can_reach_only_the_platform(tokens: dict[str, str]) -> None:
    if not allowed():
        pytest.skip("only root can make network namespaces, with ip, nft and nsenter")
    names = ("anna", "berta")
    free = dict.fromkeys(("COORDINATOR_BIND", "AGGREGATOR_BIND"), "0.0.0.0")  # noqa: S104 the links of the namespaces
    with receiving() as (url, receiver), ExitStack() as stack:
        settings = {"COORDINATOR_ROUNDS": "3", "COORDINATOR_MIN_CLIENTS": "2", "COORDINATOR_OTLP_ENDPOINT": url, **tokens, **free}
        platform = stack.enter_context(running("platform", **settings))
        ports = [platform.ports["COORDINATOR_PORT"], platform.ports["AGGREGATOR_PORT"]]
        silos = []
        for number, name in enumerate(names, 1):
            address, inside = stack.enter_context(namespace(number, ports))
            collector = f"import socket; socket.create_connection(('{address}', {url.rpartition(':')[2]}), 2)"
            assert subprocess.run([*inside, sys.executable, "-c", collector], check=False, capture_output=True).returncode != 0
            where = {"PARTICIPANT_COORDINATOR_URL": f"http://{address}:{ports[0]}", "PARTICIPANT_NAME": name}
            where |= {"PARTICIPANT_AGGREGATOR_URL": f"http://{address}:{ports[1]}", "PARTICIPANT_TOKEN": f"token-of-{name}"}
            silos.append(stack.enter_context(running("participant", through=inside, **PUSH, **where)))
        assert [each.wait() for each in silos] == [0, 0]
        until(lambda: whose(receiver) >= set(names))
        receiver.wait_for(lambda spans: {span.resource["service.instance.id"] for span in spans} >= set(names))
        log = [json.loads(line)["message"] for each in silos for line in each.log.splitlines() if line.startswith("{")]
        assert not [line for line in log if "cannot push" in line]
