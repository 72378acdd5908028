"""What of the charts and of k8s/ is made from something else: `tools/charts.py` makes it, `--check` says what is old.

The rules and dashboards in a chart are those of deploy/. A chart's schema follows from its values: each has the type of its
default, and there are no others. The tables in helm/README.md are the values with their comments. k8s/ is the charts, rendered.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedround.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings, Settings

ROOT = Path(__file__).parent.parent
HELM = ROOT / "helm"
CHARTS = ("coordinator", "participant")
COPIED = {"rules": "prometheus/rules/*.yml", "dashboards": "grafana/dashboards/*.json"}
ENUMS = {
    "kind": ["StatefulSet", "Deployment"],
    "afterFinish": ["wait", "exit"],
    "image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "service.type": ["ClusterIP", "NodePort", "LoadBalancer"],
}
FREE = {"resources", "podSecurityContext", "securityContext", "labels", "annotations"}
"""What is Kubernetes' own, and for it to check, though our default is not empty."""
SETTINGS: Mapping[tuple[str, str], type[Settings]] = {
    ("coordinator", "coordinator.settings"): CoordinatorSettings,
    ("coordinator", "aggregator.settings"): AggregatorSettings,
    ("participant", "settings"): ParticipantSettings,
}
URL = "http://fl-coordinator:8081"
RENDERED = {
    "base/coordinator.yaml": ("fl", "coordinator", []),
    "base/participant.yaml": ("silo", "participant", [f"coordinator.url={URL}"]),
}
COMMENT = re.compile(r"^# (.*)$")
KEY = re.compile(r"^(\w+):")


def main() -> int:
    """Write, or with `--check` compare; 1 where something is old."""
    old = []
    for path, text in made():
        if not path.exists() or path.read_text() != text:
            old.append(path)
            if "--check" not in sys.argv:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    for path in old if "--check" in sys.argv else ():
        print(f"{path.relative_to(ROOT)} is old: run tools/charts.py")
    return int(bool(old) and "--check" in sys.argv)


def made() -> Iterator[tuple[Path, str]]:
    """Each file with what belongs into it. The schemas come before what helm renders, which looks at them."""
    for kind, pattern in COPIED.items():
        for source in sorted((ROOT / "deploy").glob(pattern)):
            yield HELM / "coordinator" / "files" / kind / source.name, source.read_text()
    for chart in CHARTS:
        values = yaml.safe_load((HELM / chart / "values.yaml").read_text())
        schema = {"$schema": "http://json-schema.org/draft-07/schema#", **of(values)}
        schema["properties"]["global"] = {"type": "object"}  # helm's own
        for (of_chart, path), cls in SETTINGS.items():
            if of_chart == chart:
                *way, last = path.split(".")
                within = schema["properties"][way[0]]["properties"] if way else schema["properties"]
                names = {row.name.rstrip("_"): {"type": ["string", "number", "boolean"]} for row in cls.rows()}
                within[last] = {"type": "object", "properties": names, "additionalProperties": False}
        yield HELM / chart / "values.schema.json", json.dumps(schema, indent=2) + "\n"
    yield HELM / "README.md", readme()
    for name, (release, chart, settings) in RENDERED.items():
        yield ROOT / "k8s" / name, rendered(release, chart, settings)


def of(value: Any, path: str = "") -> dict[str, Any]:
    """The schema of a value."""
    if path in ENUMS:
        return {"enum": ENUMS[path]}
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer", "minimum": 0}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
        case {} if not value or path.rpartition(".")[2] in FREE:
            return {"type": "object"}
    properties = {key: of(inner, f"{path}.{key}".lstrip(".")) for key, inner in value.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def readme() -> str:
    """helm/README.md with its tables as they are to be."""
    text = (HELM / "README.md").read_text()
    for chart in CHARTS:
        begin, end = f"<!-- made by tools/charts.py: {chart} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(table(chart)) + "\n" + end + rest.partition(end)[2]
    return text


def table(chart: str) -> Iterator[str]:
    """The values of a chart, each with its default and the comment above it."""
    source = (HELM / chart / "values.yaml").read_text()
    values: Mapping[str, Any] = yaml.safe_load(source)
    yield "| value | default | |"
    yield "| --- | --- | --- |"
    comment: list[str] = []
    for line in source.splitlines():
        if found := COMMENT.match(line.strip()):
            comment.append(found[1])
        elif key := KEY.match(line):
            default = json.dumps(values[key[1]])
            yield f"| `{key[1]}` | `{default}` | {' '.join(comment)} |"
            comment = []
        elif line.strip():
            # What is said within belongs to the whole, whose row is there already.
            comment = []


def rendered(release: str, chart: str, settings: list[str]) -> str:
    command = ["helm", "template", release, str(HELM / chart), "--no-hooks", "--skip-tests"]
    for setting in settings:
        command += ["--set", setting]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kustomize")
    lines = (line.rstrip() for line in text.splitlines() if not line.strip().startswith("helm.sh/chart:"))
    return "# Made by tools/charts.py from the chart.\n" + "\n".join(line for line in lines if line) + "\n"


if __name__ == "__main__":
    sys.exit(main())
