"""A platform with certificates from a Secret, and silos that prove their names with client certificates."""

from collections.abc import Iterator

import pytest

from support.certificates import Authority
from support.cluster import Namespace, namespace
from support.processes import until

pytestmark = pytest.mark.timeout(300)


def secret(made: Namespace, name: str, cert: str, key: str) -> None:
    text = made.kubectl("create", "secret", "tls", name, f"--cert={cert}", f"--key={key}", "--dry-run=client", "--output=yaml")
    made.kubectl("apply", "--filename", "-", stdin=text)


@pytest.fixture(scope="module")
def certified(authority: Authority) -> Iterator[Namespace]:
    with namespace("fedround-tls") as made:
        names = [f"DNS:fl-{role}" for role in ("coordinator", "aggregator")]
        secret(made, "platform", *authority.issue("platform", *names))
        secret(made, "silo", *authority.issue("silo-1"))
        made.kubectl("create", "secret", "generic", "authority", f"--from-file=ca.crt={authority.file}")
        platform = "rounds=0,coordinator.settings.seats=10,tls.existingSecret=platform,tls.clientCA.existingSecret=authority"
        made.helm("install", "fl", "helm/coordinator", "--set", platform, "--wait", "--timeout", "120s")
        silo = "coordinator.url=https://fl-coordinator:8081,tls.existingSecret=silo,tls.ca.existingSecret=authority"
        options = ("--set-json", 'options={"epoch_seconds": 0.05}')
        made.helm("install", "silo", "helm/participant", "--set", silo, *options, "--wait", "--timeout", "120s")
        yield made


def round_of(made: Namespace) -> int:
    return int(made.kubectl("exec", "fl-coordinator-0", "-c", "coordinator", "--", *ROUND))


ROUND = (
    "python",
    "-c",
    "import json, subprocess as s; print(json.loads(s.check_output(['fedround', 'status', 'coordinator']))['round'])",
)


def test_silos_train_with_certificates_on_both_sides(certified: Namespace) -> None:
    began = round_of(certified)
    until(lambda: round_of(certified) >= began + 3, 60)
    for release in ("fl", "silo"):
        assert "Succeeded" in certified.helm("test", release)


def test_a_replaced_secret_restarts_no_pod_and_costs_no_round(certified: Namespace, authority: Authority) -> None:
    pods = certified.kubectl("get", "pods", "--output", "name")
    secret(certified, "silo", *authority.issue("silo-1"))
    # The kubelet takes a minute or two until the files in the pods are the new ones.
    until(lambda: "certificates reloaded" in certified.kubectl("logs", "silo-participant-0"), 200)
    began = round_of(certified)
    until(lambda: round_of(certified) >= began + 3, 60)
    assert certified.kubectl("get", "pods", "--output", "name") == pods
    assert "lost contact" not in certified.kubectl("logs", "silo-participant-0")
