"""A rolling update of a Deployment whose pods share a data set: rounds continue, and each shard is in each of them exactly once."""

import pytest

from support.cluster import namespace
from support.processes import until

COUNT = 8


@pytest.mark.timeout(300)
def test_a_rolling_update_of_a_deployment_interrupts_no_round() -> None:
    with namespace("fedround-shards") as made:
        made.install_known_answers(COUNT, kind="Deployment")
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
