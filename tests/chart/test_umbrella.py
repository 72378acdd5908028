"""The charts as subcharts: of helm/fedround, and of a parent chart with several participants' charts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from support.charts import HELM, HELMS, Objects, helm, rendered, variables, with_dependencies

LONG = "federation-of-thirty-hospitals-in-northern-europe1"
SILOS = ("silo-north", "silo-south")
Render = Callable[..., Objects]


def renders(chart: Path, program: str) -> Render:
    return lambda *settings, release="demo": rendered(chart, *settings, release=release, program=program)


@pytest.fixture(scope="module", params=HELMS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def umbrella(program: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_dependencies(HELM / "fedround", tmp_path_factory.mktemp("umbrella"), program)


@pytest.fixture(scope="module")
def federation(umbrella: Path, program: str) -> Render:
    """helm/fedround."""
    return renders(umbrella, program)


@pytest.fixture(scope="module")
def parent(program: str, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """A parent chart of a user, with two kinds of participants."""
    (chart := tmp_path_factory.mktemp("source") / "hospitals").mkdir()
    silos = [{"name": "participant", "alias": alias, "condition": f"{alias}.enabled"} for alias in SILOS]
    dependencies = [{"name": "coordinator", "condition": "coordinator.enabled"}, *silos]
    for dependency in dependencies:
        dependency |= {"version": ">=0.1.0", "repository": f"file://../{dependency['name']}"}
    description = {"apiVersion": "v2", "name": "hospitals", "version": "1.0.0", "dependencies": dependencies}
    (chart / "Chart.yaml").write_text(json.dumps(description))
    url = {"url": "http://{{ .Release.Name }}-platform:8081"}
    platform = {"fullnameOverride": "{{ .Release.Name }}-platform"}
    values = {"coordinator": platform} | {alias: {"coordinator": url} for alias in SILOS}
    (chart / "values.yaml").write_text(json.dumps(values))
    return renders(with_dependencies(chart, tmp_path_factory.mktemp("parent"), program), program)


def test_the_umbrella_chart_is_a_federation(federation: Render, umbrella: Path, program: str) -> None:
    helm("lint", "--strict", str(umbrella), program=program)
    objects = federation("silo.replicaCount=10", "coordinator.minClients=10")
    assert variables(objects)["PARTICIPANT_COORDINATOR_URL"] == "http://demo-coordinator:8081"
    assert variables(objects)["COORDINATOR_AGGREGATOR_URL"] == "http://demo-aggregator:8082"
    assert variables(objects)["COORDINATOR_MIN_CLIENTS"] == "10"
    assert objects["StatefulSet", "demo-silo"]["spec"]["replicas"] == 10
    services = {name for kind, name in objects if kind == "Service"}
    assert {"demo-coordinator", "demo-aggregator"} <= services


def test_conditions_disable_subcharts(federation: Render) -> None:
    platform = federation("silo.enabled=false")
    silos = federation("coordinator.enabled=false", "silo.coordinator.url=https://coordinator.example.org")
    assert {name for kind, name in platform if kind == "StatefulSet"} == {"demo-coordinator"}
    assert {name for kind, name in silos if kind == "StatefulSet"} == {"demo-silo"}
    assert variables(silos)["PARTICIPANT_COORDINATOR_URL"] == "https://coordinator.example.org"


def test_global_values_reach_both_subcharts(federation: Render) -> None:
    objects = federation("global.imageRegistry=mirror.example.org", 'global.imagePullSecrets=["mirror"]')
    specs = [found["spec"]["template"]["spec"] for (kind, _), found in objects.items() if kind == "StatefulSet"]
    specs += [found["spec"] for (kind, _), found in objects.items() if kind == "Pod"]
    assert len(specs) == 4
    for spec in specs:
        assert spec["imagePullSecrets"] == [{"name": "mirror"}]
        assert {container["image"] for container in spec["containers"]} == {"mirror.example.org/fedround:0.1.0"}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["coordinator.enabled=false"], r"silo\.coordinator\.url is required"),
        (["coordinator.fullnameOverride=platform"], "set http://platform:8081"),
        (["coordinator.nameOverride=platform"], "set http://demo-platform:8081"),
        (["coordinator.tls.existingSecret=certificate"], "set https://demo-coordinator:8081"),
        (["silo.replicas=3"], "replicas"),
        (["coordinator.settings=3"], "settings"),
        (["silos.enabled=false"], "silos"),
        (["global.imageRegistry=3"], "imageRegistry"),
    ],
)
def test_unknown_values_and_participants_without_a_coordinator_are_refused(
    federation: Render, settings: list[str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        federation(*settings)


@pytest.mark.parametrize("release", ["demo", "silo", "coordinator-silo", LONG, "x" * 53])
def test_participants_find_the_coordinator_whatever_the_release_is_called(federation: Render, release: str) -> None:
    objects = federation(release=release)
    url = variables(objects)["PARTICIPANT_COORDINATOR_URL"]
    assert ("Service", url.removeprefix("http://").removesuffix(":8081")) in objects


@pytest.mark.parametrize("release", [LONG, "silo-north-silo-south"])
def test_subcharts_of_one_release_have_different_names(parent: Render, release: str) -> None:
    settings = [f"{alias}.podMonitor.enabled=true" for alias in ("coordinator", *SILOS)]
    objects = parent(*settings, "coordinator.service.type=NodePort", release=release)  # `rendered` refuses names that occur twice
    assert len([name for kind, name in objects if kind == "StatefulSet"]) == 3
    for (kind, name), found in objects.items():
        longest = {"Service": 63, "StatefulSet": 52}.get(kind, 253)
        assert len(name) <= longest
        assert all(len(value) <= 63 for value in found["metadata"]["labels"].values())


def test_a_parent_chart_names_its_coordinator_by_a_template(parent: Render) -> None:
    objects = parent()
    urls = [found["data"].get("PARTICIPANT_COORDINATOR_URL") for (kind, _), found in objects.items() if kind == "ConfigMap"]
    assert sorted(filter(None, urls)) == ["http://demo-platform:8081"] * 2
    assert ("Service", "demo-platform") in objects
    one = parent("silo-south.enabled=false", "coordinator.enabled=false")
    assert {name for kind, name in one if kind == "StatefulSet"} == {"demo-silo-north"}


def test_the_federation_may_be_a_subchart_itself(umbrella: Path, program: str, tmp_path: Path) -> None:
    (chart := tmp_path / "company" / "charts").mkdir(parents=True)
    shutil.copytree(umbrella, chart / "fedround")
    dependencies = [{"name": "fedround", "version": "0.1.0", "condition": "fedround.enabled"}]
    (chart.parent / "Chart.yaml").write_text(
        json.dumps({"apiVersion": "v2", "name": "company", "version": "1.0.0", "dependencies": dependencies})
    )
    (chart.parent / "values.yaml").write_text(json.dumps({"fedround": {"enabled": True}}))
    company = renders(chart.parent, program)
    assert variables(company())["PARTICIPANT_COORDINATOR_URL"] == "http://demo-coordinator:8081"
    assert not company("fedround.enabled=false")


def test_all_charts_have_one_version() -> None:
    charts = [yaml.safe_load(path.read_text()) for path in HELM.glob("*/Chart.yaml")]
    versions = {chart["version"] for chart in charts} | {d["version"] for chart in charts for d in chart.get("dependencies", [])}
    assert len(charts) == 3
    assert len(versions) == len({chart["appVersion"] for chart in charts}) == 1
