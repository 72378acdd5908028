"""Traces of a real federation in a real Jaeger, and the links to them from a real Prometheus and from the dashboards."""

import json
import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from support.dashboards import DASHBOARDS, asked, panels
from support.jaeger import Jaeger, Span, jaeger
from support.processes import joining, running, two_services, until
from support.prometheus import DEPLOY, Prometheus, prometheus

ROUNDS = 3
SILOS = {"silo-1", "silo-2", "silo-3"}
ROUND = """
fedround-coordinator fedround.round internal
  fedround-coordinator POST /books/close client
    fedround-aggregator POST /books/{operation} server
  fedround-participant fedround.round internal
    fedround-participant check internal
    fedround-participant decode internal
    fedround-participant download internal
      fedround-participant GET /{id}/{token} client
        fedround-aggregator GET /{id}/{token} server
    fedround-participant encode internal
    fedround-participant evaluate internal
    fedround-participant train internal
      fedround-participant epoch internal
    fedround-participant upload internal
      fedround-participant POST /{id}/{token} client
        fedround-aggregator POST /{id}/{token} server
"""
"""A round that is not the first; what looks alike beside each other is there once. `epoch` is the span of the silo's own code."""
SECRETS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}|[0-9a-f]{8}/[0-9a-f]{8}")
"""Whole ids, and an id followed by a token."""


@dataclass(frozen=True)
class Seen:
    """A federation that trained until `ended`, and its stores."""

    jaeger: Jaeger
    prometheus: Prometheus
    logs: str
    began: float
    ended: float

    def rounds(self) -> dict[int, list[Span]]:
        """Return the spans of each round's trace, by number."""
        found = self.jaeger.search(service="fedround-coordinator", operation="fedround.round")
        return {root(spans).attributes["fedround.round.number"]: spans for spans in found}


def root(spans: Sequence[Span]) -> Span:
    (found,) = (span for span in spans if not span.parent)
    return found


def tree(spans: Sequence[Span], span: Span, indent: str = "") -> str:
    """Return a span and its descendants, one per line, without the heartbeats in long rounds."""
    below = {tree(spans, child, f"{indent}  ") for child in spans if child.parent == span.id and "heartbeat" not in child.name}
    return f"{indent}{span.service} {span.name} {span.kind}\n{''.join(sorted(below))}"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    directory, began = tmp_path_factory.mktemp("traces"), time.time()
    with ExitStack() as stack:
        store = stack.enter_context(jaeger(directory))
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": store.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        plan = {"COORDINATOR_ROUNDS": str(ROUNDS), "COORDINATOR_MIN_CLIENTS": str(len(SILOS))}
        services = stack.enter_context(two_services(AGGREGATOR_DATA_DIR=str(directory / "models"), **plan, **traced))
        settings = joining(services[0], "silos:TracesItself", PARTICIPANT_AFTER_FINISH="wait")
        silos = [stack.enter_context(running("participant", PARTICIPANT_NAME=name, **settings, **traced)) for name in SILOS]
        for silo in silos:
            silo.said("^finished")
        addresses = [process.ops for process in (*services, *silos)]
        targets = {"coordinator": addresses[:1], "aggregator": addresses[1:2], "participant": addresses[2:]}
        scraping = stack.enter_context(prometheus(directory, targets))
        until(lambda: scraping.value("sum(count_over_time(up[1m]) >= bool 2)") == len(addresses))
        ended = time.time()
        for process in (*silos, *services):
            assert process.end() == 0
        logs = "".join(process.log for process in (*silos, *services))
        yield Seen(store, scraping, logs, began, ended)


