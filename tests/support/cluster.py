"""Namespaces in the cluster of the current kubeconfig, which has the image. Pod Security is restricted in them."""

import io
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from support.docker import ROOT
from support.processes import until
from support.tools import tool

URL = "http://fl-coordinator:8081"
SILOS = ("--selector", "app.kubernetes.io/component=participant")


class Namespace:
    """A namespace for one federation. Its releases are `fl` and `silo`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, program: str, *arguments: str, stdin: str = "") -> bytes:
        """Return the output of kubectl. Fail the test if the command fails."""
        command = [tool(program), "--namespace", self.name, *arguments]
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=180, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr).decode()}"
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.run("kubectl", *arguments, stdin=stdin).decode()

    def helm(self, *arguments: str) -> str:
        return self.run("helm", *arguments).decode()

    def install_known_answers(self, count: int, **values: object) -> None:
        """Install a platform that keeps all models, and this many silos with a known answer and further values of their chart."""
        self.kubectl("create", "configmap", "code", f"--from-file={ROOT}/tests/support/known_answer.py")
        platform = f"rounds=0,minClients={count},aggregator.settings.keep_models=1000"
        self.helm("install", "fl", "helm/coordinator", "--set", platform, "--wait", "--timeout", "120s")
        values |= {
            "coordinator": {"url": URL},
            "replicaCount": count,
            "class": "known_answer:KnownAnswer",
            "options": {"count": count, "seconds": 0.5},
            "extraVolumes": [{"name": "code", "configMap": {"name": "code"}}],
            "extraVolumeMounts": [{"name": "code", "mountPath": "/code"}],
            "extraEnv": [{"name": "PYTHONPATH", "value": "/code"}],
        }
        silos = ("helm/participant", "--values", "-", "--wait", "--timeout", "120s")
        self.run("helm", "install", "silo", *silos, stdin=json.dumps(values))

    def get(self, service: str, path: str) -> bytes:
        """Return a response of a service's ops port, through the API server."""
        return self.run("kubectl", "get", "--raw", f"/api/v1/namespaces/{self.name}/services/{service}:ops/proxy{path}")

    @property
    def status(self) -> Any:
        return json.loads(self.get("fl-coordinator", "/status"))

    def model(self, round: int) -> list[float]:
        weights: list[float] = np.load(io.BytesIO(self.get("fl-aggregator", f"/model?round={round}"))).tolist()
        return weights

    def silos(self) -> Any:
        """Return the pods of the participants."""
        return json.loads(self.kubectl("get", "pods", *SILOS, "--output", "json"))["items"]

    def shards(self) -> list[str]:
        """Return the shard that each pod reports."""
        pods = (f"/api/v1/namespaces/{self.name}/pods/{pod['metadata']['name']}:8080" for pod in self.silos())
        return [json.loads(self.run("kubectl", "get", "--raw", f"{pod}/proxy/status"))["shard"] for pod in pods]

    def silos_are(self, condition: str) -> None:
        """Wait until all participants' pods meet a condition."""
        self.kubectl("wait", f"--for=condition={condition}", "pod", *SILOS, "--timeout=60s")

    def replaced(self, workload: str) -> None:
        """Restart a workload pod by pod, and wait until this is done."""
        self.kubectl("rollout", "restart", f"statefulset/{workload}")
        self.kubectl("rollout", "status", f"statefulset/{workload}", "--timeout=170s")

    def trains(self, rounds: int = 2) -> None:
        """Wait until this many more rounds are completed."""
        began = self.status["round"]
        until(lambda: self.status["round"] >= began + rounds, 60)


@contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """Create a namespace, and delete it at the end. Skip the test if there is no cluster."""
    if "KUBECONFIG" not in os.environ:
        pytest.skip("KUBECONFIG is not set")
    made = Namespace(name)
    made.kubectl("create", "namespace", name)
    try:
        made.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        yield made
    finally:
        made.kubectl("delete", "namespace", name, "--wait=false")
