"""The charts, rendered by Helm 3 and 4."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from support.tools import tool
from support.venvs import ROOT

HELM = ROOT / "helm"
HELMS = ("helm", "helm3")
"""Helm 4, and the name of Helm 3.17 if both are installed."""
URL = "coordinator.url=http://fl-coordinator:8081"
REQUIRED: Mapping[str, list[str]] = {"coordinator": [], "participant": [URL]}
CUSTOM = {
    "monitoring.coreos.com": "github.com/prometheus-operator/prometheus-operator@v0.85.0/example/prometheus-operator-crd",
    "cert-manager.io": "github.com/cert-manager/cert-manager@v1.19.1/deploy/crds",
    "gateway.networking.k8s.io": "sigs.k8s.io/gateway-api@v1.4.0/config/crd/standard",
}
"""A Go module, and a directory in it, with the definitions of resources that are not Kubernetes' own."""
Object = Mapping[str, Any]
Objects = Mapping[tuple[str, str], Object]
"""Objects by kind and name."""


def helm(*arguments: str, program: str = "helm") -> str:
    done = subprocess.run([tool(program), *arguments], capture_output=True, text=True, cwd=HELM, check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


def rendered(chart: str | Path, *settings: str, values: Path | None = None, release: str = "fl", program: str = "helm") -> Objects:
    """Render a chart. A setting is a `--set`, or a `--set-json` if its value looks like JSON."""
    arguments = [
        argument for setting in settings for argument in ("--set-json" if re.search(r'=[{\["]', setting) else "--set", setting)
    ]
    arguments += ["--values", str(values)] if values else []
    objects = list(
        filter(None, yaml.safe_load_all(helm("template", release, str(chart), "--namespace=default", *arguments, program=program)))
    )
    named = {(found["kind"], found["metadata"]["name"]): found for found in objects}
    assert len(named) == len(objects), "two objects have the same kind and name"
    return named


def pod(objects: Objects) -> Any:
    (workload,) = [found for (kind, _), found in objects.items() if kind in ("StatefulSet", "Deployment")]
    return workload["spec"]["template"]["spec"]


def pods(objects: Objects) -> Iterator[Any]:
    yield pod(objects)
    yield from (found["spec"] for (kind, _), found in objects.items() if kind == "Pod")


def variables(objects: Objects) -> dict[str, str]:
    """Return the variables of the ConfigMaps."""
    maps = [found["data"] for (kind, name), found in objects.items() if kind == "ConfigMap" and not name.endswith("-dashboards")]
    return {name: value for found in maps for name, value in found.items()}


def is_custom(found: Object) -> bool:
    return found["apiVersion"].partition("/")[0] in CUSTOM


def custom(found: Object) -> Path:
    """Return the file with the definition of a custom resource."""
    module, directory = re.match(r"(.*@[^/]*)/(.*)", CUSTOM[found["apiVersion"].partition("/")[0]]).groups()  # type: ignore[union-attr]
    done = subprocess.run([tool("go"), "mod", "download", "-json", module], capture_output=True, text=True, cwd="/", check=True)
    (path,) = Path(json.loads(done.stdout)["Dir"], directory).glob(f"*_{found['kind'].lower()}s.yaml")
    return path


def with_dependencies(chart: Path, directory: Path, program: str = "helm") -> Path:
    """Copy a chart and its siblings into a directory, and build its dependencies there."""
    copied = directory / "helm"
    shutil.copytree(HELM, copied, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
    if not chart.is_relative_to(HELM):
        shutil.copytree(chart, copied / chart.name)
    helm("dependency", "build", "--skip-refresh", str(copied / chart.name), program=program)
    return copied / chart.name
