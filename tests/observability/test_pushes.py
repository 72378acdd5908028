"""Metrics that a process pushes by OTLP: intervals, receivers, invalid settings, and the cost of a dead receiver."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from prometheus_client import Metric

from fedround.errors import ConfigurationError
from fedround.observability.bridge import Bridge
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.otlp import MetricSender, exporters
from fedround.observability.pushes import FLUSH, INTERVAL, Push, exporting, interval, pushes_metrics
from fedround.observability.telemetry import Telemetry
from support.otlp import receiving
from support.processes import ANY_PORT, Process, fedround, running, until

QUICK = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
DEAD = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **QUICK}
HOUSES = "fedround.demo:HousePrices"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_METRICS_EXPORTER": "none"}, False),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, False),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, True),
        ({"OTEL_METRICS_EXPORTER": "prometheus, OTLP"}, True),
        ({"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_metrics_are_pushed_to_the_endpoint_of_the_variable(environ: dict[str, str], expected: bool) -> None:
    assert pushes_metrics(environ) is expected


def test_the_interval_is_in_milliseconds() -> None:
    assert interval({}, INTERVAL) == 60
    assert interval({"OTEL_METRIC_EXPORT_INTERVAL": " 1500 "}, INTERVAL) == 1.5


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "10s", "\u0661", "1" * 11])
def test_an_invalid_interval_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OTEL_METRIC_EXPORT_INTERVAL: .*write milliseconds"):
        interval({"OTEL_METRIC_EXPORT_INTERVAL": text}, INTERVAL)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("OTEL_METRICS_EXPORTER", "statsd", "OTEL_METRICS_EXPORTER: unknown exporter statsd: write otlp, prometheus, none"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon", "OTEL_METRIC_EXPORT_INTERVAL: soon: write milliseconds"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc", "install opentelemetry-exporter-otlp-proto-grpc"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", "unknown protocol smoke"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "collector:4318", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: not a URL"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "often", "write cumulative, delta, lowmemory"),
        (
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "base2_exponential_bucket_histogram",
            "only explicit_bucket_histogram is possible",
        ),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere.pem", "OTEL_EXPORTER_OTLP_CERTIFICATE: /nowhere.pem"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "OTEL_EXPORTER_OTLP_TIMEOUT: 10s: write seconds"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "-1", "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT: -1: write seconds"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "OTEL_EXPORTER_OTLP_COMPRESSION: zstd: write gzip, deflate or none"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization: Bearer s3cret", "OTEL_EXPORTER_OTLP_HEADERS: write name=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,s3cret", "OTEL_EXPORTER_OTLP_HEADERS: write name=value"),
    ],
)
def test_unsupported_variables_are_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=re.escape(says)), exporting("aggregator", "host") as exports:
        exports.add("aggregator", Telemetry(AggregatorMetrics))


@pytest.mark.parametrize("names", ["otlp", "otlp,prometheus", " OTLP ", "none,otlp", "otlp,otlp"])
def test_metrics_have_one_exporter_however_it_is_written(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", names)
    assert len(exporters(os.environ, "metrics")) == 1


@pytest.mark.parametrize("command", ["aggregator", "participant"])
def test_an_invalid_variable_exits_with_78(command: str) -> None:
    settings = {"PARTICIPANT_COORDINATOR_URL": "http://127.0.0.1:9", "PARTICIPANT_CLASS": HOUSES}
    done = fedround(command, **settings, **ANY_PORT, OTEL_METRICS_EXPORTER="statsd")
    assert done.returncode == 78, done.stderr
    assert "OTEL_METRICS_EXPORTER: unknown exporter statsd" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_federation_pushes_its_metrics_with_the_headers_of_the_variables() -> None:
    with receiving() as (url, receiver):
        headers = {"OTEL_EXPORTER_OTLP_METRICS_HEADERS": "authorization=Bearer%20abc", "OTEL_RESOURCE_ATTRIBUTES": "team=fl"}
        settings = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{url}/v1/metrics", **QUICK, **headers}
        with running("platform", COORDINATOR_ROUNDS="2", **settings) as platform:
            silo = {"PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"), "PARTICIPANT_NAME": "anna"}
            with running("participant", PARTICIPANT_CLASS=HOUSES, **silo, **settings) as participant:
                assert participant.wait() == 0
                last = [each for each in receiver.series if each.name == "fedround_participant_rounds_total"]
                counted = [each.point.as_double for each in last if each.labels == {"outcome": "completed"}]
                assert counted[-1] == 2, "what happened after the last push is pushed at the end"
            assert platform.end() == 0
    whose = {
        (each.resource["service.name"], each.resource["service.instance.id"], each.resource["team"]) for each in receiver.series
    }
    host = os.uname().nodename
    assert whose == {
        ("fedround-participant", "anna", "fl"),
        ("fedround-coordinator", host, "fl"),
        ("fedround-aggregator", host, "fl"),
    }
    assert {(path, headers["authorization"]) for path, headers in receiver.requests} == {("/v1/metrics", "Bearer abc")}
    pushes = [each for each in receiver.series if each.name == "fedround_telemetry_pushes_total" and each.point.as_double]
    assert {tuple(each.labels.values()) for each in pushes} == {("metrics", "arrived")}


def test_services_in_one_process_stay_separate_under_one_service_name() -> None:
    with (
        receiving() as (url, receiver),
        running("platform", OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_SERVICE_NAME="fl", OTEL_TRACES_EXPORTER="none", **QUICK),
    ):
        receiver.wait_for_series("fedround_coordinator_round")
        receiver.wait_for_series("fedround_aggregator_model_usable")
    assert {each.resource["service.name"] for each in receiver.series} == {"fl-coordinator", "fl-aggregator"}


def failed(process: Process) -> float:
    found = re.search(rb'telemetry_pushes_total\{outcome="failed",signal="metrics"\} (\S+)', process.get(OPS, "/metrics"))
    assert found is not None
    return float(found[1])


OPS = "AGGREGATOR_OPS_PORT"


def test_an_unreachable_receiver_is_counted_and_logged_once() -> None:
    with running("aggregator", **DEAD, OTEL_TRACES_EXPORTER="none", OTEL_EXPORTER_OTLP_TIMEOUT="1") as aggregator:
        until(lambda: failed(aggregator) >= 2)
        assert aggregator.probe("/readyz")[0] == 200
        began = time.monotonic()
        assert aggregator.end() == 0
        assert time.monotonic() - began < FLUSH + 3
    assert len(re.findall("metrics: ", aggregator.log)) <= 2  # one line of the exporter for each way in which it fails
    assert "Traceback" not in aggregator.log


def test_a_hanging_receiver_delays_no_request_and_the_exit_only_briefly() -> None:
    answers = threading.Event()
    with receiving(answers=answers) as (url, _):
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, **QUICK}
        with running("aggregator", **settings) as aggregator:
            aggregator.said("listening")
            for _ in range(20):
                began = time.monotonic()
                aggregator.get(OPS, "/metrics")
                assert time.monotonic() - began < 1
            began = time.monotonic()
            assert aggregator.end() == 0
            assert time.monotonic() - began < FLUSH + 3, "the last push and the last spans have one bound together"
        answers.set()


def test_without_pushes_nothing_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from fedround.observability.metrics.aggregator import AggregatorMetrics\n"
        "from fedround.observability.pushes import exporting\n"
        "from fedround.observability.telemetry import Telemetry\n"
        "with exporting('aggregator', 'host') as exports:\n"
        "    exports.add('aggregator', Telemetry(AggregatorMetrics))\n"
        "print(sorted(name for name in sys.modules if name.startswith(('opentelemetry', 'requests', 'google'))))\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_a_stopping_participant_pushes_its_last_metrics() -> None:
    with receiving() as (url, receiver), running("platform", COORDINATOR_MIN_CLIENTS="2") as platform:
        slow = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "3600000", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        silo = {"PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"), "PARTICIPANT_CLASS": HOUSES}
        with running("participant", **silo, **slow) as participant:
            participant.said("registered")
            participant.send(signal.SIGTERM)
            assert participant.wait() == 0
        found = receiver.wait_for_series("fedround_participant_registrations_total", reason="start")
        assert found.point.as_double == 1


def test_an_unexpected_error_does_not_stop_pushes(caplog: pytest.LogCaptureFixture) -> None:
    told: list[bool] = []
    twice = threading.Event()

    def tell(_signal: str, arrived: bool) -> None:
        told.append(arrived)
        if len(told) == 2:
            twice.set()

    def collect() -> Iterator[Metric]:
        raise ValueError("no metrics now")
        yield

    push = Push(collect, Bridge(Resource.create({}), 0), MetricSender(lambda _path, _body: True), 0.01, tell)
    assert twice.wait(10)
    push._collect = list
    push.stop()
    push.join(10)
    assert told[-1], "the last one had nothing to complain of"
    assert "failed to push metrics: no metrics now" in caplog.text
