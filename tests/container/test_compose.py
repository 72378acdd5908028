"""`docker compose up` for users: replicas, kills, restarts, and monitoring."""

import io
import json
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedround.project import create
from support.docker import ROOT, build, built, docker, inspect, watchers
from support.processes import until
from support.tools import tool

SHORT = {"ROUNDS": "0", "EPOCH_SECONDS": "0.02", "SHARDS": "10"}


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


@dataclass(frozen=True)
class Compose:
    """The project's compose file with its own project name. `command` is one of the two versions of Compose."""

    command: tuple[str, ...] = ("docker", "compose")
    settings: Mapping[str, str] = field(default_factory=lambda: SHORT)
    files: tuple[str, ...] = ("docker-compose.yml",)

    def __call__(self, *arguments: str) -> str:
        program, *before = self.command
        files = [argument for file in self.files for argument in ("--file", file)]
        options = ["--project-name", "fedround-test", *files, "--profile", "observability"]
        return docker(*before, *options, *arguments, program=program, env=self.settings)

    def up(self, *arguments: str) -> None:
        self("up", "--detach", "--no-build", *arguments, "coordinator", "aggregator", "participant")

    def containers(self, service: str) -> list[str]:
        return self("ps", "--quiet", service).split()

    def health(self, service: str) -> set[str]:
        return {inspect(id)["State"]["Health"]["Status"] for id in self.containers(service)}

    @property
    def status(self) -> Any:
        try:
            return asked("http://localhost:9081/status")
        except OSError:
            return {"round": -1, "participants": [], "state": "no answer", "last_rounds": []}

    def rounds(self, more: int) -> None:
        """Wait until this many more rounds are completed."""
        began = self.status["round"]
        until(lambda: self.status["round"] >= began + more, 60)


@contextmanager
def project(compose: Compose, count: int) -> Iterator[Compose]:
    """Run this many participants within the block. Projects have the same ports, so only one runs at a time."""
    built()
    compose("down", "--volumes", "--timeout", "2")
    try:
        compose.up("--scale", f"participant={count}")
        yield compose
    finally:
        compose("down", "--volumes", "--timeout", "2")


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    tool("docker")
    with project(Compose(), 10) as ten:
        yield ten


def shards(compose: Compose, count: int) -> None:
    """Wait for this many healthy participants with different shards, in three rounds."""
    until(lambda: len(compose.status["participants"]) == count, 90)
    compose.rounds(3)
    found = {shown["shard"] for shown in compose.status["participants"]}
    assert len(found) == count
    assert found <= {f"{index}/10" for index in range(10)}
    assert compose.status["last_rounds"][-1]["counted"] == count
    until(lambda: compose.health("participant") == {"healthy"}, 60)


@pytest.mark.timeout(300)
def test_ten_participants_train_with_ten_shards_and_can_become_three_and_ten_again(compose: Compose) -> None:
    shards(compose, 10)
    for count in (3, 10):
        compose.up("--scale", f"participant={count}", "--no-recreate")
        shards(compose, count)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("service", ["coordinator", "aggregator"])
def test_a_service_that_is_killed_under_load_continues_where_it_was(compose: Compose, service: str) -> None:
    until(lambda: len(compose.status["participants"]) == 10, 60)
    compose.rounds(1)
    known = {shown["name"]: shown["id"] for shown in compose.status["participants"]}
    before = compose.status["round"]
    compose("kill", "--signal", "KILL", service)
    compose("start", service)
    until(lambda: compose.status["round"] > before, 60)
    compose.rounds(3)
    assert {shown["name"]: shown["id"] for shown in compose.status["participants"]} == known
    until(lambda: compose.health("participant") == {"healthy"}, 60)


@pytest.mark.timeout(300)
def test_participants_are_unhealthy_only_without_a_coordinator(compose: Compose) -> None:
    until(lambda: compose.health("participant") == {"healthy"}, 60)
    compose("stop", "coordinator")
    until(lambda: compose.health("participant") == {"unhealthy"}, 90)
    compose("start", "coordinator")
    until(lambda: compose.health("participant") == {"healthy"}, 90)
    compose.rounds(1)


