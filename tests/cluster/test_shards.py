"""A rolling update of a Deployment whose pods share a data set: rounds continue, and each shard is in each of them exactly once."""

import json

import pytest

from support.cluster import URL, namespace
from support.docker import ROOT
from support.processes import until

COUNT = 8
VALUES = {
    "coordinator": {"url": URL},
    "kind": "Deployment",
    "replicaCount": COUNT,
    "class": "known_answer:KnownAnswer",
    "options": {"count": COUNT, "seconds": 0.5},
    "extraVolumes": [{"name": "code", "configMap": {"name": "code"}}],
    "extraVolumeMounts": [{"name": "code", "mountPath": "/code"}],
    "extraEnv": [{"name": "PYTHONPATH", "value": "/code"}],
}


@pytest.mark.timeout(300)
def test_a_rolling_update_of_a_deployment_interrupts_no_round() -> None:
    with namespace("fedround-shards") as made:
        made.kubectl("create", "configmap", "code", f"--from-file={ROOT}/tests/support/known_answer.py")
        platform = f"rounds=0,minClients={COUNT},aggregator.settings.keep_models=1000"
        made.helm("install", "fl", "helm/coordinator", "--set", platform, "--wait", "--timeout", "120s")
        install = ("helm/participant", "--values", "-", "--wait", "--timeout", "120s")
        made.run("helm", "install", "silo", *install, stdin=json.dumps(VALUES))
        made.trains()
        made.kubectl("rollout", "restart", "deployment/silo-participant")
        states = set()

        def replaced() -> bool:
            states.add(made.status["state"])
            return "successfully" in made.kubectl("rollout", "status", "deployment/silo-participant", "--watch=false")

        until(replaced, 120)
        made.trains()
        assert states == {"training"}
        assert sorted(found["shard"] for found in made.status["participants"]) == [f"{index}/{COUNT}" for index in range(COUNT)]
        for number in range(made.status["round"]):
            assert made.model(number) == pytest.approx([number + 1.0] * COUNT, rel=1e-12)
