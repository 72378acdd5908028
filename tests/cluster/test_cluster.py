"""The charts, installed as the README shows: training, scaling, tests, uninstalling. And k8s/ without Helm."""

from collections.abc import Iterator

import pytest

from support.cluster import URL, Namespace, namespace
from support.docker import ROOT
from support.processes import until

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def charts() -> Iterator[Namespace]:
    with namespace("fedround-charts") as made:
        made.helm("install", "fl", "helm/coordinator", "--set", "rounds=0", "--wait", "--timeout", "120s")
        silo = ("silo", "helm/participant", "--set", f"coordinator.url={URL},replicaCount=10")
        made.helm("install", *silo, "--set-json", 'options={"epoch_seconds": 0.05}', "--wait", "--timeout", "120s")
        yield made


def trains_with(made: Namespace, count: int) -> None:
    until(lambda: len(made.status["participants"]) == count, 60)
    made.trains()
    assert made.status["last_rounds"][-1]["counted"] == count


def test_ten_silos_train_and_helm_test_proves_it(charts: Namespace) -> None:
    trains_with(charts, 10)
    assert {p["name"] for p in charts.status["participants"]} == {f"silo-participant-{k}" for k in range(10)}
    assert sorted(charts.shards()) == [f"{k}/10" for k in range(10)]
    for release in ("silo", "fl"):
        assert "Succeeded" in charts.helm("test", release)


def test_silos_can_become_three_and_ten_again_in_mid_training(charts: Namespace) -> None:
    for count in (3, 10):
        charts.kubectl("scale", "statefulset", "silo-participant", f"--replicas={count}")
        trains_with(charts, count)


def test_uninstalling_leaves_only_the_claim_of_the_volume(charts: Namespace) -> None:
    for release in ("silo", "fl"):
        charts.helm("uninstall", release, "--wait", "--timeout", "120s")
    until(lambda: not charts.kubectl("get", "pods", "--output", "name"), 90)
    assert charts.kubectl("get", "statefulset,service,configmap,serviceaccount", "--output", "name").split() == [
        "configmap/kube-root-ca.crt",
        "serviceaccount/default",
    ]
    assert charts.kubectl("get", "pvc", "--output", "name").split() == ["persistentvolumeclaim/data-fl-coordinator-0"]


@pytest.mark.parametrize(("overlay", "count"), [("demo", 10), ("production", 3)])
def test_without_helm_silos_train_too(overlay: str, count: int) -> None:
    made = Namespace("fedround")  # which the overlays say themselves
    path = str(ROOT / "k8s" / "overlays" / overlay)
    try:
        made.kubectl("apply", "--filename", f"{path}/namespace.yaml")
        made.kubectl("create", "secret", "generic", "fedround", "--from-literal", "token=known-to-all")
        made.kubectl("apply", "--kustomize", path)
        made.kubectl("rollout", "status", "statefulset/silo-participant", "--timeout=120s")
        trains_with(made, count)
    finally:
        made.kubectl("delete", "--kustomize", path, "--timeout=120s")
