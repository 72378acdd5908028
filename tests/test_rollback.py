"""An operator returns to an earlier model: during training, after its end, and while the coordinator is down."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from fedround.http.client import fetch_model
from support.known_answer import PARTICIPANTS, KnownAnswer, train
from support.processes import Process, beside, fedround, kept_in, running, two_services, until

ROUNDS = 10
TOKEN = "the-operators"
SETTINGS = {
    "COORDINATOR_ROUNDS": str(ROUNDS),
    "COORDINATOR_MIN_CLIENTS": str(PARTICIPANTS),
    "AGGREGATOR_OPS_TOKEN": TOKEN,
}


def roll_back(aggregator: Process, number: int, token: str = TOKEN) -> CompletedProcess[str]:
    url = aggregator.url("AGGREGATOR_OPS_PORT")
    return fedround("rollback", "--from", url, "--round", str(number), "--token", token)


def newest(aggregator: Process) -> list[float]:
    model, _ = fetch_model(aggregator.url("AGGREGATOR_OPS_PORT"), token=TOKEN)
    weights: list[float] = np.load(io.BytesIO(model)).tolist()
    return weights


@contextmanager
def serving(kind: str, **settings: str) -> Iterator[tuple[Process, Process]]:
    """Coordinator and aggregator, in one process or in two."""
    if kind == "platform":
        with running("platform", **settings) as platform:
            yield platform, platform
    else:
        with two_services(**settings) as services:
            yield services


def take_part(pool: ThreadPoolExecutor, coordinator: Process, *participants: KnownAnswer) -> None:
    for future in [train(pool, coordinator, p, name=f"silo-{p.k}") for p in participants]:
        future.result()


@pytest.mark.parametrize("kind", ["platform", "services"])
def test_training_continues_from_an_earlier_model_and_each_update_counts_once(tmp_path: Path, kind: str) -> None:
    said: list[CompletedProcess[str]] = []

    def intervene(number: int) -> None:
        if number == 6 and not said:
            said.append(roll_back(aggregator, 2))

    with serving(kind, **SETTINGS, **kept_in(tmp_path)) as (coordinator, aggregator), ThreadPoolExecutor() as pool:
        trained = KnownAnswer(0, before=intervene)
        take_part(pool, coordinator, trained, KnownAnswer(1))
        assert newest(aggregator) == [float(ROUNDS)] * PARTICIPANTS
        coordinator.said("rolled back in round 6: training continues from the model of round 2")
        rounds = coordinator.status("COORDINATOR_OPS_PORT")["last_rounds"]
    (done,) = said
    assert (done.returncode, done.stdout) == (
        0,
        "the model of round 2 is the newest; removed the models of 3 later rounds; training continues with round 3\n",
    )
    assert [past["round"] for past in rounds] == list(range(ROUNDS))
    assert [past["round"] for past in rounds if past.get("rollbacks")] == [2]
    assert trained.rounds == [*range(7), *range(3, ROUNDS)]


def test_a_rollback_continues_a_complete_training_also_for_an_absent_coordinator(tmp_path: Path) -> None:
    settings = SETTINGS | kept_in(tmp_path)
    with running("aggregator", **settings) as aggregator, ThreadPoolExecutor() as pool:
        with running("coordinator", **beside(aggregator), **settings) as coordinator:
            take_part(pool, coordinator, KnownAnswer(0), KnownAnswer(1))
            assert roll_back(aggregator, 7).returncode == 0
            until(lambda: coordinator.status("COORDINATOR_OPS_PORT")["round"] == 8)
            take_part(pool, coordinator, KnownAnswer(0), KnownAnswer(1))
            assert newest(aggregator) == [float(ROUNDS)] * PARTICIPANTS
            coordinator.end()
        assert roll_back(aggregator, 8).returncode == 0
        aggregator.kill()
        with (
            running("aggregator", **aggregator.ports, **settings) as again,
            running("coordinator", **beside(again), **settings) as coordinator,
        ):
            coordinator.said("rolled back in round 10: training continues from the model of round 8")
            newcomers = [KnownAnswer(0), KnownAnswer(1)]
            take_part(pool, coordinator, *newcomers)
            assert newest(again) == [float(ROUNDS)] * PARTICIPANTS
    assert [p.rounds for p in newcomers] == [[9], [9]]


def test_a_refused_rollback_changes_nothing_and_has_a_reason(tmp_path: Path) -> None:
    with (
        running("platform", **SETTINGS | {"COORDINATOR_ROUNDS": "3"}, **kept_in(tmp_path)) as platform,
        ThreadPoolExecutor() as pool,
    ):
        take_part(pool, platform, KnownAnswer(0), KnownAnswer(1))
        for done, why in [
            (roll_back(platform, 5), "refused with 404 Not Found: no model of this round is stored"),
            (roll_back(platform, -1), "refused with 400 Bad Request"),
            (roll_back(platform, 1, token="another"), "refused with 401: give the operators' token"),
            (fedround("rollback", "--from", platform.url("COORDINATOR_PORT"), "--round", "1"), "is this the aggregator's ops port"),
            (fedround("rollback", "--from", "http://127.0.0.1:9", "--round", "1"), "no answer from http://127.0.0.1:9"),
        ]:
            assert (done.returncode, why in done.stderr) == (1, True), done.stderr
            assert "Traceback" not in done.stderr
        (tmp_path / "aggregator" / "round-000001.npy").write_bytes(b"damaged")
        assert "refused with 500" in roll_back(platform, 1).stderr
        assert newest(platform) == [3.0] * PARTICIPANTS
        assert json.loads(platform.get("COORDINATOR_OPS_PORT", "/status"))["state"] == "complete"


def test_a_rollback_requires_the_operators_token(tmp_path: Path) -> None:
    with running("platform", **kept_in(tmp_path)) as platform:
        done = roll_back(platform, 0)
        assert (done.returncode, "this endpoint is closed: set AGGREGATOR_OPS_TOKEN" in done.stderr) == (1, True)
