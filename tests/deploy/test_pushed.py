"""Pushed (OTLP) and scraped series are the same, and every dashboard and alert works with both."""

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from prometheus_client.parser import text_string_to_metric_families

from deploy.test_dashboards import busy_participant, platform_metrics
from fedround import events
from fedround.observability.bridge import Bridge
from fedround.observability.metrics.base import Metrics
from fedround.observability.metrics.participant import ParticipantMetrics
from fedround.observability.otlp import resource
from fedround.observability.pushes import Push
from support.dashboards import RULES_TEXT, asked, queries, runbook_queries
from support.http_server import Handler, Server
from support.processes import until
from support.stores import Series, Store, collector, prometheus3, series

IDS = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}
Service = tuple[Metrics, str, str]
"""A service's metrics, its kind and its instance."""


def services() -> list[Service]:
    """Return two participants and a platform after many events."""
    coordinator, aggregator = (metrics for metrics, _, _ in platform_metrics())
    exemplary = ParticipantMetrics(name="anna", exemplar=lambda: IDS)
    exemplary(events.RoundEnded(1, "completed", 0.3))
    kinds = [(busy_participant(), "participant", "participant-7"), (exemplary, "participant", "anna")]
    return [*kinds, (coordinator, "coordinator", "host"), (aggregator, "aggregator", "host")]


@contextmanager
def serving(all_of_them: Sequence[Service]) -> Iterator[dict[tuple[str, str], str]]:
    """Serve the scrapes. Yield their addresses by job and instance."""
    with ExitStack() as stack:
        found = {}
        for metrics, kind, instance in all_of_them:

            class Scraped(Handler):
                shown = metrics

                def take(self) -> None:
                    body, content_type = self.shown.scrape(self.headers.get("accept", ""))
                    self.answer(body, headers={"Content-Type": content_type})

            found[f"fedround-{kind}", instance] = stack.enter_context(Server(Scraped)).address
        yield found


@contextmanager
def pushing(all_of_them: Sequence[Service], endpoint: str) -> Iterator[None]:
    """Push all of them, like services."""
    failed: list[str] = []

    def tell(signal: str, arrived: bool) -> None:
        if not arrived:
            failed.append(signal)

    pushes = [
        Push(
            metrics.registry.collect,
            Bridge(resource(kind, instance), time.time_ns()),
            OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics"),
            0.5,
            tell,
        )
        for metrics, kind, instance in all_of_them
    ]
    try:
        yield
    finally:
        for push in pushes:
            push.stop()
        for push in pushes:
            push.join(10)
        assert not failed


def of_receiver(store: Store) -> str:
    return f"{store.url}/api/v1/otlp"


@pytest.mark.parametrize("strategy", ["UnderscoreEscapingWithSuffixes", "NoUTF8EscapingWithSuffixes", "NoTranslation"])
def test_prometheus_has_the_same_series_scraped_or_received(tmp_path: Path, strategy: str) -> None:
    found = services()
    with (
        serving(found) as targets,
        prometheus3(tmp_path / "scraping", targets=targets) as scraping,
        prometheus3(tmp_path / "receiving", strategy=strategy) as receiving,
        pushing(found, of_receiver(receiving)),
    ):
        until(lambda: len(scraping.series()) > 3000 and not receiving.series() ^ scraping.series(), 60)
        until(lambda: receiving.exemplars("fedround_participant_round_duration_seconds_bucket"))
        (exemplar,) = receiving.exemplars("fedround_participant_round_duration_seconds_bucket")[0]["exemplars"]
        assert {name: exemplar["labels"][name] for name in IDS} == IDS


def test_pushed_metrics_can_have_the_label_of_their_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the guide."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "namespace=fl")
    found: list[Service] = [(ParticipantMetrics(name="anna"), "participant", "anna")]
    with prometheus3(tmp_path / "receiving", promoted=["namespace"]) as store, pushing(found, of_receiver(store)):
        until(lambda: store.query('fedround_participant_info{namespace="fl"}'))


def rules() -> list[str]:
    """Return the query of each rule."""
    found = re.findall(r"expr: (?:\|\n)?((?:.+\n)(?: {10}.*\n)*)", RULES_TEXT)
    return [re.sub(r"\s+", " ", query).strip() for query in found]


def keep_busy(all_of_them: Sequence[Service], ended: threading.Event) -> None:
    """Increase the counters."""
    while not ended.wait(0.2):
        for metrics, kind, _ in all_of_them:
            if kind == "participant":
                metrics(events.RoundEnded(1, "completed", 0.3))
                metrics(events.PhaseEnded(1, "train", 0.2))
                metrics(events.ExchangeEnded("GET", "/rendez_vous", 200, None, 0.1, 0, 10))
            else:
                metrics(events.RequestServed("GET", "/rendez_vous", 200, 0.1))
                metrics(events.RoundCompleted(1, "", (), 0, 1, 1, 0.2, ()))


@pytest.mark.timeout(180)
def test_every_query_returns_the_same_for_pushed_metrics(tmp_path: Path) -> None:
    found, ended = services(), threading.Event()
    with serving(found) as targets, ExitStack() as stack:
        scraping = stack.enter_context(prometheus3(tmp_path / "scraping", targets=targets))
        receiving = stack.enter_context(prometheus3(tmp_path / "receiving"))
        stack.enter_context(pushing(found, of_receiver(receiving)))
        threading.Thread(target=keep_busy, args=(found, ended), daemon=True).start()
        stack.callback(ended.set)
        stores = (scraping, receiving)
        until(lambda: all(store.query("min(count_over_time(process_start_time_seconds[1m])) >= 5") for store in stores), 90)
        every = [asked(query, participant="anna", interval="1m") for _, query in [*queries(), *runbook_queries()]] + rules()
        shown = 0
        for query in dict.fromkeys(every):
            if re.search(r"\b(up|ALERTS)\b", query) or ":" in re.sub(r"\[[^]]*\]|\"[^\"]*\"", "", query):
                continue  # about scrapes, or about recorded series, whose own queries are among the rules
            until(same(query, scraping, receiving), 20)
            shown += bool(scraping.query(query))
        assert shown > 60, "or it would prove nothing"


def same(query: str, one: Store, other: Store) -> Callable[[], bool]:
    """Return a check whether two stores find the same series. A sample may be missing in one of them for a moment."""
    return lambda: one.query(query).keys() == other.query(query).keys()


def test_a_collector_exports_the_same_series(tmp_path: Path) -> None:
    found = services()
    with serving(found) as targets, collector(tmp_path) as (endpoint, shows), pushing(found, endpoint):
        scraped = {
            tuple(sorted((*each, ("job", job), ("instance", instance))))
            for (job, instance), address in targets.items()
            for each in exposed(f"http://{address}/metrics")
        }

        def pushed() -> set[Series]:
            return {each for each in exposed(shows) if ("__name__", "target_info") not in each}

        until(lambda: len(pushed()) >= len(scraped), 30)
        assert not pushed() ^ scraped


def exposed(url: str) -> set[Series]:
    """Return the series of a scrape."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {series({**sample.labels, "__name__": sample.name}) for family in families for sample in family.samples}
