"""Metrics: which fact changes which series, their initial values, and bounds on their number."""

import re
import subprocess
import time
from itertools import product

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from fedround import events
from fedround.coordinator.silos import Phase
from fedround.events import Fact
from fedround.http import transport
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.metrics.http import MAX_FAILURES
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.tensors.measures import statistics
from fedround.tensors.statistics import Change
from support.certificates import Authority
from support.observed import observed
from support.tools import tool

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ID = "12345678-aaaa-bbbb-cccc-dddddddddddd"
FIVE = np.array([0.5, -0.25, 0.0, 2.0, 1e-9])

KINDS: list[type[Metrics]] = [ParticipantMetrics, CoordinatorMetrics, AggregatorMetrics]

WEIGHTS = events.WeightsMeasured(0, "global", 168, statistics(FIVE))
LOCAL = events.WeightsMeasured(0, "local", 172, statistics(np.array([1.0, np.nan, 3.0])))


def sample(metrics: Metrics, series: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(series, labels)


def told(metrics: Metrics, *facts: Fact) -> Metrics:
    for fact in facts:
        metrics(fact)
    return metrics


def shown(metrics: Metrics) -> Metrics:
    metrics.show(lambda: observed("anna"))
    return metrics


@pytest.mark.parametrize(
    ("fact", "series", "labels", "value"),
    [
        (events.RoundJoined(7, repeated=False, traceparent=None), "rounds_joined_total", {}, 1),
        (events.RoundJoined(7, repeated=False, traceparent=None), "round_number", {}, 7),
        (events.RoundJoined(7, repeated=False, traceparent=None), "round_in_progress", {}, 1),
        (events.RoundEnded(7, "completed", 0.3), "rounds_total", {"outcome": "completed"}, 1),
        (events.RoundEnded(7, "refused", 0.3), "round_duration_seconds_sum", {"outcome": "refused"}, 0.3),
        (events.PhaseEnded(7, "train", 0.3), "round_phase_duration_seconds_bucket", {"phase": "train", "le": "0.5"}, 1),
        (events.Registered(ID, "rejected"), "registrations_total", {"reason": "rejected"}, 1),
        (
            events.Retrying("/heartbeat/{id}", "busy", 1.0),
            "retries_total",
            {"url_template": "/heartbeat/{id}", "reason": "busy"},
            1,
        ),
        (events.ContactMade(), "coordinator_reachable", {}, 1),
        (events.ContactLost("refused"), "coordinator_reachable", {}, 0),
        (WEIGHTS, "model_parameters", {}, 5),
        (WEIGHTS, "model_bytes", {}, 168),
        (WEIGHTS, "weight_mean", {"source": "global"}, pytest.approx(FIVE.mean())),
        (WEIGHTS, "weight_stddev", {"source": "global"}, pytest.approx(FIVE.std())),
        (WEIGHTS, "weight_min", {"source": "global"}, -0.25),
        (WEIGHTS, "weight_max", {"source": "global"}, 2.0),
        (WEIGHTS, "weight_l2_norm", {"source": "global"}, pytest.approx(np.linalg.norm(FIVE))),
        (WEIGHTS, "weight_value", {"index": "1", "source": "global"}, -0.25),
        (WEIGHTS, "weights_bucket", {"source": "global", "le": "1e-06"}, 2),
        (WEIGHTS, "weights_bucket", {"source": "global", "le": "1.0"}, 4),
        (WEIGHTS, "weights_gcount", {"source": "global"}, 5),
        (LOCAL, "nonfinite_weights_total", {"source": "local"}, 1),
        (LOCAL, "weights_gcount", {"source": "local"}, 2),
        (events.UpdateMeasured(7, 30, Change(5.0, None)), "update_l2_norm", {}, 5),
        (events.UpdateMeasured(7, 30, Change(5.0, -0.5)), "update_cosine_similarity", {}, -0.5),
        (events.UpdateMeasured(7, 30, None), "trained_samples_total", {}, 30),
        (events.MetricsReported(7, (("loss", 0.25),)), "training_metric", {"name": "loss"}, 0.25),
        (events.StateChanged("training", 7, draining=False), "state", {"fedround_participant_state": "training"}, 1),
        (events.StateChanged("training", 7, draining=True), "state", {"fedround_participant_state": "draining"}, 1),
        (events.StateChanged("stopped", None, draining=True), "state", {"fedround_participant_state": "stopped"}, 1),
    ],
)
def test_events_of_a_participant_are_counted(fact: Fact, series: str, labels: dict[str, str], value: float) -> None:
    assert sample(told(ParticipantMetrics(), fact), f"fedround_participant_{series}", **labels) == value


@pytest.mark.parametrize("shown", [False, True])
def test_single_local_weights_are_exported_only_on_request(shown: bool) -> None:
    metrics = told(ParticipantMetrics(local_values=shown), LOCAL)
    found = sample(metrics, "fedround_participant_weight_value", index="0", source="local")
    assert found == (1.0 if shown else None)
    assert sample(metrics, "fedround_participant_weights_gcount", source="local") == 2, "statistics are shown all the same"


def test_unknown_changes_of_training_are_not_exported() -> None:
    metrics = ParticipantMetrics()
    seen = []
    for newest in (None, Change(5.0, None), Change(4.0, 0.5), None):
        metrics(events.UpdateMeasured(7, 30, newest))
        seen.append([sample(metrics, f"fedround_participant_update_{name}") for name in ("l2_norm", "cosine_similarity")])
    assert seen == [[None, None], [5, None], [4, 0.5], [None, None]]
    assert sample(ParticipantMetrics(), "fedround_participant_update_l2_norm") is None


def exchanges(metrics: Metrics, method: str, path: str, status: str, error: str) -> float | None:
    names = ("http_request_method", "url_template", "http_response_status_code", "error_type")
    labels = dict(zip(names, (method, path, status, error), strict=True))
    return sample(metrics, "http_client_request_duration_seconds_count", **labels)


@pytest.mark.parametrize(
    ("status", "error", "shown"),
    [
        (200, None, ("200", "")),
        (503, "Busy", ("503", "")),  # the status says it all
        (None, "ConnectError", ("", "ConnectError")),
        (200, "ReadError", ("", "ReadError")),  # no answer either: it was cut
    ],
)
def test_an_exchange_is_counted_by_its_status_or_error(status: int | None, error: str | None, shown: tuple[str, str]) -> None:
    metrics = told(ParticipantMetrics(), events.ExchangeEnded("POST", "/{id}/{token}", status, error, 0.3, 1000, 20))
    assert exchanges(metrics, "POST", "/{id}/{token}", *shown) == 1
    for name, size in (("request", 1000), ("response", 20)):
        assert sample(metrics, f"http_client_{name}_body_size_bytes_sum", url_template="/{id}/{token}") == size


def test_too_many_kinds_of_errors_are_counted_together() -> None:
    metrics = ParticipantMetrics()
    for code in range(400, 400 + MAX_FAILURES + 2):
        told(metrics, *[events.ExchangeEnded("GET", "/rendez_vous", code, "Refused", 0.1, 0, 0)] * 2)
    assert exchanges(metrics, "GET", "/rendez_vous", "400", "") == 2
    assert exchanges(metrics, "GET", "/rendez_vous", "", "_OTHER") == 4


@pytest.mark.parametrize(
    ("fact", "series", "labels", "value"),
    [
        (events.RoundCompleted(0, ID, (ID,), 0, 5, 5, 0.3, ()), "rounds_total", {"outcome": "completed"}, 1),
        (events.RoundCompleted(0, ID, (ID,), 0, 5, 5, 0.3, ()), "round_duration_seconds_sum", {}, 0.3),
        (events.AttemptDropped(0, ID, 0, "too few", timed_out=False), "rounds_total", {"outcome": "failed"}, 1),
        (events.AttemptDropped(0, ID, 0, "too late", timed_out=True), "rounds_total", {"outcome": "timed_out"}, 1),
        (events.Selected(0, (ID, ID)), "selected_total", {}, 2),
        (events.ParticipantGone(ID, "anna", "silent"), "dropped_total", {"reason": "silent"}, 1),
        (events.Revoked(0, ID, "deadline"), "dropped_total", {"reason": "deadline"}, 1),
        (events.Revoked(0, ID, "late"), "dropped_total", {"reason": "late"}, 1),
        (events.Revoked(0, ID, "silent"), "dropped_total", {"reason": "silent"}, 0),  # `ParticipantGone` tells of that
    ],
)
def test_events_of_a_coordinator_are_counted(fact: Fact, series: str, labels: dict[str, str], value: float) -> None:
    assert sample(told(CoordinatorMetrics(), fact), f"fedround_coordinator_{series}", **labels) == value


def test_the_gauges_of_a_coordinator_equal_its_status() -> None:
    now = {
        **observed(),
        "round": 3,
        "rounds": 10,
        "state": "training",
        "participants": [{"state": "waiting"}, {"state": "done"}, {"state": "done"}],
        "missing": [{"name": "anna", "seconds": 3.0}],
        "round_timeout": 60.0,
        "aggregator_reachable": False,
        "sitting_out": 2,
        "failed_attempts": 4,
    }
    metrics = CoordinatorMetrics()
    metrics.show(lambda: now)
    expected = {
        "round": 3,
        "rounds_configured": 10,
        "training_complete": 0,
        "round_timeout_seconds": 60,
        "participants_missing": 1,
        "aggregator_reachable": 0,
        "participants_sitting_out": 2,
        "round_failed_attempts": 4,
    }
    assert {name: sample(metrics, f"fedround_coordinator_{name}") for name in expected} == expected
    states = [sample(metrics, "fedround_coordinator_participants", state=state) for state in ("waiting", "selected", "done")]
    assert states == [1, 0, 2]
    since = sample(metrics, "fedround_coordinator_round_since_timestamp_seconds")
    assert since is not None
    assert sample(metrics, "fedround_coordinator_round_since_timestamp_seconds") == since, "still the same round"
    now["round"] = 4
    assert (sample(metrics, "fedround_coordinator_round_since_timestamp_seconds") or 0) > since
    now["state"] = "waiting for participants: 7 of 10"
    assert sample(metrics, "fedround_coordinator_waiting_for_participants") == 1
    now["state"] = "complete"
    assert sample(metrics, "fedround_coordinator_training_complete") == 1


def test_a_coordinator_exports_each_participant_by_name() -> None:
    member = events.Contribution("anna", 5, 0.1, {"loss": 0.5})
    facts = [
        events.RoundCompleted(0, "", (), 0, 5, 5, 0.3, (), (member,)),
        events.Evaluated(0, 5, (), (), (), (member,)),
        events.Revoked(1, "", "deadline", "anna"),
        events.Revoked(2, "", "late", "anna"),
    ]
    metrics = CoordinatorMetrics()
    metrics.show(lambda: observed("anna", "ben", facts=facts))

    def of(series: str, **labels: str) -> float | None:
        return sample(metrics, f"fedround_coordinator_participant_{series}", **{"participant": "anna", **labels})

    expected: dict[str, float | None] = {"up": 1, "seats": 1, "last_contact_timestamp_seconds": 1e9, "last_counted_round": None}
    expected |= {"rounds_counted_total": 1, "missed_deadlines": 1, "late_total": 1, "phase_started_timestamp_seconds": 1e9}
    assert {series: of(series) for series in expected} == expected
    assert {phase: of("phase", phase=phase) for phase in Phase} == {phase: phase == "selected" for phase in Phase}
    assert [of("failures_total", reason=reason) for reason in ("deadline", "refused")] == [1, 0]
    assert [of("consecutive_failures", reason=reason) for reason in ("deadline", "refused")] == [1, None]
    assert of("consecutive_failures", reason="deadline", participant="ben") is None
    assert (of("training_metric", name="loss"), of("evaluation_metric", name="loss")) == (0.5, 0.5)
    assert sample(metrics, "fedround_coordinator_participants_omitted") == 0


def test_a_scrape_with_200_participants_and_their_metrics_costs_little() -> None:
    names = [f"hospital-{n}" for n in range(200)]
    members = tuple(events.Contribution(name, 5, 0.1, {"loss": 0.5, "accuracy": 0.5}) for name in names)
    facts = [events.RoundCompleted(0, "", (), 0, 5, 5, 0.3, (), members), events.Evaluated(0, 5, (), (), (), members)]
    now = observed(*names, facts=facts)
    metrics = CoordinatorMetrics()
    metrics.show(lambda: now)
    assert series(metrics) < 200 * 33 + 500
    began = time.process_time()
    generate_latest(metrics.registry)
    assert time.process_time() - began < 0.25


@pytest.mark.parametrize(
    ("kind", "fact", "series"),
    [
        (ParticipantMetrics, events.RoundEnded(7, "completed", 20_000.0), "participant_round_duration_seconds"),
        (ParticipantMetrics, events.PhaseEnded(7, "train", 20_000.0), "participant_round_phase_duration_seconds"),
        (CoordinatorMetrics, events.RoundCompleted(0, ID, (ID,), 0, 5, 5, 20_000.0, ()), "coordinator_round_duration_seconds"),
    ],
)
def test_the_buckets_of_rounds_reach_half_a_day(kind: type[Metrics], fact: Fact, series: str) -> None:
    body = told(kind(), fact).scrape("")[0].decode()
    assert re.findall(rf'{series}_bucket{{.*le="([\d.]+)".*}} 1.0', body) == ["43200.0"]


@pytest.mark.parametrize(
    ("fact", "series", "labels", "value"),
    [
        (events.UpdateReceived(ID, "late", 100), "updates_total", {"outcome": "late"}, 1),
        (events.UpdateReceived(ID, "late", 100), "update_bytes_count", {}, 0),
        (events.UpdateReceived(ID, "accepted", 100), "update_bytes_sum", {}, 100),
        (events.Aggregated(0, 2, 5, 0.3), "aggregation_duration_seconds_sum", {}, 0.3),
        (WEIGHTS, "weight_mean", {"source": "global"}, pytest.approx(FIVE.mean())),
    ],
)
def test_events_of_an_aggregator_are_counted(fact: Fact, series: str, labels: dict[str, str], value: float) -> None:
    assert sample(told(AggregatorMetrics(), fact), f"fedround_aggregator_{series}", **labels) == value


def test_an_aggregator_exports_the_uploads_in_progress() -> None:
    assert sample(shown(AggregatorMetrics()), "fedround_aggregator_uploads_in_progress") == 2


@pytest.mark.parametrize("kind", [CoordinatorMetrics, AggregatorMetrics])
def test_aborted_requests_are_counted_without_a_status(kind: type[Metrics]) -> None:
    metrics = told(kind(), events.RequestServed("GET", "/heartbeat/{id}", None, 0.1))
    labels = {"http_request_method": "GET", "http_route": "/heartbeat/{id}", "http_response_status_code": ""}
    assert sample(metrics, "http_server_request_duration_seconds_count", **labels) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_custom_registry_is_used_and_two_services_do_not_collide(kind: type[Metrics]) -> None:
    registry = CollectorRegistry()
    assert kind(registry).registry is registry
    kind(CollectorRegistry())


@pytest.mark.parametrize("kind", KINDS)
def test_known_label_values_start_at_0_and_no_series_is_exported_twice(kind: type[Metrics]) -> None:
    body, content_type = shown(kind()).scrape("text/plain")
    assert content_type.startswith("text/plain")
    assert b"_created" not in body
    families = {family.name: family for family in parse(body.decode())}
    for name, family in families.items():
        if family.type == "counter" and name.startswith("fedround_"):
            assert family.samples, name
            assert {sample.value for sample in family.samples} == {0}


def test_openmetrics_has_the_exemplar_of_a_traced_round() -> None:
    metrics = told(ParticipantMetrics(exemplar=lambda: {"trace_id": "a" * 32}), events.RoundEnded(7, "completed", 0.3))
    body, content_type = metrics.scrape(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    found = {
        sample.exemplar.labels["trace_id"]
        for family in parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar
    }
    assert found == {"a" * 32}


def test_reported_metrics_become_at_most_20_series() -> None:
    metrics = ParticipantMetrics()
    for number in range(100):
        metrics(events.MetricsReported(number, ((f"name{number}", 1.0),)))
    assert sample(metrics, "fedround_participant_training_metric", name="name19") == 1
    assert sample(metrics, "fedround_participant_training_metric", name="name20") is None


def series(metrics: Metrics) -> int:
    return sum(not line.startswith(b"#") for line in metrics.scrape("")[0].splitlines())


def test_a_participant_has_fewer_than_1000_series_for_any_errors() -> None:
    weights = statistics(np.linspace(-1, 1, 32))
    asked = [("GET", path) for path in ("/rendez_vous", "/heartbeat/{id}", "/start_training/{id}", "/{id}/{token}")]
    metrics = told(
        ParticipantMetrics(),
        *(events.WeightsMeasured(0, source, 168, weights) for source in ("global", "local")),
        events.UpdateMeasured(0, 1, Change(1.0, 1.0)),
        *(events.MetricsReported(n, ((f"name{n}", 1.0),)) for n in range(20)),
        *(
            events.Retrying(path, reason, 1.0)
            for _, path in asked
            for reason in ("unreachable", "busy", "bad_answer", "refused", "aborted")
        ),
        *(
            events.ExchangeEnded(method, path, status, None, 0.1, int(method == "POST"), 1)
            for status in range(300, 600)
            for method, path in (*asked, ("DELETE", "/rendez_vous/{id}"), ("POST", "/{id}/{token}"))
        ),
    )
    assert series(metrics) < 1000


def test_an_aggregator_has_fewer_than_1000_series_for_any_requests() -> None:
    asked = [
        *product(["GET", "HEAD"], ["/{id}/{token}"], [200, 304, 404, 500, None]),
        *product(["POST"], ["/{id}/{token}"], [200, 400, 404, 408, 409, 413, 415, 422, 500, 503, None]),
        *product(["GET", "HEAD"], ["/books/ledger"], [200, 400, 500, None]),
        *product(["POST"], ["/books/{operation}"], [200, 400, 404, 409, 413, 500, None]),
        *product(["_OTHER"], ["/{id}/{token}", "/books/ledger", "/books/{operation}"], [405]),
        *product(["_OTHER"], [""], [401, 404, 405, None]),
    ]
    served = [events.RequestServed(method, route, status, 0.1) for method, route, status in asked]
    weights = events.WeightsMeasured(0, "global", 168, statistics(np.linspace(-1, 1, 32)))
    assert series(told(shown(AggregatorMetrics()), weights, *served)) < 1000


@pytest.mark.parametrize("kind", KINDS)
def test_promtool_reports_nothing(kind: type[Metrics]) -> None:
    body, _ = told(shown(kind()), WEIGHTS).scrape("")
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@pytest.mark.parametrize("kind", KINDS)
def test_the_validity_of_certificates_is_shown_by_the_setting_of_their_file(kind: type[Metrics], authority: Authority) -> None:
    metrics = kind()
    context = transport.authorities(authority.file, transport.TLS_FILES)
    metrics.certificates.watch(context.validity)
    (validity,) = context.validity().values()
    for name, value in validity._asdict().items():
        assert sample(metrics, f"fedround_tls_certificate_{name}_timestamp_seconds", setting="PARTICIPANT_TLS_CA_FILE") == value


@pytest.mark.parametrize("kind", KINDS)
def test_connections_are_counted_by_port(kind: type[Metrics]) -> None:
    metrics = told(
        kind(), events.ConnectionsChanged("ops", 7), events.ConnectionClosed("ops", "pipeline"), events.RequestThrottled("ops")
    )
    assert sample(metrics, "fedround_http_requests_throttled_total", port="ops") == 1
    assert sample(metrics, "fedround_http_connections", port="ops") == 7
    assert sample(metrics, "fedround_http_connections_closed_total", port="ops", reason="pipeline") == 1
    assert sample(metrics, "fedround_http_connections_closed_total", port="ops", reason="port_limit") == 0
