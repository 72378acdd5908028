"""A real federation with faults, a real Prometheus that scrapes it, and a real Alertmanager that sends its alerts.

All tests share one run, and query it at its end like an operator. Alerts fire 60 times as fast (`support.prometheus`).
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest

from support.certificates import Authority
from support.dashboards import ALERTS, asked, queries, runbook_queries
from support.link import SlowLink
from support.processes import Process, free_port, until
from support.prometheus import Prometheus, faster, prometheus
from support.troubled import WEIGHTS, Federation, addresses, crowd, full

SHOWN_WITHIN = 30.0
"""Maximum seconds from a fault until the dashboards' queries show it."""
EXPECTED = {
    "ParticipantDown",
    "ParticipantNotReady",
    "ParticipantHung",
    "ParticipantHung slow",
    "ParticipantFailing",
    "ParticipantAlwaysLate",
    "ShardAssignmentWrong missing",
    "ShardAssignmentWrong doubled",
    "CoordinatorUnreachable",
    "CoordinatorUnreachable scrape",
    "CoordinatorUnreachable discovery",
    "RoundStuck",
    "RoundStuck participants",
    "RoundStuck disk",
    "RoundStuck attempts",
    "ModelRejected",
    "ConnectionLimitReached",
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
    "EvaluationFailing",
    "EvaluationFailing slow",
    "CertificateExpiring",
}
NAMED = {
    "ParticipantDown": {"two"},
    "ParticipantNotReady": {"lost"},
    "ParticipantHung": {"oslo"},
    "ParticipantAlwaysLate": {"oslo"},
    "ShardAssignmentWrong": {"", "berlin", "oslo"},
    "NeverSelected": {"astray"},
    "UpdateNormExploding": {"three"},
    "CertificateExpiring": {"", "astray"},
}
"""The silo of each alert about one silo. Prometheus does not scrape Oslo and Berlin."""
Fires = Callable[..., None]


@dataclass(frozen=True)
class Seen:
    """The state after all faults."""

    prometheus: Prometheus
    federation: Federation

    def history(self, query: str) -> int:
        """Return how many series an operator saw at any time, on the dashboard of any participant."""
        return sum(
            self.prometheus.history(asked(query, participant=name, interval="5s", window="30s"), self.federation.began, time.time())
            for name in (("one", "three", "far", "oslo") if "$participant" in query else ("",))
        )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with ExitStack() as stack:
        f = Federation(tmp_path_factory.mktemp("federation"), stack)
        yield faults(f)