@pytest.mark.timeout(300)
def test_prometheus_finds_every_replica_and_a_rounds_trace_arrives(compose: Compose, tmp_path: Path) -> None:
    """Our images replace those that Compose would pull. Their configuration is the shipped one."""
    images = watchers(tmp_path)
    observed = Compose(settings={**SHORT, **images})
    observed("up", "--detach", "--no-build", "--no-recreate", "prometheus", "alertmanager", "traces")

    def scraped(job: str) -> int:
        query = urllib.parse.quote(f'up{{job="{job}"}} == 1')
        try:
            return len(asked(f"http://localhost:9090/api/v1/query?query={query}")["data"]["result"])
        except OSError:
            return 0

    for job, count in {"participant": 10, "coordinator": 1, "aggregator": 1}.items():
        until(lambda job=job, count=count: scraped(job) == count, 60)  # type: ignore[misc]
    rules = asked("http://localhost:9090/api/v1/rules")["data"]["groups"]
    assert all(rule["health"] == "ok" for group in rules for rule in group["rules"])
    until(lambda: asked("http://localhost:9090/api/v1/alertmanagers")["data"]["activeAlertmanagers"], 60)

    def arrived() -> set[str]:
        """Return the services with spans in the trace of one round."""
        query = "service=fedround-coordinator&operation=fedround.round"
        traces = asked(f"http://localhost:16686/api/traces?{query}")["data"]
        services = [{process["serviceName"] for process in trace["processes"].values()} for trace in traces]
        return max(services, key=len, default=set())

    until(lambda: arrived() == {"fedround-participant", "fedround-coordinator", "fedround-aggregator"}, 60)


@pytest.mark.timeout(300)
def test_with_the_tls_override_all_connections_use_tls_and_client_certificates(tmp_path: Path) -> None:
    files = ("docker-compose.yml", "docker-compose.tls.yml")
    with project(Compose(files=files), 3) as compose:
        authority = docker(
            "run", "--rm", "--volume", "fedround-test_platform-certificates:/c", "--entrypoint", "cat", built(), "/c/ca.pem"
        )
        (tmp_path / "ca.pem").write_text(authority)
        trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")

        def status() -> Any:
            try:
                with urllib.request.urlopen("https://localhost:9081/status", timeout=10, context=trusting) as answer:
                    return json.load(answer)
            except OSError:
                return {"round": -1, "participants": []}

        until(lambda: status()["round"] >= 3 and len(status()["participants"]) == 3, 90)
        assert {shown["name"] for shown in status()["participants"]} == {"silo"}
        until(lambda: compose.health("participant") == {"healthy"}, 60)
        assert compose.health("coordinator") == compose.health("aggregator") == {"healthy"}
        with (
            pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"),
            urllib.request.urlopen("https://localhost:8081/rendez_vous", timeout=10, context=trusting) as answer,
        ):
            answer.read()


def test_a_custom_participant_needs_five_lines() -> None:
    """`test_pages.py` trains with it."""
    assert len((ROOT / "examples" / "own_participant" / "Dockerfile").read_text().splitlines()) == 5


@pytest.mark.timeout(300)
def test_a_project_of_fedround_new_trains(tmp_path: Path) -> None:
    create(tmp_path / "silo", "numpy")
    built()
    build(tmp_path / "silo", "silo:0.1")
    compose = Compose(settings={}, files=(str(tmp_path / "silo" / "docker-compose.yml"),))
    compose("down", "--volumes", "--remove-orphans", "--timeout", "2")
    try:
        compose("up", "--detach", "--no-build", "--scale", "participant=3")
        until(lambda: compose.status["state"] == "complete", 90)
        until(lambda: compose.health("participant") == compose.health("platform") == {"healthy"}, 60)
        with urllib.request.urlopen("http://localhost:9082/model", timeout=10) as answer:
            model = np.load(io.BytesIO(answer.read()))
    finally:
        compose("down", "--volumes", "--timeout", "2")
    assert np.allclose(model, [2, -1, 0.5, 3], atol=0.1)


@pytest.mark.timeout(300)
def test_compose_1_29_runs_it_too() -> None:
    tool("docker-compose")
    with project(Compose(("docker-compose",)), 10) as old:
        shards(old, 10)
