"""A real federation in which faults are made, a real Prometheus that scrapes it, and a real Alertmanager that tells of them.

One run for all: what is asked at its end is what an operator would ask. Alerts come 60 times as fast (`support.prometheus`).
"""

import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from support.dashboards import ALERTS, asked, queries, runbook_queries
from support.link import SlowLink
from support.processes import Process, until
from support.prometheus import OPS_TOKEN, Prometheus, faster, free_port, prometheus

SHOWN_WITHIN = 30.0
"""Seconds from a fault until the dashboards' queries show it."""
TESTS = Path(__file__).parent.parent
EXPECTED = {
    "ParticipantDown",
    "ParticipantNotReady",
    "CoordinatorUnreachable",
    "CoordinatorUnreachable scrape",
    "RoundStuck",
    "RoundStuck disk",
    "RoundStuck attempts",
    "ParticipantFailing",
    "RoundFailuresHigh coordinator",
    "RoundFailuresHigh participant",
    "RequestLatencyHigh",
    "NonFiniteWeights local",
    "ModelUnusable",
    "DominantUpdate",
    "UpdateNormExploding",
    "NeverSelected",
    "AggregatorRefusingUpdates invalid",
    "AggregatorRefusingUpdates unavailable",
    "AggregatorRefusingUpdates gone",
}
WEIGHTS = 150_000
"""More than an aggregator receives in memory: its spool is used."""
# Nothing listens there: rounds are sampled all the same, and exemplars have their ids.
TRACED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "PARTICIPANT_TRACE_HEARTBEATS": "false"}


@dataclass
class Federation:
    """What runs. `took` is how long each fault needed to show, in seconds."""

    directory: Path
    stack: ExitStack
    began: float = field(default_factory=time.time)
    took: dict[str, float] = field(default_factory=dict)
    coordinator: Process = field(init=False)
    aggregator: Process = field(init=False)

    def start(self, command: str, **settings: str) -> Process:
        process = Process(command, **TRACED, **settings)
        self.stack.callback(process.kill)
        return process

    def participant(self, name: str, url: str, size: int = WEIGHTS, /, **settings: str) -> Process:
        mood = self.directory / name
        mood.touch()
        options = f'{{"size": {size}, "mood": "{mood}"}}'
        return self.start(
            "participant",
            PARTICIPANT_COORDINATOR_URL=url,
            PARTICIPANT_CLASS="support.moody:Moody",
            PARTICIPANT_OPTIONS=options,
            PARTICIPANT_NAME=name,
            PARTICIPANT_OPS_TOKEN=OPS_TOKEN,
            PYTHONPATH=str(TESTS),
            **settings,
        )

    def mood(self, name: str, mood: str) -> None:
        (self.directory / name).write_text(mood)

    def start_aggregator(self, **ports: str) -> None:
        self.aggregator = self.start("aggregator", AGGREGATOR_DATA_DIR=str(self.directory / "models"), **ports)

    def start_coordinator(self, **ports: str) -> None:
        self.coordinator = self.start(
            "coordinator",
            COORDINATOR_ROUNDS="0",
            COORDINATOR_MIN_CLIENTS="2",
            COORDINATOR_HEARTBEAT_TIMEOUT="3s",
            COORDINATOR_ROUND_TIMEOUT="4s",
            COORDINATOR_AGGREGATOR_URL=self.aggregator.url("AGGREGATOR_PORT"),
            COORDINATOR_AGGREGATOR_INTERNAL_URL=self.aggregator.url("AGGREGATOR_INTERNAL_PORT"),
            COORDINATOR_DATA_DIR=str(self.directory / "coordinator"),
            **ports,
        )

    @property
    def outstanding(self) -> int:
        """How many updates the coordinator waits for."""
        number: int = self.coordinator.status("COORDINATOR_OPS_PORT")["outstanding"]
        return number

    def shown(self, fault: str, condition: Callable[[], bool]) -> None:
        """Wait until the dashboards show it."""
        self.took[fault] = until(condition, 90)


