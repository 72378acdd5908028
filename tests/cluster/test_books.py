"""No update is lost or counted twice, whatever the cluster does to pods: ten silos with known models."""

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from support.cluster import Namespace, namespace
from support.processes import until
from support.tools import tool

COUNT = 10
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def federation() -> Iterator[Namespace]:
    with namespace("fedround-books") as made:
        made.install_known_answers(COUNT, podDisruptionBudget={"enabled": True})
        yield made


@pytest.fixture
def books(federation: Namespace) -> Iterator[Namespace]:
    """Check after the test that training continues, and that every model consists of the ten updates of its round."""
    federation.trains()
    began = federation.status["round"]
    yield federation
    federation.trains()
    for number in range(began, federation.status["round"]):
        assert federation.model(number) == pytest.approx([number + 1.0] * COUNT, rel=1e-12)


def test_silos_that_are_scaled_down_finish_their_round(books: Namespace) -> None:
    books.kubectl("scale", "statefulset", "silo-participant", "--replicas=3")
    until(lambda: books.status["state"] == "waiting for participants: 3 of 10", 60)
    books.kubectl("scale", "statefulset", "silo-participant", f"--replicas={COUNT}")


def test_a_rolling_update_replaces_silos_one_by_one(books: Namespace) -> None:
    books.replaced("silo-participant")


def test_the_training_continues_on_a_replaced_platform(books: Namespace) -> None:
    books.replaced("fl-coordinator")


def test_a_killed_platform_continues_its_round_with_the_same_silos(books: Namespace) -> None:
    before = books.status
    books.kubectl("delete", "pod", "fl-coordinator-0", "--force", "--grace-period=0")
    books.kubectl("wait", "--for=condition=Ready", "pod/fl-coordinator-0", "--timeout=120s")
    began = time.monotonic()
    books.silos_are("Ready")
    print(f"\nready again {time.monotonic() - began:.1f} s after the platform's pod")
    assert books.status["round"] >= before["round"]
    assert {p["id"] for p in books.status["participants"]} == {p["id"] for p in before["participants"]}


def test_without_a_platform_silos_are_alive_and_not_ready(books: Namespace) -> None:
    lives = restarts(books)
    books.kubectl("scale", "statefulset", "fl-coordinator", "--replicas=0")
    books.silos_are("Ready=false")
    # None of them is ready: a budget must not keep them on a node that is to be drained.
    assert evict(books, "silo-participant-9") == "Success"
    books.kubectl("scale", "statefulset", "fl-coordinator", "--replicas=1")
    until(lambda: len(books.silos()) == COUNT, 60)
    books.silos_are("Ready")
    assert restarts(books) == lives


def test_one_silo_at_a_time_may_be_evicted(books: Namespace) -> None:
    books.silos_are("Ready")
    assert evict(books, "silo-participant-0") == "Success"
    assert "disruption budget" in evict(books, "silo-participant-1")
    until(lambda: len(books.silos()) == COUNT, 60)
    books.silos_are("Ready")


def restarts(books: Namespace) -> list[int]:
    return [pod["status"]["containerStatuses"][0]["restartCount"] for pod in books.silos()]


def evict(books: Namespace, pod: str) -> str:
    """Return the API server's response."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": books.name}}
    command = [tool("kubectl"), "create", "--raw", f"/api/v1/namespaces/{books.name}/pods/{pod}/eviction", "-f", "-"]
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=False)
    return json.loads(done.stdout)["status"] if done.returncode == 0 else done.stderr
