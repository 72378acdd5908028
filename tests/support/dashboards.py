"""The panels, queries and alerts of the shipped files."""

import json
import re
from collections.abc import Iterator
from typing import Any

from support.prometheus import DEPLOY, RULES

ROOT = DEPLOY.parent
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))}
RULES_TEXT = "\n".join(path.read_text() for path in RULES)
ALERTS = sorted(set(re.findall(r"- alert: (\w+)", RULES_TEXT)))
RECORDED = set(re.findall(r"- record: (\S+)", RULES_TEXT))
RUNBOOKS = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "runbooks").glob("*.md")) if path.stem != "README"}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Return each panel that shows data, with its name."""
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            if panel["type"] != "row":
                yield f"{name}: {panel['title']}", panel


def queries() -> Iterator[tuple[str, str]]:
    """Return each query of each dashboard, with the name of its panel."""
    for name, panel in panels():
        for target in panel["targets"]:
            yield name, target["expr"]


def asked(query: str, *, participant: str = "a", interval: str = "5m", window: str = "10m", namespace: str = ".*") -> str:
    """Return the query that Grafana sends, with all variables replaced."""
    filled = {
        "$namespace": namespace,
        "$participant": participant,
        "$instance": ".*",
        "$__rate_interval": interval,
        "$window": window,
    }
    return re.sub(r"\$[a-zA-Z_]\w*", lambda variable: filled[variable[0]], query)


def runbook_queries() -> Iterator[tuple[str, str]]:
    """Return each block of PromQL of each runbook, with the name of the alert."""
    for name, text in RUNBOOKS.items():
        for block in re.findall(r"```promql\n(.*?)```", text, re.DOTALL):
            yield name, block
