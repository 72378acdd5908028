"""Programs that receive metrics by OTLP: a Prometheus 3, and an OpenTelemetry Collector that exports them to a Prometheus."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.processes import at_work, free_port
from support.tools import tool

Series = tuple[tuple[str, str], ...]
"""The labels of a series, including its name. The bounds of buckets are numbers."""


def series(labels: Mapping[str, str]) -> Series:
    """Return labels that can be compared, without those that depend on the way of transport."""
    kept = {name: text for name, text in labels.items() if text and not name.startswith("otel_scope_")}
    return tuple(sorted((kept | ({"le": repr(float(kept["le"]))} if "le" in kept else {})).items()))


@dataclass(frozen=True)
class Store:
    """A Prometheus."""

    url: str
    targets: Path
    """File with the addresses to scrape."""
    labels: Mapping[str, str]
    """Labels of all scraped series."""

    def find(self, targets: Mapping[tuple[str, str], str]) -> None:
        """Scrape these addresses, by job and instance."""
        found = [
            {"targets": [address], "labels": {**self.labels, "job": job, "instance": instance}}
            for (job, instance), address in targets.items()
        ]
        new = self.targets.with_suffix(".new")
        new.write_text(json.dumps(found))
        new.rename(self.targets)

    def ask(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def series(self) -> set[Series]:
        """Return all series that it has received."""
        found = self.ask("/api/v1/series", **{"match[]": '{__name__=~".+",__name__!~"up|scrape_.+|target_info"}'})
        return {series(labels) for labels in found}

    def query(self, query: str) -> dict[Series, float]:
        found = self.ask("/api/v1/query", query=query)
        if found["resultType"] == "scalar":
            return {(): float(found["result"][1])}
        return {series(each["metric"]): float(each["value"][1]) for each in found["result"]}

    def exemplars(self, query: str) -> list[Any]:
        found: list[Any] = self.ask("/api/v1/query_exemplars", query=query, start="0", end="9999999999")
        return found


@contextmanager
def prometheus3(
    directory: Path,
    *,
    targets: Mapping[tuple[str, str], str] | None = None,
    strategy: str = "UnderscoreEscapingWithSuffixes",
    promoted: Sequence[str] = (),
    rules: Sequence[Path] = (),
    **labels: str,
) -> Iterator[Store]:
    """Run a Prometheus that receives OTLP, and scrapes an address for each job and instance.

    `promoted`: attributes of resources that become labels. `labels`: labels of all scraped series.
    """
    directory.mkdir()
    address = f"127.0.0.1:{free_port()}"
    store = Store(f"http://{address}", directory / "targets.json", labels)
    store.find(targets or {})
    scraping = [{"job_name": "all", "file_sd_configs": [{"files": [str(store.targets)]}]}]
    timing = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    otlp = {"translation_strategy": strategy, "promote_resource_attributes": promoted}
    files = {"rule_files": [str(path) for path in rules]}
    config = {"global": timing, "scrape_configs": scraping, "otlp": otlp, **files}
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        tool("prometheus3"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={address}",
        "--web.enable-otlp-receiver",
        "--enable-feature=exemplar-storage",
    ]
    with at_work(command, f"http://{address}/-/ready", directory / "log"):
        yield store


@contextmanager
def collector(directory: Path) -> Iterator[tuple[str, str]]:
    """Run an OpenTelemetry Collector. Yield the address that receives OTLP, and the one that Prometheus scrapes."""
    receives, shows = (f"127.0.0.1:{free_port()}" for _ in range(2))
    config = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": receives}}}},
        "exporters": {"prometheus": {"endpoint": shows}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"metrics": {"receivers": ["otlp"], "exporters": ["prometheus"]}},
        },
    }
    (directory / "collector.yml").write_text(json.dumps(config))
    with at_work([tool("otelcol"), f"--config=file:{directory / 'collector.yml'}"], f"http://{shows}/metrics", directory / "log"):
        yield f"http://{receives}", f"http://{shows}/metrics"
