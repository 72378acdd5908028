"""The charts on the cluster that the current kubeconfig names, with the image loaded: installed, scaled, robbed, uninstalled."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.processes import until
from support.tools import tool

NAMESPACE = "fedround-test"
URL = "http://fl-coordinator:8081"
SILOS = "app.kubernetes.io/component=participant"


def run(program: str, *arguments: str) -> str:
    command = [tool(program), "--namespace", NAMESPACE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def kubectl(*arguments: str) -> str:
    return run("kubectl", *arguments)


def status() -> Any:
    return json.loads(kubectl("exec", "fl-coordinator-0", "-c", "coordinator", "--", "fedround", "status", "coordinator"))


def rounds_with(count: int) -> None:
    """Wait until so many take part, and have completed two rounds."""
    until(lambda: len(status()["participants"]) == count, 60)
    began = status()["round"]
    until(lambda: status()["round"] >= began + 2, 60)
    assert status()["last_rounds"][-1]["counted"] == count


@pytest.fixture(scope="module", autouse=True)
def federation() -> Iterator[None]:
    tool("helm")
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG is not set")
    kubectl("create", "namespace", NAMESPACE)
    try:
        kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        run("helm", "install", "fl", "helm/coordinator", "--set", "rounds=0", "--wait", "--timeout", "120s")
        silo = ("silo", "helm/participant", "--set", f"coordinator.url={URL},replicaCount=10")
        run("helm", "install", *silo, "--set-json", 'options={"epoch_seconds": 0.05}', "--wait", "--timeout", "120s")
        yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.mark.timeout(300)
def test_ten_silos_train_and_helm_test_proves_it() -> None:
    rounds_with(10)
    assert "Succeeded" in run("helm", "test", "silo")
    assert "Succeeded" in run("helm", "test", "fl")


@pytest.mark.timeout(300)
def test_silos_can_become_three_and_ten_again_in_mid_training() -> None:
    for count in (3, 10):
        kubectl("scale", "statefulset", "silo-participant", f"--replicas={count}")
        rounds_with(count)


@pytest.mark.timeout(300)
def test_a_coordinator_that_is_taken_away_comes_back_in_its_round_with_the_same_silos() -> None:
    rounds_with(10)
    before = status()
    kubectl("delete", "pod", "fl-coordinator-0", "--force", "--grace-period=0")
    kubectl("wait", "--for=condition=Ready", "pod/fl-coordinator-0", "--timeout=120s")
    began = time.monotonic()
    kubectl("wait", "--for=condition=Ready", "pod", "--selector", SILOS, "--timeout=60s")
    print(f"\nready again after {time.monotonic() - began:.1f} s")
    after = status()
    assert after["round"] >= before["round"]
    assert {p["id"] for p in after["participants"]} == {p["id"] for p in before["participants"]}
    pods = json.loads(kubectl("get", "pods", "--selector", SILOS, "--output", "json"))["items"]
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0] * 10
    rounds_with(10)


@pytest.mark.timeout(300)
def test_both_are_replaced_while_they_train() -> None:
    before = status()["round"]
    for workload in ("silo-participant", "fl-coordinator"):
        kubectl("rollout", "restart", f"statefulset/{workload}")
        kubectl("rollout", "status", f"statefulset/{workload}", "--timeout=170s")
    rounds_with(10)
    assert status()["round"] > before


@pytest.mark.timeout(300)
def test_uninstalled_nothing_stays_but_the_volumes_claim() -> None:
    for release in ("silo", "fl"):
        run("helm", "uninstall", release, "--wait", "--timeout", "120s")
    until(lambda: "No resources" in kubectl("get", "pods") or not kubectl("get", "pods", "--output", "name"), 90)
    assert kubectl("get", "statefulset,service,configmap,serviceaccount", "--output", "name").split() == [
        "configmap/kube-root-ca.crt",
        "serviceaccount/default",
    ]
    assert kubectl("get", "pvc", "--output", "name").split() == ["persistentvolumeclaim/data-fl-coordinator-0"]
