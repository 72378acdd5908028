"""The charts, rendered: what comes out is valid, says what was asked for, and nothing else."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedround.settings import AggregatorSettings, CoordinatorSettings, ParticipantSettings
from support.tools import tool
from support.venvs import python

ROOT = Path(__file__).parent.parent.parent
CASES = sorted(path.relative_to(ROOT / "helm") for path in (ROOT / "helm").glob("*/ci/*-values.yaml"))
VALIDATE = "kubernetes-validate==1.37.0"
HELMS = ("helm", "helm3")
"""Helm 4, and Helm 3.17 under the name that those give it who have both."""
CUSTOM = {
    "monitoring.coreos.com": "github.com/prometheus-operator/prometheus-operator@v0.85.0/example/prometheus-operator-crd",
    "gateway.networking.k8s.io": "sigs.k8s.io/gateway-api@v1.4.0/config/crd/standard",
}
"""Where the definitions of resources that are not Kubernetes' own are: a Go module, and a directory in it."""
URL = "coordinator.url=http://fl-coordinator:8081"
Object = Mapping[str, Any]


def helm(*arguments: str, program: str = "helm") -> str:
    done = subprocess.run([tool(program), *arguments], capture_output=True, text=True, cwd=ROOT / "helm", check=False)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


def rendered(chart: str, *settings: str, values: Path | None = None, program: str = "helm") -> dict[tuple[str, str], Object]:
    """The objects of a chart, by kind and name."""
    arguments = [argument for setting in settings for argument in ("--set-json" if "={" in setting else "--set", setting)]
    arguments += ["--values", str(values)] if values else []
    objects = filter(None, yaml.safe_load_all(helm("template", "fl", chart, *arguments, program=program)))
    return {(found["kind"], found["metadata"]["name"]): found for found in objects}


def pod(objects: Mapping[tuple[str, str], Object]) -> Any:
    (workload,) = [found for (kind, _), found in objects.items() if kind in ("StatefulSet", "Deployment")]
    return workload["spec"]["template"]["spec"]


def pods(objects: Mapping[tuple[str, str], Object]) -> Iterator[Any]:
    yield pod(objects)
    yield from (found["spec"] for (kind, _), found in objects.items() if kind == "Pod")


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_chart_renders_the_same_each_time_with_either_helm_and_lints(case: Path, program: str) -> None:
    chart = str(case.parts[0])
    assert rendered(chart, values=case) == rendered(chart, values=case, program=program)
    helm("lint", chart, "--strict", "--values", str(case), program=program)


