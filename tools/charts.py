"""What of the charts and of k8s/ is made from something else: `tools/charts.py` makes it, `--check` says what is old.

A chart has the version of the project. The rules and dashboards in it are those of deploy/. A chart's schema follows from its
values: each has the type of its default or what is said here, and there are no others. The tables in helm/README.md are the values
with their comments. k8s/ is the charts, rendered.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml

from fedround.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings
from generated import ROOT, main

HELM = ROOT / "helm"
CHARTS = ("coordinator", "participant")
COPIED = {"rules": "prometheus/rules/*.yml", "dashboards": "grafana/dashboards/*.json"}
NONSENSE: Mapping[str, Mapping[str, Any]] = {
    "kind": {"enum": ["StatefulSet", "Deployment"]},
    "afterFinish": {"enum": ["wait", "exit"]},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "coordinator.url": {"pattern": "^(https?://.+)?$"},
    "aggregator.url": {"pattern": "^(https?://.+)?$"},
    "otel.endpoint": {"pattern": "^(https?://.+)?$"},
    "class": {"pattern": r"^[\w.]+:[\w.]+$"},
    "flower": {"pattern": r"^([\w.]+:[\w.]+)?$"},
    "minClients": {"minimum": 1},
    "startupSeconds": {"minimum": 2},
    "tmpSizeLimit": {"$ref": "#/definitions/quantity"},
    "persistence.size": {"$ref": "#/definitions/quantity"},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "autoscaling.minReplicas": {"minimum": 1},
    "autoscaling.maxReplicas": {"minimum": 1},
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%$"},
    "networkPolicy.aggregatorPort": {"minimum": 1, "maximum": 65535},
    "tls.certificate.duration": {"$ref": "#/definitions/scrape"},
    "tls.certificate.renewBefore": {"$ref": "#/definitions/scrape"},
    "podMonitor.interval": {"$ref": "#/definitions/scrape"},
    "podMonitor.scrapeTimeout": {"$ref": "#/definitions/scrape"},
    "persistence.retentionPolicy": {"additionalProperties": {"enum": ["Retain", "Delete"]}},
}
"""What a value may be, where its default does not say it."""
DURATION = {"type": ["string", "number"], "pattern": r"^[0-9]+([.][0-9]*)? *(ms|s|m|h)?$", "minimum": 0}
DEFINITIONS = {
    "quantity": {"type": "string", "pattern": "^[0-9.]+([kMGT]|[KMGT]i)?$"},
    "scrape": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
    "duration": DURATION,
    "duration|never": {"anyOf": [DURATION, {"const": "never"}]},
    "size": {"type": ["string", "integer"], "pattern": r"^[0-9]+([.][0-9]*)? *([kMGT]|[KMGT]i)?B?$", "minimum": 1},
    "number": {"type": "integer", "minimum": 0},
    "ratio": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    # `--set` makes a string of a number with a decimal point.
    "share": {"type": ["number", "string"], "pattern": "^[0-9]+([.][0-9]*)?$", "minimum": 0},
    "share|number": {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "integer", "minimum": 2},
            {"type": "string", "pattern": "^(0[.][0-9]*[1-9][0-9]*|[1-9][0-9]*([.]0*)?)$"},
        ]
    },
    "port": {"type": "integer", "minimum": 0, "maximum": 65535},
    "url": {"type": "string", "pattern": "^https?://.+"},
    "hosts": {"type": "string"},
    "true|false": {"type": "boolean"},
    "json": {"type": "object"},
    "text|json": {"enum": ["text", "json"]},
    "debug|info|warning|error": {"enum": ["debug", "info", "warning", "error"]},
}
"""Of what kind values are; those of settings have the names that they have in `fedround.settings`."""
FREE = {
    "resources",
    "podSecurityContext",
    "securityContext",
    "labels",
    "annotations",
    "behavior",
    "updateStrategy",
    "livenessProbe",
    "readinessProbe",
    "retentionPolicy",
    "tlsConfig",
}
"""What is Kubernetes' own, and for it to check, though our default is not empty."""
SETTINGS: Mapping[tuple[str, str], type[Settings]] = {
    ("coordinator", "coordinator.settings"): CoordinatorSettings,
    ("coordinator", "aggregator.settings"): AggregatorSettings,
    ("participant", "settings"): ParticipantSettings,
}
URL = "http://fl-coordinator:8081"
RENDERED = {"coordinator": ("fl", ()), "participant": ("silo", ("--set", f"coordinator.url={URL}"))}
"""The release of each chart in k8s/base, and what its values have to say."""
LINE = re.compile(r"^( *)(?:# (?P<comment>.*)|(?P<key>\w+):.*)$")


