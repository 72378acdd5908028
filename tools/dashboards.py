"""Write deploy/grafana/dashboards/*.json from deploy/grafana/sources/*.toml, for Compose and chart. `--check`: are they up to date?

No query may return more than 50 series, and no table more than 200 rows, however many participants there are.
"""

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import quote

from generated import ROOT, main

GRAFANA = ROOT / "deploy" / "grafana"
SOURCES = sorted((GRAFANA / "sources").glob("*.toml"))
PROMETHEUS = {"type": "prometheus", "uid": "$datasource"}
KEEP = "${datasource:queryparam}&${namespace:queryparam}&${window:queryparam}"
"""Parameters that a link passes to another dashboard."""
WINDOWS = ("5m", "10m", "30m", "1h", "6h", "1d")
WINDOW = "10m"
"""Default window of panels that count. Rounds take seconds in one federation and hours in another."""
SERVICES = ("fedround-coordinator", "fedround-platform")
"""The services that begin the traces of rounds: a coordinator alone, or together with an aggregator."""
TRACES: Mapping[str, list[Mapping[str, object]]] = {
    # Jaeger's search requires one service. If the store does not know it, the result is empty.
    "jaeger": [{"queryType": "search", "service": service, "operation": "fedround.round"} for service in SERVICES],
    "tempo": [
        {
            "queryType": "traceql",
            "query": f'{{ name = "fedround.round" && resource.service.name =~ "{"|".join(SERVICES)}" }}',
            "tableType": "traces",
        }
    ],
}
"""Queries for the traces of rounds, by kind of data source. Each kind has its own variable, because the queries differ."""
SHORT = {
    "<of>": 'namespace=~"$namespace", instance=~"$instance"',
    "<named>": 'and on (namespace, job, instance) fedround_participant_info{namespace=~"$namespace", name="$participant"}',
}
"""Abbreviations in queries. They select a participant's series by name, scraped or pushed, across restarts. `instance` alone may
select another participant that got the same address. It saves Prometheus from reading the series of all participants."""
LETTERS = "ABCDEFGHIJKLMNOP"
STAT = {"width": 4, "height": 4}
Json = dict[str, Any]


def dashboard(name: str, source: Json) -> Json:
    """Return a dashboard in Grafana's format."""
    others = {path.stem: f"/d/fedround-{path.stem}?{KEEP}" for path in SOURCES if path.stem != name}
    links = [{"title": f"fedround {other}", "url": url, "keepTime": True} for other, url in others.items()]
    links += [{"title": f"Traces of rounds ({kind.capitalize()})", "url": traces(kind), "keepTime": False} for kind in TRACES]
    asked = {"namespace": "label_values(fedround_build_info, namespace)"} | source.get("variables", {})
    return {
        "uid": f"fedround-{name}",
        "title": f"fedround {name}",
        "description": source["description"],
        "tags": ["fedround"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "link", **link} for link in links],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Metrics", "type": "datasource", "query": "prometheus"},
                *({"name": kind, "label": kind.capitalize(), "type": "datasource", "query": kind} for kind in TRACES),
                *(variable(label, query) for label, query in asked.items()),
                window(),
            ]
        },
        "annotations": {"list": []},
        "panels": list(placed(source["rows"])),
    }