def faults(f: Federation) -> Seen:
    """Cause one fault after another. Wait until its alert fires, then repair it."""
    f.start_aggregator()
    f.start_coordinator()
    url = f.coordinator.url("COORDINATOR_PORT")
    authority = Authority(f.directory)
    one, two, three = (f.participant(name, url, PARTICIPANT_TLS_CA_FILE=authority.file) for name in ("one", "two", "three"))

    # Registered where too few ever come, the model is of no use and certificates end soon; and started with the address of nobody:
    # both from the start.
    own = authority.issue("astray", days=10, age=355)
    of_astray = {"PARTICIPANT_TLS_CA_FILE": authority.file, "PARTICIPANT_TLS_CERT_FILE": f.certify("astray", own)}
    secured = {"COORDINATOR_TLS_CLIENT_CA_FILE": authority.file} | dict.fromkeys(
        ("COORDINATOR_TLS_CERT_FILE", "AGGREGATOR_TLS_CERT_FILE"), f.certify("platform", authority.server(days=10, age=355))
    )
    unusable = f.directory / "unusable.npy"
    np.save(unusable, np.array([1e20]))
    wrong = f.start("platform", COORDINATOR_MIN_CLIENTS="5", AGGREGATOR_INITIAL_MODEL=str(unusable), **secured)
    astray = f.participant("astray", wrong.url("COORDINATOR_PORT").replace("http:", "https:"), **of_astray)
    lost = f.participant("lost", f"http://127.0.0.1:{free_port()}")

    slow = f.start("platform", COORDINATOR_ROUNDS="0")
    link = f.stack.enter_context(SlowLink(int(slow.ports["AGGREGATOR_PORT"]), 12))
    far = f.participant("far", slow.url("COORDINATOR_PORT"), 5, PARTICIPANT_AGGREGATOR_URL=link.url)

    silos, *remote = remote_silos(f)
    targets = {
        "coordinator": addresses(f.coordinator),
        "aggregator": addresses(f.aggregator),
        "wrong-platform": [f"https://{address}" for address in addresses(wrong)],
        "far-platform": addresses(slow),
        "remote-platform": addresses(silos),
        "participant": addresses(one, two, three, astray, lost, far),
    }
    p = f.stack.enter_context(prometheus(f.directory, targets))

    def fires(*names: str) -> None:
        until(lambda: set(names) <= p.told.names("firing"), 120)

    fires("ParticipantNotReady", "ModelUnusable", "CertificateExpiring")
    until(lambda: {a["labels"].get("participant", "") for a in p.told.of("CertificateExpiring")} == {"", "astray"})
    f.certify("astray", authority.issue("astray", days=365))
    f.certify("platform", authority.server(days=365))
    lost.kill()
    f.participant("lost", url, **lost.ports)

    until(lambda: p.value("max(fedround_coordinator_round)") > 20, 90)
    f.mood("large", "three")
    f.mood("raise", "examiner")
    fires("UpdateNormExploding", "EvaluationFailing")
    f.mood("heavy", "three")
    f.mood("hang", "examiner")
    fires("DominantUpdate", "EvaluationFailing slow")
    f.mood("", "examiner")

    f.mood("nan", "three")
    f.shown("NaN", lambda: p.value("sum(increase(fedround_participant_nonfinite_weights_total[5s]))") > 0)
    f.mood("nan", "one", "lost")  # as many as make rounds fail: only one is left of two that are needed
    fires("NonFiniteWeights local", "AggregatorRefusingUpdates invalid")
    fires("RoundFailuresHigh participant", "RoundFailuresHigh coordinator", "RoundStuck", "RoundStuck attempts")
    fires("ParticipantFailing")
    f.mood("", "one", "three", "lost")

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

    # While a participant still has to upload. At the beginning of an attempt, none may know of it yet and ask the aggregator.
    until(lambda: f.retrying, 60)
    f.aggregator.kill()
    f.shown("aggregator killed", lambda: bool(p.query("fedround_coordinator_aggregator_reachable == 0")))
    fires("AggregatorRefusingUpdates gone")
    failing = 'http_client_request_duration_seconds_count{url_template="/{id}/{token}", error_type!=""}'
    until(lambda: p.value(f"sum(rate({failing}[15s]))") > 0, 60)
    f.start_aggregator(**f.aggregator.ports)

    # These needed time, not our help.
    fires("RequestLatencyHigh", "NeverSelected")
    link.seconds = 0
    astray.end()
    f.participant("astray", url, **astray.ports)
    wrong.kill()
    f.start("platform", COORDINATOR_MIN_CLIENTS="5", **secured, **wrong.ports)

    faults_of_remote_silos(f, p, silos, *remote, fires=fires)

    full(f.coordinator, 0)
    fires("RoundStuck disk")
    f.coordinator.kill()
    f.shown("coordinator killed", lambda: p.value("count(fedround_participant_coordinator_reachable == 0)") > 1)
    fires("CoordinatorUnreachable", "CoordinatorUnreachable scrape")
    f.start_coordinator(**f.coordinator.ports)

    until(lambda: not p.query("ALERTS"), 150)
    return Seen(p, f)


def remote_platform(f: Federation, **settings: str) -> Process:
    return f.start("platform", COORDINATOR_ROUNDS="0", COORDINATOR_MIN_CLIENTS="2", **settings)


def remote_silo(f: Federation, platform: Process, name: str, shard: str) -> Process:
    return f.participant(name, platform.url("COORDINATOR_PORT"), 5, PARTICIPANT_SHARD=shard)


def remote_silos(f: Federation) -> tuple[Process, Process, Process]:
    """A platform with participants that Prometheus does not scrape. One is slow, and has the shard of another one."""
    platform = remote_platform(f, COORDINATOR_QUORUM="2", COORDINATOR_MAX_CONNECTIONS="20")
    f.mood("slow", "oslo")
    remote_silo(f, platform, "berlin", "0/3")
    return platform, remote_silo(f, platform, "paris", "1/3"), remote_silo(f, platform, "oslo", "0/3")