def full(process: Process, size: int) -> None:
    """To the process it is as if the disk had no room for more than a file of `size` bytes."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@dataclass(frozen=True)
class Seen:
    """After all faults: who can be asked, and since when. `instances` are of participants."""

    prometheus: Prometheus
    federation: Federation
    instances: list[str]

    def history(self, query: str) -> int:
        """How many series an operator would have seen at some time, on the dashboard of any participant."""
        instances = self.instances if "$instance" in query else [""]
        return sum(
            self.prometheus.history(
                asked(query, instance=instance, interval="5s", window="30s"), self.federation.began, time.time()
            )
            for instance in instances
        )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with ExitStack() as stack:
        f = Federation(tmp_path_factory.mktemp("federation"), stack)
        yield faults(f)


def address(process: Process) -> str:
    return f"127.0.0.1:{next(port for name, port in process.ports.items() if name.endswith('OPS_PORT'))}"


def both(platform: Process) -> list[str]:
    return [f"127.0.0.1:{platform.ports[f'{role}_OPS_PORT']}" for role in ("COORDINATOR", "AGGREGATOR")]


def faults(f: Federation) -> Seen:
    """Make one fault after another, each until its alert fires, and mend it."""
    f.start_aggregator()
    f.start_coordinator()
    url = f.coordinator.url("COORDINATOR_PORT")
    one, two, three = (f.participant(name, url) for name in ("one", "two", "three"))

    # Registered where too few ever come and the model is of no use, and started with the address of nobody: both from the start.
    unusable = f.directory / "unusable.npy"
    np.save(unusable, np.array([1e20]))
    wrong = f.start("platform", COORDINATOR_MIN_CLIENTS="5", AGGREGATOR_INITIAL_MODEL=str(unusable))
    astray = f.participant("astray", wrong.url("COORDINATOR_PORT"))
    lost = f.participant("lost", f"http://127.0.0.1:{free_port()}")

    slow = f.start("platform", COORDINATOR_ROUNDS="0")
    link = f.stack.enter_context(SlowLink(int(slow.ports["AGGREGATOR_PORT"]), 12))
    far = f.participant("far", slow.url("COORDINATOR_PORT"), 5, PARTICIPANT_AGGREGATOR_URL=link.url)

    everybody = [one, two, three, astray, lost, far]
    targets = {
        "coordinator": [address(f.coordinator)],
        "aggregator": [address(f.aggregator)],
        "wrong-platform": both(wrong),
        "far-platform": both(slow),
        "participant": [address(p) for p in everybody],
    }
    p = f.stack.enter_context(prometheus(f.directory, targets))

    def fires(*names: str) -> None:
        until(lambda: set(names) <= p.told.names("firing"), 120)

    fires("ParticipantNotReady", "ModelUnusable")
    lost.kill()
    f.participant("lost", url, **lost.ports)

    until(lambda: p.value("max(fedround_coordinator_round)") > 20, 90)
    f.mood("three", "large")
    fires("UpdateNormExploding")
    f.mood("three", "heavy")
    fires("DominantUpdate")

    f.mood("three", "nan")
    f.shown("NaN", lambda: p.value("sum(increase(fedround_participant_nonfinite_weights_total[5s]))") > 0)
    for name in ("one", "lost"):  # as many as make rounds fail: only one is left of two that are needed
        f.mood(name, "nan")
    fires("NonFiniteWeights local", "AggregatorRefusingUpdates invalid")
    fires("RoundFailuresHigh participant", "RoundFailuresHigh coordinator", "RoundStuck", "RoundStuck attempts")
    fires("ParticipantFailing")
    for name in ("one", "three", "lost"):
        f.mood(name, "")

    two.send(signal.SIGSTOP)
    f.shown("paused", lambda: p.value("sum(fedround_coordinator_participants_missing)") > 0)
    fires("ParticipantDown")
    two.send(signal.SIGCONT)

    # A critical refusal inhibits these, and of the end of what is inhibited nobody is told.
    until(lambda: {"RoundFailuresHigh participant", "RoundFailuresHigh coordinator", "RoundStuck"} <= p.told.names("resolved"), 150)
    # An update has four bytes more than a model: there must be room for that of a round that just ends, or none comes any more.
    full(f.aggregator, 128 + 8 * WEIGHTS)
    f.shown(
        "spool full",
        lambda: p.value('sum(rate(http_server_request_duration_seconds_count{http_response_status_code="503"}[5s]))') > 0,
    )
    fires("AggregatorRefusingUpdates unavailable")

    # At the beginning of an attempt: between two of them nobody asks the aggregator, and nobody sees that it is gone.
    until(lambda: not f.outstanding)
    until(lambda: f.outstanding)
    f.aggregator.kill()
    f.shown("aggregator killed", lambda: bool(p.query("fedround_coordinator_aggregator_reachable == 0")))
    fires("AggregatorRefusingUpdates gone")
    failing = 'http_client_request_duration_seconds_count{url_template="/{id}/{token}", error_type!=""}'
    until(lambda: p.value(f"sum(rate({failing}[5s]))") > 0, 60)
    f.start_aggregator(**f.aggregator.ports)

    # These needed time, not our help.
    fires("RequestLatencyHigh", "NeverSelected")
    link.seconds = 0
    astray.end()
    f.participant("astray", url, **astray.ports)
    wrong.kill()
    f.start("platform", COORDINATOR_MIN_CLIENTS="5", **wrong.ports)

    full(f.coordinator, 0)
    fires("RoundStuck disk")
    f.coordinator.kill()
    f.shown("coordinator killed", lambda: p.value("count(fedround_participant_coordinator_reachable == 0)") > 1)
    fires("CoordinatorUnreachable", "CoordinatorUnreachable scrape")
    f.start_coordinator(**f.coordinator.ports)

    until(lambda: not p.query("ALERTS"), 150)
    return Seen(p, f, [address(process) for process in everybody])


@pytest.mark.timeout(900)
def test_each_fault_shows_within_30_seconds(seen: Seen) -> None:
    print("\n" + ", ".join(f"{fault}: {seconds:.1f} s" for fault, seconds in seen.federation.took.items()))
    assert set(seen.federation.took) == {"NaN", "paused", "spool full", "aggregator killed", "coordinator killed"}
    assert max(seen.federation.took.values()) < SHOWN_WITHIN


@pytest.mark.parametrize("alert", sorted(EXPECTED))
def test_an_alert_has_told_of_its_fault_and_of_its_end(seen: Seen, alert: str) -> None:
    until(lambda: alert in seen.prometheus.told.names("firing"), 30)
    until(lambda: alert in seen.prometheus.told.names("resolved"), 30)


def test_no_alert_is_missing_and_each_told_what_to_do(seen: Seen) -> None:
    told = seen.prometheus.told.firing
    assert {name.split()[0] for name in EXPECTED} == set(ALERTS)
    assert {alert["labels"]["alertname"] for alert in told} == set(ALERTS)
    for alert in told:
        texts = alert["annotations"]
        assert texts["runbook_url"] == f"docs/runbooks/{alert['labels']['alertname']}.md"
        assert "{{" not in texts["summary"] + texts["description"]
        assert "<no value>" not in texts["summary"] + texts["description"]


@pytest.mark.parametrize(("panel", "query"), list(dict.fromkeys(queries())))
def test_a_query_of_a_dashboard_gave_data(seen: Seen, panel: str, query: str) -> None:
    assert seen.history(query) > 0, panel


@pytest.mark.parametrize(("runbook", "query"), list(dict.fromkeys(runbook_queries())))
def test_a_query_of_a_runbook_gave_data(seen: Seen, runbook: str, query: str) -> None:
    assert seen.history(faster(query)) > 0, runbook


@pytest.mark.parametrize("metric", ["fedround_coordinator_round_duration_seconds", "fedround_participant_round_duration_seconds"])
def test_a_latency_leads_to_a_trace(seen: Seen, metric: str) -> None:
    found = seen.prometheus.exemplars(f"{metric}_bucket", seen.federation.began, time.time())
    assert any(exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"])