def variable(name: str, query: str) -> Json:
    """Return a variable with a query. Without namespaces, as in Compose, `All` matches the empty one."""
    found: Json = {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": PROMETHEUS,
        "query": query,
        "refresh": 2,
    }
    if name == "namespace":
        found |= {"includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    if name == "instance":  # all that the participant had in the time that is shown
        found |= {"hide": 2, "multi": True, "includeAll": True, "current": {"text": "All", "value": "$__all"}}
    return found


def window() -> Json:
    """Return the choice of windows in Grafana's format."""
    options = [{"text": length, "value": length, "selected": length == WINDOW} for length in WINDOWS]
    return {
        "name": "window",
        "label": "Count over",
        "type": "interval",
        "query": ",".join(WINDOWS),
        "options": options,
        "current": {"text": WINDOW, "value": WINDOW},
        "refresh": 2,
        "auto": False,
    }


def traces(kind: str) -> str:
    """Return the URL at which Explore shows the traces of rounds in the dashboard's time range."""
    datasource = f"${{{kind}}}"
    source = {"type": kind, "uid": datasource}
    queries = [{"refId": letter, "datasource": source, **query} for letter, query in zip(LETTERS, TRACES[kind], strict=False)]
    pane = {"datasource": datasource, "queries": queries, "range": {"from": "${__from}", "to": "${__to}"}}
    return f"/explore?schemaVersion=1&panes={quote(json.dumps({'traces': pane}), safe='${}')}"


def placed(rows: list[Json]) -> Iterator[Json]:
    """Yield panels from left to right, below the heading of their row."""
    number, y = 1, 0
    for row in rows:
        grid = {"x": 0, "y": y, "w": 24, "h": 1}
        yield {"id": number, "type": "row", "title": row["title"], "collapsed": False, "panels": [], "gridPos": grid}
        number, y, x, below = number + 1, y + 1, 0, 0
        for source in row["panels"]:
            size = {"width": 8, "height": 8} | (STAT if source.get("kind") == "stat" else {}) | source
            if x + size["width"] > 24:
                x, y, below = 0, y + below, 0
            yield panel(source) | {"id": number, "gridPos": {"x": x, "y": y, "w": size["width"], "h": size["height"]}}
            number, x, below = number + 1, x + size["width"], max(below, size["height"])
        y += below


def panel(source: Json) -> Json:
    """Return a panel in Grafana's format."""
    kind = source.get("kind", "timeseries")
    defaults: Json = {"unit": source["unit"]}
    if kind == "timeseries" and source.get("stacked"):
        defaults["custom"] = {"fillOpacity": 30, "stacking": {"mode": "normal"}}
    elif "histogram_quantile" in str(source["queries"]):
        defaults["custom"] = {"spanNulls": True}  # where no round ends, there is no duration
    if texts := source.get("texts"):
        defaults["mappings"] = [{"type": "value", "options": {str(value): {"text": text} for value, text in enumerate(texts)}}]
    if kind == "table":
        link = f"/d/fedround-participant?{KEEP}&var-participant=${{__data.fields.participant}}"
        defaults["links"] = [{"title": "This participant", "url": link}]
    targets = [target(kind, letter, query) for letter, query in zip(LETTERS, source["queries"], strict=False)]
    transformations, overrides = columns(source["queries"]) if kind == "table" else ([], [])
    return {
        "type": kind,
        "title": source["title"],
        "description": source["description"],
        "datasource": PROMETHEUS,
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "targets": targets,
        "transformations": transformations,
    }


def columns(queries: list[Json]) -> tuple[list[Json], list[Json]]:
    """Merge queries into a table: a row for each set of labels, and a column for each query with a legend."""
    if len(queries) == 1:
        return [{"id": "organize", "options": {"excludeByName": {"Time": True}}}], []
    values = {f"Value #{letter}": query for letter, query in zip(LETTERS, queries, strict=False)}
    hidden = ["Time", *(value for value, query in values.items() if not query["legend"])]
    names = {value: query["legend"] for value, query in values.items() if query["legend"]}
    organize = {"excludeByName": dict.fromkeys(hidden, True), "renameByName": names}
    overrides = [
        {"matcher": {"id": "byName", "options": query["legend"]}, "properties": [{"id": "unit", "value": query["unit"]}]}
        for query in queries
        if "unit" in query
    ]
    return [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}], overrides


def target(kind: str, letter: str, source: Json) -> Json:
    """Return a query in Grafana's format. A query of a histogram of durations includes its exemplars, unless it has none."""
    instant = kind in ("bargauge", "stat", "table")
    return {
        "refId": letter,
        "datasource": PROMETHEUS,
        "expr": reduce(lambda query, short: query.replace(*short), SHORT.items(), source["query"]),
        "legendFormat": source.get("legend", ""),
        "instant": instant,
        "range": not instant,
        "format": "table" if kind == "table" else "time_series",
        "exemplar": source.get("exemplar", "_seconds_bucket{" in source["query"]),
    }


def dashboards() -> Iterator[tuple[Path, str]]:
    """Yield each dashboard file with its content."""
    for path in SOURCES:
        text = json.dumps(dashboard(path.stem, tomllib.loads(path.read_text())), indent=1) + "\n"
        yield GRAFANA / "dashboards" / f"{path.stem}.json", text


if __name__ == "__main__":
    sys.exit(main(dashboards()))
