"""The dashboards: they agree with their sources, queries are valid, panels have descriptions, and thousands of participants fit."""

import json
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedround import events
from fedround.http.certificates import Validity
from fedround.observability.metrics.aggregator import AggregatorMetrics
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.coordinator import CoordinatorMetrics
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.tensors.measures import statistics
from support import promql
from support.dashboards import ALERTS, DASHBOARDS, RECORDED, ROOT, RULES_TEXT, RUNBOOKS, asked, panels, queries, runbook_queries
from support.http_server import Handler, Server
from support.observed import observed
from support.processes import until
from support.prometheus import Prometheus, prometheus
from support.venvs import NotInstalled

PARTICIPANTS, SILOS = 3000, 300
IN_FULL = 60
"""Number of participants with all series. The others have only those of queries over all participants: an excess shows there.
"""
MOST_SERIES, MOST_ROWS = 50, 200
CERTIFICATE = Validity(1.7e9, 1.7e9 + 365 * 86400)
PANELS = dict(panels())
# Recorded series have no exemplars; those of single participants are on their own dashboard. Evaluations are not traced.
NO_EXEMPLARS = {"fleet: Phases of rounds", "platform: Duration of evaluations"}
MEASURED_BY_PARTICIPANTS = "Metrics of participants that are scraped or push"


def documented() -> set[str]:
    """Return the metrics of all three services."""
    return set(re.findall(r"^\| `(\w+)` \| \w+ \|", (ROOT / "docs" / "reference" / "metrics.md").read_text(), re.MULTILINE))


def made_by_code() -> set[str]:
    """Return the series of all three services."""
    return {name + suffix for name in documented() for suffix in ("", "_bucket", "_count", "_sum")}


def rule_queries() -> list[str]:
    return [
        re.sub(r"\s+", " ", inline if inline != "|" else block)
        for inline, block in re.findall(r"expr: (.+)\n((?: {10}.*\n)*)", RULES_TEXT)
    ]


def test_the_json_files_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "dashboards.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_query_is_valid_and_uses_existing_metrics() -> None:
    everywhere = [asked(query) for _, query in [*queries(), *runbook_queries()]] + rule_queries()
    try:
        found = promql.metrics(everywhere)
    except NotInstalled as error:
        pytest.skip(str(error))
    known = made_by_code() | RECORDED | {"ALERTS", "up"}
    for query, names in zip(everywhere, found, strict=True):
        assert not isinstance(names, str), f"{query}: {names}"
        assert names, query
        assert {name for name in names if not name.startswith("process_")} <= known, query


def test_no_query_matches_many_to_many_because_one_silo_pushes_two_names_or_labels() -> None:
    """Prometheus then fails for all silos. The recorded names are one for each instance."""
    everywhere = [query for _, query in (*queries(), *runbook_queries())] + rule_queries()
    assert [query for query in everywhere if re.search(r"group_left \([^)]*\) fedround_participant_info", query)] == []


@pytest.mark.parametrize("page", sorted(RUNBOOKS))
def test_the_metrics_in_runbooks_exist(page: str) -> None:
    text = re.sub("|".join(RECORDED), "", RUNBOOKS[page])
    named = set(re.findall(r"\b(?:fedround_(?:participant|coordinator|aggregator)|http_(?:client|server)_request)_\w+", text))
    assert named
    assert named <= made_by_code()


@pytest.mark.parametrize("name", PANELS)
def test_every_panel_has_a_description(name: str) -> None:
    panel = PANELS[name]
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    for datasource in [panel["datasource"], *(target["datasource"] for target in panel["targets"])]:
        assert datasource["uid"] == "$datasource"


