"""helm/fedround on a cluster: it trains to the end, and upgrades keep its values. Charts that are applied twice, as by Argo CD."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.charts import HELM, REQUIRED, custom, is_custom, rendered, with_dependencies
from support.cluster import Namespace, namespace
from support.processes import until
from support.tools import tool

pytestmark = pytest.mark.timeout(300)
Upgrade = Callable[..., str]


@pytest.fixture(scope="module")
def umbrella(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_dependencies(HELM / "fedround", tmp_path_factory.mktemp("umbrella"))


@pytest.fixture(scope="module")
def federation(umbrella: Path) -> Iterator[Namespace]:
    with namespace("fedround-umbrella") as made:
        options = ("--set", "coordinator.rounds=10", "--set-json", 'silo.options={"epoch_seconds": 0.05}')
        made.helm("install", "fl", str(umbrella), *options, "--wait", "--timeout", "120s")
        yield made


@pytest.fixture
def upgrade(federation: Namespace, umbrella: Path) -> Upgrade:
    wait = ("--reset-then-reuse-values", "--wait", "--timeout", "120s")
    return lambda *arguments: federation.helm("upgrade", "fl", str(umbrella), *wait, *arguments)


def test_a_platform_and_three_silos_train_to_the_end(federation: Namespace) -> None:
    until(lambda: federation.status["state"] == "complete", 90)
    assert federation.status["round"] == 10
    assert federation.status["last_rounds"][-1]["counted"] == 3
    assert "Succeeded" in federation.helm("test", "fl")


def test_an_upgrade_keeps_the_values_and_the_training(federation: Namespace, upgrade: Upgrade) -> None:
    upgrade("--set", "coordinator.rounds=5000,silo.replicaCount=4")
    until(lambda: len(federation.status["participants"]) == 4, 150)  # another number of shards replaces each pod
    federation.trains()
    assert 10 < federation.status["round"] < 5000
    values = yaml.safe_load(federation.helm("get", "values", "fl"))
    assert values["silo"] == {"options": {"epoch_seconds": 0.05}, "replicaCount": 4}


def test_an_upgrade_with_a_new_name_does_not_start_with_an_empty_volume(federation: Namespace, upgrade: Upgrade) -> None:
    claim = "data-fl-coordinator-0"
    renamed = ("--dry-run=server", "--set", "coordinator.fullnameOverride=platform,silo.coordinator.url=http://platform:8081")
    with pytest.raises(AssertionError, match=f"{claim} does not follow it: set persistence[.]existingClaim"):
        upgrade(*renamed)
    assert f"claimName: {claim}" in upgrade(*renamed, "--set", f"coordinator.persistence.existingClaim={claim}")
    assert "volumeClaimTemplates" in upgrade(*renamed, "--set", "coordinator.allowRename=true")


def test_a_stateful_set_of_an_older_chart_keeps_its_service(federation: Namespace) -> None:
    objects = rendered("coordinator", "persistence.enabled=false", release="older")
    older: Any = objects["StatefulSet", "older-coordinator"]
    older["spec"].update(serviceName="older-coordinator", replicas=0)
    older["metadata"]["annotations"] = {"meta.helm.sh/release-name": "older", "meta.helm.sh/release-namespace": federation.name}
    federation.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump(older))
    text = federation.helm("template", "older", "helm/coordinator", "--dry-run=server", "--set", "persistence.enabled=false")
    found = {(made["kind"], made["metadata"]["name"]): made for made in filter(None, yaml.safe_load_all(text))}
    assert found["StatefulSet", "older-coordinator"]["spec"]["serviceName"] == "older-coordinator"
    assert {name for kind, name in found if kind == "Service"} == {"older-coordinator", "older-aggregator"}


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("chart", REQUIRED)
def test_applying_a_release_twice_changes_nothing(chart: str, side: str) -> None:
    mode = f"--server-side={json.dumps(side == 'server')}"
    with namespace(f"fedround-{chart}-{side}") as made:
        objects = rendered(chart, values=Path(chart, "ci", "full-values.yaml"))
        text = yaml.safe_dump_all(found for (kind, _), found in objects.items() if kind != "Pod")  # of `helm test`
        for path in {custom(found) for found in objects.values() if is_custom(found)}:
            made.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(path))
            made.kubectl("wait", "--for=condition=Established", "--filename", str(path), "--timeout=60s")
        made.kubectl("apply", mode, "--filename", "-", stdin=text)
        command = [tool("kubectl"), "--namespace", made.name, "diff", mode, "--filename", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