def faults_of_remote_silos(f: Federation, p: Prometheus, platform: Process, paris: Process, oslo: Process, *, fires: Fires) -> None:
    """Faults that only the coordinator can report."""
    with crowd(int(platform.ports["COORDINATOR_PORT"]), 30):
        fires("ParticipantAlwaysLate", "ShardAssignmentWrong missing", "ShardAssignmentWrong doubled", "ConnectionLimitReached")
    oslo.end()
    f.mood("", "oslo")
    oslo = remote_silo(f, platform, "oslo", "2/3")
    until(lambda: {"ParticipantAlwaysLate", "ShardAssignmentWrong missing"} <= p.told.names("resolved"), 150)

    platform.end()
    platform = remote_platform(f, COORDINATOR_ROUND_TIMEOUT="15s", **platform.ports)
    until(lambda: p.value('fedround_coordinator_round{job="remote-platform"}') > 10, 90)
    f.mood("hang", "oslo")
    training = 'fedround_coordinator_participant_phase{participant="oslo", phase="training"} == 1'
    began = 'fedround_coordinator_participant_phase_started_timestamp_seconds{participant="oslo"}'
    f.shown("silo hangs", lambda: p.value(f"time() - {began} and on (participant) {training}") > 3)
    fires("ParticipantHung slow", "ParticipantHung")
    f.mood("raise", "berlin", "paris", "oslo")
    f.shown("silos fail", lambda: p.value('count(fedround_coordinator_participant_consecutive_failures{reason="failed"} > 1)') > 1)
    fires("ModelRejected")
    f.mood("", "berlin", "paris", "oslo")
    until(lambda: {"ParticipantHung", "ModelRejected"} <= p.told.names("resolved"), 150)

    paris.end()
    oslo.end()
    fires("RoundStuck participants")
    p.find("remote-platform")  # it is uninstalled
    platform.end()
    fires("CoordinatorUnreachable discovery")
    unreachable = p.query('ALERTS{alertname="CoordinatorUnreachable", job="remote-platform", alertstate="firing"}')
    assert [alert["severity"] for alert, _ in unreachable] == ["warning"], "a planned removal wakes nobody"


@pytest.mark.timeout(900)
def test_each_fault_shows_within_30_seconds(seen: Seen) -> None:
    print("\n" + ", ".join(f"{fault}: {seconds:.1f} s" for fault, seconds in seen.federation.took.items()))
    assert set(seen.federation.took) == {
        *("NaN", "paused", "spool full", "aggregator killed", "coordinator killed", "silo hangs", "silos fail")
    }
    assert max(seen.federation.took.values()) < SHOWN_WITHIN


@pytest.mark.parametrize("alert", sorted(EXPECTED))
def test_each_alert_fires_for_its_fault_and_resolves(seen: Seen, alert: str) -> None:
    until(lambda: alert in seen.prometheus.told.names("firing"), 30)
    until(lambda: alert in seen.prometheus.told.names("resolved"), 30)


def test_no_alert_is_missing_and_each_has_a_runbook(seen: Seen) -> None:
    told = seen.prometheus.told.firing
    assert {name.split()[0] for name in EXPECTED} == set(ALERTS)
    assert {alert["labels"]["alertname"] for alert in told} == set(ALERTS)
    for alert in told:
        texts = alert["annotations"]
        assert texts["runbook_url"] == f"docs/runbooks/{alert['labels']['alertname']}.md"
        assert "{{" not in texts["summary"] + texts["description"]
        assert "<no value>" not in texts["summary"] + texts["description"]


@pytest.mark.parametrize("alert", NAMED)
def test_an_alert_about_a_silo_has_its_name(seen: Seen, alert: str) -> None:
    told = seen.prometheus.told.of(alert)
    assert {a["labels"].get("participant", "") for a in told} >= NAMED[alert]
    assert all(a["labels"].get("participant", "") in a["annotations"]["summary"] for a in told)


@pytest.mark.parametrize(("panel", "query"), list(dict.fromkeys(queries())))
def test_queries_of_dashboards_return_data(seen: Seen, panel: str, query: str) -> None:
    assert seen.history(query) > 0, panel


@pytest.mark.parametrize(("runbook", "query"), list(dict.fromkeys(runbook_queries())))
def test_queries_of_runbooks_return_data(seen: Seen, runbook: str, query: str) -> None:
    assert seen.history(faster(query)) > 0, runbook


@pytest.mark.parametrize("metric", ["fedround_coordinator_round_duration_seconds", "fedround_participant_round_duration_seconds"])
def test_an_exemplar_of_a_latency_is_a_trace(seen: Seen, metric: str) -> None:
    found = seen.prometheus.exemplars(f"{metric}_bucket", seen.federation.began, time.time())
    assert any(exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"])