@pytest.mark.parametrize("version", ["1.28", "1.37"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kubernetes_takes_what_is_rendered(case: Path, version: str) -> None:
    objects = [found for found in rendered(str(case.parts[0]), values=case).values() if group(found) not in CUSTOM]
    program = (
        "import json, sys, kubernetes_validate as k\n"
        f"for found in json.load(sys.stdin): k.validate(found, {version!r}, strict=True)"
    )
    in_its_own_environment(program, objects)


@pytest.mark.parametrize("chart", ["coordinator", "participant"])
def test_what_is_not_kubernetes_own_is_as_its_makers_define_it(chart: str) -> None:
    objects = [found for found in rendered(chart, values=Path(chart, "ci", "full-values.yaml")).values() if group(found) in CUSTOM]
    assert {found["kind"] for found in objects} == {
        "coordinator": {"PodMonitor", "PrometheusRule", "HTTPRoute"},
        "participant": {"PodMonitor"},
    }[chart]
    program = (
        "import json, sys, jsonschema as j\n"
        "for found, schema in json.load(sys.stdin):\n"
        "    for error in j.Draft7Validator(schema).iter_errors(found): sys.exit(f'{error.json_path}: {error.message}')"
    )
    in_its_own_environment(program, [(found, definition(found)) for found in objects])


def group(found: Object) -> str:
    return str(found["apiVersion"].partition("/")[0])


def definition(found: Object) -> Any:
    """The schema of a custom resource, in which every key that it does not name is wrong."""
    module, directory = re.match(r"(.*@[^/]*)/(.*)", CUSTOM[group(found)]).groups()  # type: ignore[union-attr]
    done = subprocess.run([tool("go"), "mod", "download", "-json", module], capture_output=True, text=True, cwd="/", check=True)
    (path,) = Path(json.loads(done.stdout)["Dir"], directory).glob(f"*_{found['kind'].lower()}s.yaml")
    (version,) = [v for v in yaml.safe_load(path.read_text())["spec"]["versions"] if found["apiVersion"].endswith(f"/{v['name']}")]
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    match schema:
        case {"properties": properties} if set(properties) != {"apiVersion", "kind", "metadata"}:
            return schema | {"properties": {key: closed(inner) for key, inner in properties.items()}, "additionalProperties": False}
        case {"items": items}:
            return schema | {"items": closed(items)}
    return schema


def in_its_own_environment(program: str, objects: Any) -> None:
    done = subprocess.run([python(VALIDATE), "-c", program], input=json.dumps(objects), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pod_may_run_where_pod_security_is_restricted(case: Path) -> None:
    for spec in pods(rendered(str(case.parts[0]), values=case)):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        for container in spec["containers"]:
            if container["image"].endswith(("fedround:0.1",)):
                context = container["securityContext"]
                assert not context["allowPrivilegeEscalation"]
                assert context["readOnlyRootFilesystem"]
                assert context["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(
    ("chart", "setting", "complaint"),
    [
        ("participant", "replicas=3", "replicas"),
        ("participant", "replicaCount=many", "replicaCount"),
        ("participant", "kind=DaemonSet", "kind"),
        ("participant", "settings.hearbeat_period=1s", "hearbeat_period"),
        ("participant", "settings.ops_port=1", "has a value of its own"),
        ("participant", "coordinator.url=", "coordinator.url is required"),
        ("coordinator", "replicaCount=2", "replicaCount"),
        ("coordinator", "aggregator.settings.port=1", "the chart sets this one itself"),
        ("coordinator", "ingress.enabled=true", "coordinatorHost and aggregatorHost are required"),
        ("coordinator", "token.tokensKey=tokens", "of which token.existingSecret"),
    ],
)
def test_nonsense_is_refused_and_named(chart: str, setting: str, complaint: str, program: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rendered(chart, *([URL] if chart == "participant" else []), setting, program=program)


def test_silos_outside_need_the_aggregators_address() -> None:
    hosts = ("ingress.enabled=true", "ingress.coordinatorHost=a.example.org", "ingress.aggregatorHost=b.example.org")
    with pytest.raises(ValueError, match=r"aggregator\.url is required"):
        rendered("coordinator", *hosts)
    assert ("Ingress", "fl-coordinator") in rendered("coordinator", *hosts, "aggregator.url=https://b.example.org")


def test_what_is_optional_is_off_by_default() -> None:
    assert {kind for kind, _ in rendered("participant", URL)} == {"ServiceAccount", "ConfigMap", "Service", "StatefulSet", "Pod"}
    platform = rendered("coordinator")
    assert {kind for kind, _ in platform} == {"ServiceAccount", "ConfigMap", "Service", "StatefulSet", "Pod"}
    assert {name for kind, name in platform if kind == "Service"} == {"fl-coordinator", "fl-aggregator"}


@pytest.mark.parametrize("drain", [1, 30, 600])
def test_a_pod_is_given_its_drain_and_ten_seconds(drain: int) -> None:
    objects = rendered("participant", URL, f"drainSeconds={drain}")
    assert objects["ConfigMap", "fl-participant"]["data"]["PARTICIPANT_DRAIN_TIMEOUT"] == f"{drain}s"
    assert pod(objects)["terminationGracePeriodSeconds"] == drain + 10


def test_the_three_probes_differ_and_start_leaves_time_for_imports() -> None:
    (container,) = pod(rendered("participant", URL, "startupSeconds=60"))["containers"]
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] == 60
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_replicas_are_left_to_the_autoscaler() -> None:
    objects = rendered("participant", URL, "autoscaling.enabled=true")
    assert "replicas" not in objects["StatefulSet", "fl-participant"]["spec"]


def test_every_variable_that_is_set_is_a_setting() -> None:
    known = {row.variable for cls in (ParticipantSettings, CoordinatorSettings, AggregatorSettings) for row in cls.rows()}
    for case in CASES:
        objects = rendered(str(case.parts[0]), values=case)
        names = {name for (kind, _), found in objects.items() if kind == "ConfigMap" for name in found.get("data", {})}
        names |= {variable["name"] for container in pod(objects)["containers"] for variable in container.get("env", [])}
        ours = {name for name in names if name.startswith(("PARTICIPANT_", "COORDINATOR_", "AGGREGATOR_"))}
        assert ours <= known


@pytest.mark.parametrize("chart", ["coordinator", "participant"])
def test_every_value_is_used(chart: str) -> None:
    templates = "".join(path.read_text() for path in (ROOT / "helm" / chart / "templates").rglob("*") if path.is_file())

    def unused(values: Object, way: tuple[str, ...] = ()) -> Iterator[str]:
        for key, value in values.items():
            if not re.search(rf"\.{key}\b", templates):
                yield ".".join((*way, key))
            # A map that is handed on as a whole is Kubernetes' own.
            elif isinstance(value, dict) and not re.search(rf"toYaml .*\.{key}\b|with \S*\.{key} }}}}[^}}]*toYaml \.", templates):
                yield from unused(value, (*way, key))

    assert list(unused(yaml.safe_load((ROOT / "helm" / chart / "values.yaml").read_text()))) == []


def test_what_is_made_from_something_else_is_as_it_is_made() -> None:
    tool("helm")
    done = subprocess.run([sys.executable, "tools/charts.py", "--check"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("overlay", ["demo", "production"])
def test_an_overlay_is_in_a_namespace_that_is_restricted(overlay: str) -> None:
    path = str(ROOT / "k8s" / "overlays" / overlay)
    done = subprocess.run([tool("kubectl"), "kustomize", path], capture_output=True, text=True, check=True)
    objects = list(yaml.safe_load_all(done.stdout))
    (namespace,) = [found for found in objects if found["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {found["metadata"].get("namespace") for found in objects if found is not namespace} == {"fedround"}