@pytest.mark.parametrize("name", sorted({name for name, panel in PANELS.items() if "histogram_quantile" in str(panel["targets"])}))
def test_panels_of_latencies_link_to_traces(name: str) -> None:
    if PANELS[name]["fieldConfig"]["defaults"]["unit"] == "s":
        assert any(target["exemplar"] for target in PANELS[name]["targets"]) or name in NO_EXEMPLARS


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards_link_to_each_other(name: str) -> None:
    assert sorted(DASHBOARDS) == ["fleet", "participant", "platform"]
    urls = " ".join(link["url"] for link in DASHBOARDS[name]["links"])
    assert all(f"/d/fedround-{other}?" in urls for other in DASHBOARDS if other != name)
    variables = {variable["name"]: variable for variable in DASHBOARDS[name]["templating"]["list"]}
    assert {"datasource", "namespace", "window"} <= set(variables)
    assert set(re.findall(r"\${(\w+)", urls)) <= {*variables, "__from", "__to"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_dashboards_link_to_traces_in_jaeger_and_tempo(name: str) -> None:
    """Each link has the query language of its data source: one service at a time for Jaeger, TraceQL for Tempo."""
    asked: dict[str, list[dict[str, Any]]] = {}
    for link in DASHBOARDS[name]["links"]:
        if link["url"].startswith("/explore?"):
            (pane,) = json.loads(urllib.parse.parse_qs(urllib.parse.urlsplit(link["url"]).query)["panes"][0]).values()
            for query in pane["queries"]:
                assert pane["datasource"] == query["datasource"]["uid"] == f"${{{query['datasource']['type']}}}"
                asked.setdefault(query["datasource"]["type"], []).append(query)
            assert len({query["refId"] for query in pane["queries"]}) == len(pane["queries"])
    kinds = {variable["query"] for variable in DASHBOARDS[name]["templating"]["list"] if variable["type"] == "datasource"}
    assert kinds - {"prometheus"} == set(asked) == {"jaeger", "tempo"}
    services = ["fedround-coordinator", "fedround-platform"]
    assert [(query["service"], query["operation"]) for query in asked["jaeger"]] == [(name, "fedround.round") for name in services]
    (tempo,) = asked["tempo"]
    assert all(re.fullmatch(tempo["query"].split('"')[3], name) for name in services)


def test_the_fleet_dashboard_needs_no_series_of_participants() -> None:
    """All rows but the last show silos that Prometheus cannot scrape."""
    row, reads = "", set[str]()
    for panel in DASHBOARDS["fleet"]["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        asked = str(panel.get("targets", ""))
        if re.search("fedround_participant_|http_client_|process_", asked):
            assert row == MEASURED_BY_PARTICIPANTS, panel["title"]
        reads |= set(re.findall(r"fedround_coordinator_participant_\w+", asked))
    made = {name for name in documented() if name.startswith("fedround_coordinator_participant_")}
    left_out = {"seats", "missed_deadlines", "dominated_rounds_total", "certificate_not_before_timestamp_seconds"}  # alerts tell
    assert reads == made - {f"fedround_coordinator_participant_{name}" for name in left_out}


def test_a_participant_is_selected_only_by_its_name() -> None:
    """Whatever its process and address are, and however its series reached Prometheus."""
    for name, query in queries():
        if name.startswith("participant: "):
            selectors = re.findall(r"\b(?:fedround_participant|fedround_tls|http_client|process)_\w+{", query)
            by_name = query.count(
                'and on (namespace, job, instance) fedround_participant_info{namespace=~"$namespace", name="$participant"}'
            )
            assert len(selectors) == 2 * by_name, query
            assert by_name or 'participant="$participant"' in query, query


def test_no_panel_overlaps_another() -> None:
    for dashboard in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken, panel["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_the_panel_of_alerts_has_every_alert() -> None:
    assert set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+\b", PANELS["fleet: Alerts"]["targets"][0]["expr"])) == set(ALERTS)


# Thousands


def lines(metrics: Metrics, job: str, instances: int) -> Iterator[str]:
    """Yield a scrape of this many equal participants, with only some buckets of each histogram: all would be a million series."""
    body = metrics.scrape("")[0].decode()
    series = [line for line in body.splitlines() if line[0] != "#" and not re.search(r'le="(?!0\.1"|1\.0"|30\.0"|\+Inf)', line)]
    of_all = set(re.findall(r"\w+", " ".join(query for _, query in queries() if "$instance" not in query) + RULES_TEXT))
    for number in range(instances):
        labels = f'job="{job}",namespace="ns-{number % 3}",instance="{job}-{number}"'
        for line in (line.replace('name="silo"', f'name="silo-{number}"') for line in series):
            name = re.split(r"\W", line, maxsplit=1)[0]
            rest = line.removeprefix(name)
            if number < IN_FULL or name in of_all:
                yield f"{name}{{{labels},{rest[1:]}" if rest[0] == "{" else f"{name}{{{labels}}}{rest}"


def busy_participant() -> ParticipantMetrics:
    """Return a participant with every kind of failure."""
    metrics = ParticipantMetrics(name="silo", local_values=True)
    metrics.certificates.watch(lambda: dict.fromkeys(("PARTICIPANT_TLS_CERT_FILE", "PARTICIPANT_TLS_CA_FILE"), CERTIFICATE))
    weights = statistics(np.linspace(-1, 1, 32))
    facts: list[events.Fact] = [
        events.StateChanged("training", 1, draining=False),
        events.RoundJoined(1, repeated=False, traceparent=None),
        events.ContactMade(),
        events.MetricsReported(1, tuple((f"figure{n}", 0.5) for n in range(20))),
        events.UpdateMeasured(1, 1, None),
        *(events.WeightsMeasured(1, source, 1, weights) for source in ("global", "local")),
        *(events.RoundEnded(1, outcome, 0.1) for outcome in ("completed", "failed", "refused")),
        *(
            events.ExchangeEnded("GET", path, status, error, 0.1, 0, 0)
            for path in ("/rendez_vous", "/heartbeat/{id}", "/start_training/{id}", "/{id}/{token}")
            for status, error in [(401, None), (404, None), (409, None), (503, None), (None, "ConnectError"), (None, "ReadTimeout")]
        ),
        *(events.Retrying(path, reason, 1) for path in ("/heartbeat/{id}", "/{id}/{token}") for reason in ("busy", "unreachable")),
    ]
    for fact in facts:
        metrics(fact)
    return metrics


def platform_metrics() -> list[tuple[Metrics, str, int]]:
    names = [f"silo-{number}" for number in range(SILOS)]
    figures = {f"figure{n}": n / 3 for n in range(20)}
    members = tuple(events.Contribution(name, number, 0.1, figures) for number, name in enumerate(names))
    facts = [
        events.RoundCompleted(0, "", (), 0, 5, 5, 0.3, (), members),
        events.Evaluated(0, 5, (), (), (), members),
        *(events.Revoked(1, "", reason, name) for name in names for reason in ("deadline", "refused", "late")),
    ]
    now = observed(*names, facts=facts, certificate=CERTIFICATE)
    coordinator, aggregator = CoordinatorMetrics(), AggregatorMetrics()
    for metrics in (coordinator, aggregator):
        metrics.show(lambda: now)
        metrics.certificates.watch(lambda: {"COORDINATOR_TLS_CERT_FILE": CERTIFICATE})
        for route in ("/rendez_vous", "/heartbeat/{id}", "/start_training/{id}", "/{id}/{token}", "/books/{operation}"):
            for code in (200, 204, 304, 401, 404, 409, 422, 503, None):
                metrics(events.RequestServed("GET", route, code, 0.1))
    return [(coordinator, "coordinator", 3), (aggregator, "aggregator", 3)]


@pytest.fixture(scope="module")
def thousands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped thousands of participants of three federations, twice."""
    services = [*platform_metrics(), (busy_participant(), "participant", PARTICIPANTS), (ParticipantMetrics(), "new", 1)]
    body = "\n".join(line for service in services for line in lines(*service)).encode() + b"\n"

    class Scraped(Handler):
        def take(self) -> None:
            self.answer(body, headers={"Content-Type": "text/plain; version=0.0.4"})

    directory: Path = tmp_path_factory.mktemp("thousands")
    with Server(Scraped) as server, prometheus(directory, {"all": [server.address]}, interval="5s", labels=True) as found:
        until(lambda: found.value("sum(count_over_time(up[10m]))") >= 2, 150)
        yield found


@pytest.mark.timeout(240)
def test_no_query_returns_more_than_50_series_for_any_number_of_participants(thousands: Prometheus) -> None:
    assert thousands.value("count(fedround_participant_coordinator_reachable)") == PARTICIPANTS + 1
    found = {(name, query): len(thousands.query(asked(query, participant="silo-7"))) for name, query in dict.fromkeys(queries())}
    print(f"\nthe most series: {max(found.values())}")
    most = {name: MOST_ROWS if panel["type"] == "table" else MOST_SERIES for name, panel in PANELS.items()}
    assert {key: count for key, count in found.items() if count > most[key[0]]} == {}
    empty = {name for (name, _), count in found.items() if not count}
    assert len(empty) < len(PANELS) / 3, empty  # or it would prove nothing