def made() -> Iterator[tuple[Path, str]]:
    """Each file with what belongs into it. The schemas come before what helm renders, which looks at them."""
    for kind, pattern in COPIED.items():
        for source in sorted((ROOT / "deploy").glob(pattern)):
            yield HELM / "coordinator" / "files" / kind / source.name, source.read_text()
    for path in sorted(HELM.glob("*/Chart.yaml")):
        yield path, versioned(path.read_text())
    for chart in CHARTS:
        yield HELM / chart / "values.schema.json", json.dumps(schema(chart), indent=2) + "\n"
    yield HELM / "README.md", readme()
    for chart, (release, arguments) in RENDERED.items():
        objects, variables = rendered(release, chart, *arguments)
        yield ROOT / "k8s" / "base" / f"{chart}.yaml", objects
        yield ROOT / "k8s" / "base" / f"{chart}.env", variables


def versioned(chart: str) -> str:
    """A Chart.yaml with the version of the project as that of the chart, of the image, and of charts that it consists of."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return re.sub(r"^( *version|appVersion): .*$", lambda line: f"{line[1]}: {version}", chart, flags=re.MULTILINE)


def schema(chart: str) -> dict[str, Any]:
    """The values of a chart: which there are, and of what kind."""
    properties: dict[str, Any] = {"global": {"type": "object"}}  # helm's own
    used = set()
    for path, default, comment in rows(chart):
        *way, last = path.split(".")
        within = properties
        for key in way:
            within = within.setdefault(key, {"type": "object", "additionalProperties": False, "properties": {}})["properties"]
        kind = settings(SETTINGS[chart, path]) if (chart, path) in SETTINGS else {**of(default), **NONSENSE.get(path, {})}
        used |= {found["$ref"] for found in (kind, *kind.get("properties", {}).values()) if "$ref" in found}
        within[last] = kind if "$ref" in kind else {"description": comment, **kind}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "definitions": {name: kind for name, kind in DEFINITIONS.items() if f"#/definitions/{name}" in used},
    }


def settings(cls: type[Settings]) -> dict[str, Any]:
    """The settings of a service by their names, without what is set for all services at once."""
    properties = {
        row.name.rstrip("_"): {"$ref": f"#/definitions/{row.kind}"} if row.kind in DEFINITIONS else {"type": "string"}
        for row in cls.rows()
        if row.variable.startswith(cls.prefix)
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def of(default: Any) -> dict[str, Any]:
    """What a value like this one may be."""
    match default:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer", "minimum": 0}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
    return {"type": "object"}


def readme() -> str:
    """helm/README.md with its tables as they are to be."""
    text = (HELM / "README.md").read_text()
    for chart in CHARTS:
        begin, end = f"<!-- made by tools/charts.py: {chart} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(table(chart)) + "\n" + end + rest.partition(end)[2]
    return text


def table(chart: str) -> Iterator[str]:
    yield "| value | default | |"
    yield "| --- | --- | --- |"
    for path, default, comment in rows(chart):
        yield f"| `{path}` | `{json.dumps(default)}` | {comment} |"


def rows(chart: str) -> Iterator[tuple[str, Any, str]]:
    """The values of a chart: where each is, its default, and the comment above it."""
    source = (HELM / chart / "values.yaml").read_text()
    values = yaml.safe_load(source)
    way: list[str] = []
    comment = ""
    for indent, text, key in (found.groups() for line in source.splitlines() if (found := LINE.match(line))):
        if text:
            comment = f"{comment} {text}".strip()
            continue
        depth = len(indent) // 2
        if depth <= len(way) and not FREE.intersection(way[:depth]):
            way[depth:] = [key]
            default = reduce(getitem, way, values)
            if not isinstance(default, dict) or not default or key in FREE:
                yield ".".join(way), default, comment
        comment = ""


def rendered(release: str, chart: str, *arguments: str) -> tuple[str, str]:
    """The objects of a release; and its variables, of which kustomize makes a ConfigMap whose name changes with them."""
    command = ["helm", "template", release, str(HELM / chart), "--no-hooks", "--skip-tests", *arguments]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kustomize")
    text = re.sub(r" *annotations:\n *checksum/config: \w+\n", "", text)
    lines = (line.rstrip() for line in text.splitlines() if not line.strip().startswith("helm.sh/chart:"))
    documents = re.split(r"^---\n", "\n".join(line for line in lines if line) + "\n", flags=re.MULTILINE)
    (config,) = [document for document in documents if "\nkind: ConfigMap\n" in document]
    variables = "".join(f"{name}={value}\n" for name, value in yaml.safe_load(config)["data"].items())
    made = "# Made by tools/charts.py from the chart.\n"
    return made + "---\n".join(document for document in documents if document is not config), made + variables


if __name__ == "__main__":
    sys.exit(main(made()))
