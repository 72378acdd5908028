"""Running services have every documented metric and endpoint, and no other metric."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from support.processes import Process, running, two_services
from support.tools import tool

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "reference" / "metrics.md").read_text()
HEALTH = (DOCS / "reference" / "health.md").read_text()
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SERVICES = {
    "participant": "metrics of participants",
    "coordinator": "metrics of the coordinator",
    "aggregator": "metrics of the aggregator",
}


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, Process]]:
    """Coordinator, aggregator and participant as processes, after some rounds."""
    plan = {"COORDINATOR_ROUNDS": "3", "COORDINATOR_MIN_CLIENTS": "1"}
    silo = {"PARTICIPANT_CLASS": "fedround.demo:HousePrices", "PARTICIPANT_AFTER_FINISH": "wait"}
    with (
        two_services(**plan) as (coordinator, aggregator),
        running("participant", PARTICIPANT_COORDINATOR_URL=coordinator.url("COORDINATOR_PORT"), **silo) as participant,
    ):
        participant.said("^finished")
        yield {"participant": participant, "coordinator": coordinator, "aggregator": aggregator}


def scrape(services: dict[str, Process], service: str, **headers: str) -> bytes:
    return services[service].get(f"{service.upper()}_OPS_PORT", "/metrics", **headers)


def families(text: str) -> set[str]:
    return {name for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) if not name.startswith(("process_", "python_"))}


@pytest.mark.parametrize("service", SERVICES)
def test_the_reference_has_exactly_the_metrics_of_a_live_scrape(services: dict[str, Process], service: str) -> None:
    block = re.search(rf"{SERVICES[service]} -->\n(.*?)<!-- end", PAGE, re.DOTALL)
    assert block is not None
    named = set(re.findall(r"^\| `(\w+)`", block[1], re.MULTILINE))
    scraped = families(scrape(services, service).decode())
    assert {name for name in scraped if not name.endswith(("_gsum", "_gcount"))} == named


def test_a_participant_with_rounds_has_at_most_250_series(services: dict[str, Process]) -> None:
    lines = scrape(services, "participant").decode().splitlines()
    assert sum(not line.startswith("#") for line in lines) <= 250


@pytest.mark.parametrize("service", SERVICES)
def test_promtool_reports_nothing_for_a_live_scrape(services: dict[str, Process], service: str) -> None:
    body = scrape(services, service)
    done = subprocess.run([tool("promtool"), "check", "metrics"], input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


@pytest.mark.parametrize("service", SERVICES)
def test_openmetrics_is_sent_to_clients_that_accept_it(services: dict[str, Process], service: str) -> None:
    text = scrape(services, service, Accept=OPENMETRICS).decode()
    assert text.endswith("# EOF\n")
    assert len(list(parse_openmetrics(text))) > 10  # type: ignore[no-untyped-call]


def test_all_three_services_count_the_same_rounds(services: dict[str, Process]) -> None:
    series = {
        "participant": 'fedround_participant_rounds_total{outcome="completed"} 3.0',
        "coordinator": 'fedround_coordinator_rounds_total{outcome="completed"} 3.0',
        "aggregator": 'fedround_aggregator_updates_total{outcome="accepted"} 3.0',
    }
    for service, line in series.items():
        assert line in scrape(services, service).decode().splitlines()


@pytest.mark.parametrize("service", SERVICES)
def test_no_id_and_no_token_is_in_a_scrape(services: dict[str, Process], service: str) -> None:
    text = re.sub(r"^fedround_run_info.*", "", scrape(services, service).decode(), flags=re.MULTILINE)  # a run's id is no secret
    assert re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", text) is None


def test_probes_and_scrapes_are_not_counted_as_requests(services: dict[str, Process]) -> None:
    for path in ("/livez", "/readyz", "/status", "/metrics"):
        services["coordinator"].get("COORDINATOR_OPS_PORT", path)
    text = scrape(services, "coordinator").decode()
    routes = set(re.findall(r'http_server_request_duration_seconds_count{.*http_route="([^"]*)"', text))
    assert routes == {"/rendez_vous", "/heartbeat/{id}"}


@pytest.mark.parametrize(("path", "on"), re.findall(r"^\| `(/\w*)` \| (\w+) \|", HEALTH, re.MULTILINE))
def test_the_documented_endpoints_respond(services: dict[str, Process], path: str, on: str) -> None:
    for service, process in services.items():
        if on in ("all", service):
            assert process.get(f"{service.upper()}_OPS_PORT", path)
