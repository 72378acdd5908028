"""A rolling update of a Deployment with pods that share a data set: each round has each shard exactly once."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from support.known_answer import global_model
from support.processes import Process, kept_in, running, until

COUNT = 8
"""Number of pods and of shards: a power of two, so that every mean is exact."""
SURGE = 2
PLATFORM = {
    "COORDINATOR_ROUNDS": "0",
    "COORDINATOR_MIN_CLIENTS": str(COUNT),
    "COORDINATOR_HEARTBEAT_TIMEOUT": "3s",
    "AGGREGATOR_KEEP_MODELS": "1000",
}
POD = {
    "PARTICIPANT_CLASS": "support.known_answer:KnownAnswer",
    "PARTICIPANT_OPTIONS": json.dumps({"count": COUNT, "seconds": 0.2}),
    "PARTICIPANT_SHARDS": str(COUNT),
    "PARTICIPANT_HEARTBEAT_PERIOD": "0.2s",
    "PARTICIPANT_ISOLATION": "thread",
}


class Deployment:
    """Start pods with new names."""

    def __init__(self, platform: Process, stack: ExitStack) -> None:
        self.platform = platform
        self.pods: dict[str, Process] = {}
        self._stack = stack

    def start(self, count: int) -> None:
        names = [f"silo-{uuid4().hex[:10]}" for _ in range(count)]
        with ThreadPoolExecutor(SURGE) as pool:  # more pods at a time would slow each other down
            self.pods |= zip(names, pool.map(self._start, names), strict=True)
        until(lambda: {p["name"] for p in self.platform.status("COORDINATOR_OPS_PORT")["participants"]} >= set(names), 60)

    def _start(self, name: str) -> Process:
        url = self.platform.url("COORDINATOR_PORT")
        pod = running("participant", **POD, PARTICIPANT_NAME=name, PARTICIPANT_COORDINATOR_URL=url)
        return self._stack.enter_context(pod)

    def rounds(self, more: int) -> None:
        """Wait until this many more rounds are completed."""
        began = self.platform.status("COORDINATOR_OPS_PORT")["round"]
        until(lambda: self.platform.status("COORDINATOR_OPS_PORT")["round"] >= began + more, 60)

    def wrong(self) -> dict[int, list[float]]:
        """Return the models, by round, in which a shard was counted twice or not at all."""
        rounds = self.platform.status("AGGREGATOR_OPS_PORT")["models"]
        assert len(rounds) > COUNT // SURGE
        models = {number: global_model(self.platform, number) for number in rounds}
        return {number: model for number, model in models.items() if set(model) != {number + 1.0}}


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with ExitStack() as stack:
        yield Deployment(stack.enter_context(running("platform", **PLATFORM, **kept_in(tmp_path))), stack)


@pytest.mark.timeout(300)
def test_during_a_rolling_update_each_round_has_each_shard_exactly_once(deployment: Deployment) -> None:
    """Start new pods before old ones end. End every other one with `kill -9`."""
    deployment.start(COUNT)
    deployment.rounds(2)
    old = list(deployment.pods)
    for number in range(0, COUNT, SURGE):
        deployment.start(SURGE)
        for name, how in zip(old[number : number + SURGE], (signal.SIGKILL, signal.SIGTERM), strict=True):
            deployment.pods.pop(name).send(how)
    until(lambda: len(deployment.platform.status("COORDINATOR_OPS_PORT")["participants"]) == COUNT, 60)
    deployment.rounds(2)
    status = deployment.platform.status("COORDINATOR_OPS_PORT")
    assert status["shards"] == {"count": COUNT, "missing": [], "doubled": [], "standing_by": 0, "other_counts": [], "warning": ""}
    shards = {p["name"]: p["shard"] for p in status["participants"]}
    assert sorted(shards.values()) == [f"{index}/{COUNT}" for index in range(COUNT)]
    assert shards == {name: pod.status("PARTICIPANT_OPS_PORT")["shard"] for name, pod in deployment.pods.items()}
    assert deployment.wrong() == {}
    samples = deployment.platform.get("COORDINATOR_OPS_PORT", "/metrics").decode()
    assert f'fedround_coordinator_shards{{state="held"}} {COUNT}.0' in samples


@pytest.mark.timeout(300)
def test_a_warning_names_a_shard_until_another_pod_trains_it(deployment: Deployment) -> None:
    deployment.start(COUNT)
    deployment.rounds(1)
    name, pod = deployment.pods.popitem()
    (lost,) = (p["shard"] for p in deployment.platform.status("COORDINATOR_OPS_PORT")["participants"] if p["name"] == name)
    pod.kill()
    missing = int(lost.removesuffix(f"/{COUNT}"))
    until(lambda: deployment.platform.status("COORDINATOR_OPS_PORT")["shards"]["missing"] == [missing])
    assert "no participant holds" in deployment.platform.status("COORDINATOR_OPS_PORT")["shards"]["warning"]
    assert 'shards{state="missing"} 1.0' in deployment.platform.get("COORDINATOR_OPS_PORT", "/metrics").decode()
    deployment.start(1)
    deployment.rounds(1)
    assert deployment.platform.status("COORDINATOR_OPS_PORT")["shards"]["warning"] == ""
    deployment.platform.end()
