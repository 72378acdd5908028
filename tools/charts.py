"""Write the generated files of the charts and of k8s/; with `--check`, list those that are out of date.

- A chart has the version of the project.
- The rules and dashboards in a chart come from deploy/.
- The helpers that both charts need come from helm/common.tpl. A chart contains its own copy, so it is complete without the other.
- A chart's schema follows from its values: each has the type of its default, or the one defined here. Others are refused.
- `_defaults.tpl` repeats the defaults for values of an older release, and lists the values that may be templates.
- The tables in helm/README.md are the values with their comments.
- k8s/ is the rendered charts.
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
from typing import Any, Literal, get_args, get_origin

import yaml
from annotated_types import Le
from pydantic.fields import FieldInfo

from fedround.common.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Row, Settings
from generated import ROOT, main

HELM = ROOT / "helm"
CHARTS = ("coordinator", "participant")
UMBRELLA = "fedround"
COPIED = {"rules": "prometheus/rules/*.yml", "dashboards": "grafana/dashboards/*.json"}
URL_OR_TEMPLATE = {"pattern": "^(https?://.+|.*[{][{].*)?$"}
NONSENSE: Mapping[str, Mapping[str, Any]] = {
    "kind": {"enum": ["StatefulSet", "Deployment"]},
    "afterFinish": {"enum": ["wait", "exit"]},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.tag": {"type": ["string", "integer"], "pattern": r"^(\w[\w.-]{0,127})?$", "minimum": 0},
    "image.digest": {"pattern": "^(sha256:[0-9a-f]{64})?$"},
    "imagePullSecrets": {"items": {"$ref": "#/definitions/secret"}},
    "global.imagePullSecrets": {"items": {"$ref": "#/definitions/secret"}},
    "coordinator.url": URL_OR_TEMPLATE,
    "aggregator.url": URL_OR_TEMPLATE,
    "otel.endpoint": URL_OR_TEMPLATE,
    "class": {"pattern": r"^[\w.]+:[\w.]+$"},
    "flower": {"pattern": r"^([\w.]+:[\w.]+)?$"},
    "minClients": {"minimum": 1},
    "startupSeconds": {"minimum": 2},
    "tmpSizeLimit": {"$ref": "#/definitions/quantity"},
    "persistence.size": {"$ref": "#/definitions/quantity"},
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "httpRoute.timeouts.coordinator": {"pattern": "^(([0-9]{1,5}(h|m|s|ms)){1,4})?$"},
    "httpRoute.timeouts.aggregator": {"pattern": "^(([0-9]{1,5}(h|m|s|ms)){1,4})?$"},
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
"""Restrictions of values beyond the type of their default."""
TEXTS = {
    "labels",
    "annotations",
    "commonLabels",
    "commonAnnotations",
    "podLabels",
    "podAnnotations",
    "nodeSelector",
    "resourceAttributes",
}
"""Maps of strings. Helm's `--set` may write numbers and booleans into them."""
DURATION = {"type": ["string", "number"], "pattern": r"^[0-9]+([.][0-9]*)? *(ms|s|m|h)?$", "minimum": 0}
DEFINITIONS = {
    "quantity": {"type": "string", "pattern": "^[0-9.]+([kMGT]|[KMGT]i)?$"},
    "scrape": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
    "duration": DURATION,
    "duration|never": {"anyOf": [DURATION, {"const": "never"}]},
    "size": {"type": ["string", "integer"], "pattern": r"^[0-9]+([.][0-9]*)? *([kMGT]|[KMGT]i)?B?$", "minimum": 1},
    "secret": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {"name": {"type": "string", "minLength": 1}},
            },
        ]
    },
    "number": {"type": "integer", "minimum": 0},
    # `--set` makes a string of a number with a decimal point.
    "ratio": {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "string", "pattern": "^(0*[.][0-9]*[1-9][0-9]*|0*1([.]0*)?)$"},
        ]
    },
    "decimal": {"type": ["number", "string"], "pattern": "^([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?$", "minimum": 0},
    "share|number": {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "integer", "minimum": 2},
            {"type": "string", "pattern": "^(0[.][0-9]*[1-9][0-9]*|[1-9][0-9]*([.]0*)?)$"},
        ]
    },
    "port": {"type": "integer", "minimum": 0, "maximum": 65535},
    "url": {"type": "string", **URL_OR_TEMPLATE},
    "hosts": {"type": "string"},
    "true|false": {"type": "boolean"},
    "json": {"type": "object"},
    "text": {"type": ["string", "integer"]},
}
"""Kinds of values. Those of settings have their names in `fedround.common.settings`."""
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
"""Maps that Kubernetes defines and checks, although their default is not empty."""
REMOVABLE = {"resources", "podSecurityContext", "securityContext", "labels", "annotations"}
"""Those of them that a user may remove with `null`. The others get their default back."""
SETTINGS: Mapping[tuple[str, str], type[Settings]] = {
    ("coordinator", "coordinator.settings"): CoordinatorSettings,
    ("coordinator", "aggregator.settings"): AggregatorSettings,
    ("participant", "settings"): ParticipantSettings,
}
URL = "http://fl-coordinator:8081"
RENDERED = {"coordinator": ("fl", ()), "participant": ("silo", ("--set", f"coordinator.url={URL}"))}
"""The release of each chart in k8s/base, and its arguments."""
MADE = "Made by tools/charts.py"
LINE = re.compile(r"^( *)(?:# (?P<comment>.*)|(?P<key>\w+):.*)$")