@pytest.mark.timeout(120)
def test_a_round_is_one_trace_over_all_processes(seen: Seen) -> None:
    rounds = seen.rounds()
    assert sorted(rounds) == [*range(ROUNDS), ROUNDS]  # and the evaluation of the final model
    spans = rounds[1]
    begun = root(spans)
    assert tree(spans, begun) == ROUND.removeprefix("\n")
    assert f'"trace_id": "{begun.trace}"' in seen.logs
    expected = {"number": 1, "outcome": "completed", "participants": 3, "samples": 6, "parameters": 3}
    assert {name: begun.attributes[f"fedround.round.{name}"] for name in expected} == expected
    parts = [span for span in spans if span.parent == begun.id and span.name == "fedround.round"]
    assert sorted(span.instance for span in parts) == sorted(SILOS)
    for part in parts:
        assert part.attributes["fedround.round.outcome"] == "completed"
        assert (part.attributes["fedround.round.samples"], part.attributes["fedround.metric.loss"]) == (2, 0.5)
    assert {span.attributes.get("error") for span in spans} == {None}
    assert {span.attributes["fedround.run.name"] for span in spans} == {"default"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_of_a_round_have_the_attributes_of_opentelemetry(method: str, seen: Seen) -> None:
    spans, template = seen.rounds()[1], "/{id}/{token}"
    clients = [span for span in spans if (span.name, span.kind) == (f"{method} {template}", "client")]
    assert len(clients) == len(SILOS)
    for client in clients:
        (server,) = (span for span in spans if span.parent == client.id)
        for span in (client, server):
            assert span.attributes["http.request.method"] == method
            assert span.attributes["http.response.status_code"] == 200
        assert client.attributes["url.template"] == server.attributes["http.route"] == template
        assert client.attributes["server.address"] == "127.0.0.1"
        assert client.attributes["url.full"].endswith("/***")
        assert server.attributes["url.path"].endswith("/***")


def test_every_documented_span_is_in_the_store_and_no_secret_is(seen: Seen) -> None:
    services = [f"fedround-{name}" for name in ("coordinator", "aggregator", "participant")]
    spans = [span for service in services for trace in seen.jaeger.search(service=service, limit=1000) for span in trace]
    page = (DEPLOY.parent / "docs" / "reference" / "spans.md").read_text().partition("\n## ")[0]
    named = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)) - {"confirm"}  # a platform of ours confirms at once
    assert named == {span.name for span in spans if " " not in span.name} - {"epoch"}
    runs = {span.attributes["fedround.run.id"] for span in spans if "fedround.run.id" in span.attributes}
    text = json.dumps([span.attributes for span in spans])
    for run in runs:  # that of a run is no secret
        text = text.replace(run, "")
    assert SECRETS.search(text) is None


def test_the_exemplars_of_the_dashboards_are_traces_in_the_store(seen: Seen) -> None:
    """Follow Grafana: from a panel's query to Prometheus, and with the provisioned label to the store."""
    sources = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "fedround.yml").read_text())["datasources"]
    (destination,) = (d for s in sources for d in s.get("jsonData", {}).get("exemplarTraceIdDestinations", ()))
    assert [source["type"] for source in sources if source["uid"] == destination["datasourceUid"]] == ["jaeger"]
    without = set()
    for name, panel in panels():
        for query in (target["expr"] for target in panel["targets"] if target.get("exemplar")):
            texts = [asked(query, participant=silo, interval="5s", window="30s") for silo in SILOS]
            series = [found for text in texts for found in seen.prometheus.exemplars(text, seen.began, seen.ended)]
            labels = [exemplar["labels"] for found in series for exemplar in found["exemplars"]]
            for label in labels:
                assert label["span_id"] in {span.id for span in seen.jaeger.trace(label[destination["name"]])}, name
            if not labels:
                without.add(name)
    assert without == set(), "no trace for any dot"


def by_link(name: str, store: Jaeger, began: float, ended: float) -> list[list[Span]]:
    """Return the traces that a dashboard's link finds."""
    (pane,) = (
        json.loads(urllib.parse.parse_qs(urllib.parse.urlsplit(link["url"]).query)["panes"][0])["traces"]
        for link in DASHBOARDS[name]["links"]
        if "jaeger" in link["url"]
    )
    within = {"start": int(began * 1e6), "end": int(ended * 1e6)}
    asked_for = [{field: query[field] for field in ("service", "operation")} for query in pane["queries"]]
    return [spans for query in asked_for for spans in store.search(**query, **within)]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_link_of_a_dashboard_finds_the_traces_of_all_rounds(name: str, seen: Seen) -> None:
    found = by_link(name, seen.jaeger, seen.began, seen.ended)
    assert len(found) == ROUNDS + 1
    assert {root(spans).name for spans in found} == {"fedround.round"}


def test_the_links_find_the_rounds_of_a_platform_in_one_process(tmp_path: Path) -> None:
    began = time.time()
    with jaeger(tmp_path) as store:
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": store.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with running("platform", COORDINATOR_ROUNDS="2", **traced) as platform:
            silo = {
                "PARTICIPANT_COORDINATOR_URL": platform.url("COORDINATOR_PORT"),
                "PARTICIPANT_CLASS": "fedround.demo:HousePrices",
            }
            with running("participant", **silo, **traced) as participant:
                assert participant.wait() == 0
            assert platform.end() == 0
        for name in DASHBOARDS:
            found = by_link(name, store, began, time.time())
            numbers = sorted(root(spans).attributes["fedround.round.number"] for spans in found)
            assert numbers[:2] == [0, 1]
            assert {root(spans).service for spans in found} == {"fedround-platform"}
