"""Write deploy/grafana/dashboards/*.json of deploy/grafana/sources/*.toml, for compose and chart alike. `--check`: are they old?

No query may give more than 50 series, however many participants there are: it sums, or takes the top ones.
"""

import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from generated import ROOT, main

GRAFANA = ROOT / "deploy" / "grafana"
SOURCES = sorted((GRAFANA / "sources").glob("*.toml"))
PROMETHEUS = {"type": "prometheus", "uid": "$datasource"}
KEEP = "${datasource:queryparam}&${namespace:queryparam}&${window:queryparam}"
"""What a link hands on to another dashboard."""
WINDOWS = ("5m", "10m", "30m", "1h", "6h", "1d")
WINDOW = "10m"
"""Over how long panels count, to begin with: rounds take seconds here, hours there."""
TRACES: Mapping[str, Mapping[str, object]] = {
    # Its search wants to know the service.
    "jaeger": {"queryType": "search", "service": "fedround-coordinator", "operation": "fedround.round"},
    "tempo": {
        "queryType": "traceql",
        "query": '{ name = "fedround.round" && resource.service.name =~ "fedround-(coordinator|platform)" }',
        "tableType": "traces",
    },
}
"""How to ask for the traces of rounds, by the kind of data source: each has a variable of its own, as their queries differ."""
STAT = {"width": 4, "height": 4}
Json = dict[str, Any]


def dashboard(name: str, source: Json) -> Json:
    """A dashboard as Grafana reads it."""
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
    """A list that the dashboard asks for. Where there are no namespaces, as in compose, all of them is the empty one too."""
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
    return found


def window() -> Json:
    """The windows to choose from, as Grafana reads them."""
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
    """The address at which Explore shows the traces of rounds of the time that the dashboard shows."""
    datasource = f"${{{kind}}}"
    query = {"refId": "A", "datasource": {"type": kind, "uid": datasource}, **TRACES[kind]}
    pane = {"datasource": datasource, "queries": [query], "range": {"from": "${__from}", "to": "${__to}"}}
    return f"/explore?schemaVersion=1&panes={quote(json.dumps({'traces': pane}), safe='${}')}"


def placed(rows: list[Json]) -> Iterator[Json]:
    """Panels from left to right, below the heading of their row."""
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
    """A panel as Grafana reads it."""
    kind = source.get("kind", "timeseries")
    defaults: Json = {"unit": source["unit"]}
    if kind == "timeseries" and source.get("stacked"):
        defaults["custom"] = {"fillOpacity": 30, "stacking": {"mode": "normal"}}
    elif "histogram_quantile" in str(source["queries"]):
        defaults["custom"] = {"spanNulls": True}  # where no round ends, there is no duration
    if texts := source.get("texts"):
        defaults["mappings"] = [{"type": "value", "options": {str(value): {"text": text} for value, text in enumerate(texts)}}]
    if kind == "table":
        link = f"/d/fedround-participant?{KEEP}&var-instance=${{__data.fields.instance}}"
        defaults["links"] = [{"title": "This participant", "url": link}]
    targets = [target(kind, "ABCDEFGH"[index], query) for index, query in enumerate(source["queries"])]
    return {
        "type": kind,
        "title": source["title"],
        "description": source["description"],
        "datasource": PROMETHEUS,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
        "transformations": [{"id": "organize", "options": {"excludeByName": {"Time": True}}}] if kind == "table" else [],
    }


def target(kind: str, letter: str, source: Json) -> Json:
    """A query as Grafana reads it; one of a histogram of durations brings its exemplars."""
    instant = kind in ("bargauge", "stat", "table")
    return {
        "refId": letter,
        "datasource": PROMETHEUS,
        "expr": source["query"],
        "legendFormat": source.get("legend", ""),
        "instant": instant,
        "range": not instant,
        "format": "table" if kind == "table" else "time_series",
        "exemplar": "_seconds_bucket{" in source["query"],
    }


def dashboards() -> Iterator[tuple[Path, str]]:
    """Each dashboard with what belongs into it."""
    for path in SOURCES:
        text = json.dumps(dashboard(path.stem, tomllib.loads(path.read_text())), indent=1) + "\n"
        yield GRAFANA / "dashboards" / f"{path.stem}.json", text


if __name__ == "__main__":
    sys.exit(main(dashboards()))