def made() -> Iterator[tuple[Path, str]]:
    """Yield each file with its content. Inputs of helm come before its outputs."""
    for kind, pattern in COPIED.items():
        for source in sorted((ROOT / "deploy").glob(pattern)):
            yield HELM / "coordinator" / "files" / kind / source.name, source.read_text()
    for path in sorted(HELM.glob("*/Chart.yaml")):
        yield path, versioned(path.read_text())
    for chart in CHARTS:
        shared = (HELM / "common.tpl").read_text().replace('"chart.', f'"{chart}.')
        yield HELM / chart / "templates" / "_common.tpl", f"{{{{/* {MADE} from helm/common.tpl. */}}}}\n\n{shared}"
        yield HELM / chart / "templates" / "_defaults.tpl", defaults(chart)
    for chart in (*CHARTS, UMBRELLA):
        yield HELM / chart / "values.schema.json", json.dumps(schema(chart), indent=2) + "\n"
    yield HELM / "README.md", readme()
    for chart, (release, arguments) in RENDERED.items():
        objects, variables = rendered(release, chart, *arguments)
        yield ROOT / "k8s" / "base" / f"{chart}.yaml", objects
        yield ROOT / "k8s" / "base" / f"{chart}.env", variables


def versioned(chart: str) -> str:
    """Return a Chart.yaml with the project's version for the chart, the image and the subcharts."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return re.sub(r"^( *version|appVersion): .*$", lambda line: f"{line[1]}: {version}", chart, flags=re.MULTILINE)


def schema(chart: str) -> dict[str, Any]:
    """Return the schema of a chart's values. Global values, and those of subcharts, are open: others read and check them."""
    properties: dict[str, Any] = {}
    used = set()
    opened = {"global", "coordinator", "silo"} if chart == UMBRELLA else {"global"}
    for path, default, comment in rows(chart):
        *way, last = path.split(".")
        within = properties
        for key in way:
            inner = {"type": "object", "additionalProperties": key in opened, "properties": {}}
            within = within.setdefault(key, inner)["properties"]
        kind = settings(SETTINGS[chart, path]) if (chart, path) in SETTINGS else {**of(default), **NONSENSE.get(path, {})}
        if last in TEXTS:
            kind["additionalProperties"] = {"type": ["string", "number", "boolean"]}
        used |= {found["$ref"] for found in (kind, kind.get("items", {}), *kind.get("properties", {}).values()) if "$ref" in found}
        within[last] = kind if "$ref" in kind else {"description": comment, **kind}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "definitions": {name: kind for name, kind in DEFINITIONS.items() if f"#/definitions/{name}" in used},
    }


def settings(cls: type[Settings]) -> dict[str, Any]:
    """Return the schema of a service's settings, without those that all services share."""
    properties = {
        row.name.rstrip("_"): of_setting(row, cls.model_fields.get(row.name))
        for row in cls.rows()
        if row.variable.startswith(cls.prefix)
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def of_setting(row: Row, field: FieldInfo | None) -> dict[str, Any]:
    """Return the schema of a setting. `field` is None for the file of a secret."""
    kind = row.kind
    if field is not None:
        if get_origin(field.annotation) is Literal:
            return {"enum": list(get_args(field.annotation))}
        if kind in ("ratio", "share", "number") and float in (field.annotation, *get_args(field.annotation)):
            kind = "ratio" if Le(1) in field.metadata else "decimal"
    return {"$ref": f"#/definitions/{kind}"} if kind in DEFINITIONS else {"type": "string"}


def defaults(chart: str) -> str:
    """Return the template file with a chart's defaults, and with the paths of the values that may be templates."""
    values: dict[str, Any] = {}
    templated = []
    for path, default, comment in rows(chart):
        *way, last = path.split(".")
        if last not in REMOVABLE or not default:
            reduce(lambda within, key: within.setdefault(key, {}), way, values)[last] = default
        if comment.endswith("May be a template."):
            templated.append(path)
    template = f"{{{{/* {MADE} from values.yaml. */}}}}\n"
    for name, content in (("defaults", values), ("templated", templated)):
        template += f'\n{{{{- define "{chart}.{name}" }}}}\n{yaml.safe_dump(content, sort_keys=False)}{{{{- end }}}}\n'
    return template


def of(default: Any) -> dict[str, Any]:
    """Return the schema of values like this one."""
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
    """Return helm/README.md with updated tables."""
    text = (HELM / "README.md").read_text()
    for chart in (*CHARTS, UMBRELLA):
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
    """Yield the values of a chart: the path of each, its default, and the comment above it."""
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
    """Return the objects of a release, and its variables, from which kustomize makes a ConfigMap with a hash in its name."""
    command = ["helm", "template", release, str(HELM / chart), "--no-hooks", "--skip-tests", *arguments]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kustomize")
    text = re.sub(r" *annotations:\n *checksum/config: \w+\n", "", text)
    lines = (line.rstrip() for line in text.splitlines() if not line.strip().startswith("helm.sh/chart:"))
    documents = re.split(r"^---\n", "\n".join(line for line in lines if line) + "\n", flags=re.MULTILINE)
    (config,) = [document for document in documents if "\nkind: ConfigMap\n" in document]
    variables = "".join(f"{name}={value}\n" for name, value in yaml.safe_load(config)["data"].items())
    made = f"# {MADE} from the chart.\n"
    return made + "---\n".join(document for document in documents if document is not config), made + variables


if __name__ == "__main__":
    sys.exit(main(made()))
