"""Evaluation at the aggregator for operators: each metric belongs to its model, whatever the function does."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.examiner import GATE
from support.processes import Process, beside, joining, kept_in, running, two_services, until
from support.processes import fedround as command

WAITING = "waiting for the aggregator's evaluation of the final model"


def evaluating(function: str, **settings: str) -> dict[str, str]:
    return {"AGGREGATOR_EVALUATE": f"support.examiner:{function}", **settings}


def silo(coordinator: Process) -> Any:
    return running("participant", **joining(coordinator, "judge:Judge"))


def state(coordinator: Process) -> Any:
    return coordinator.status("COORDINATOR_OPS_PORT")["state"]


def history(coordinator: Process, file: Path) -> str:
    done = command("history", "--from", coordinator.url("COORDINATOR_OPS_PORT"), "-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    return file.read_text()


def by_server(coordinator: Process, directory: Path) -> dict[int, float]:
    """Return the metric `weight` of each round that has it."""
    rounds = json.loads(history(coordinator, directory / "x.json"))["rounds"]
    return {round["round"]: round["server"]["metrics"]["weight"] for round in rounds if "server" in round}


def sample(aggregator: Process, name: str) -> float:
    """Return the value of a series in `/metrics`."""
    text = aggregator.get("AGGREGATOR_OPS_PORT", "/metrics").decode()
    (value,) = re.findall(rf"^fedround_aggregator_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(value)


def test_each_round_has_the_metrics_of_its_own_model_wherever_they_are_shown(tmp_path: Path) -> None:
    with running("platform", COORDINATOR_ROUNDS="4", **evaluating("first", **kept_in(tmp_path))) as platform:
        with silo(platform) as participant:
            assert participant.wait() == 0
        assert state(platform) == "complete"
        found = by_server(platform, tmp_path)
        assert found == {number: number + 1.0 for number in found}
        assert 3 in found, "the final model is always evaluated"
        header, *rows = csv.reader(history(platform, tmp_path / "x.csv").splitlines())
        last = dict(zip(header, rows[-1], strict=True))
        assert (last["server_weight"], last["evaluation_weight"]) == ("4.0", "4.0")
        status = platform.status("COORDINATOR_OPS_PORT")
        assert status["last_rounds"][-1]["server"] == {"weight": 4, "peak": -1}
        assert status["server_evaluation"] == {"function": "support.examiner:first", "round": 3, "problem": ""}
        told = platform.status("AGGREGATOR_OPS_PORT")["evaluation"]
        assert (told["evaluating"], told["waiting"]) == (None, [])
        assert told["last"] == {"round": 3, "run": "default", "samples": 4, "metrics": {"weight": 4, "peak": -1}, "reason": ""}
        assert sample(platform, 'evaluation_metric{metric="weight"}') == 4
        assert sample(platform, "evaluation_round") == 3
        assert sample(platform, "evaluation_running_seconds") == sample(platform, "evaluation_models_behind") == 0
        counts = [sample(platform, f'evaluations_total{{outcome="{outcome}"}}') for outcome in ("succeeded", "skipped")]
        assert (counts[0], sum(counts)) == (len(found), 4)
        platform.said(r"model of round 3 evaluated by support.examiner:first in [\d.]+ s: weight=4 peak=-1")
    # A restarted coordinator knows all evaluations, and counts none twice.
    with running("platform", COORDINATOR_ROUNDS="4", **evaluating("first", **kept_in(tmp_path))) as platform:
        platform.said("model of round 3 evaluated by support.examiner:first")
        assert (state(platform), by_server(platform, tmp_path)) == ("complete", found)


def test_goals_are_decided_by_the_aggregators_metrics_in_a_process_of_its_own(tmp_path: Path) -> None:
    goals = {"COORDINATOR_BEST_BY": "server_peak:max", "COORDINATOR_STOP_WHEN": "server_weight >= 20"}
    settings = evaluating("first", COORDINATOR_ROUNDS="100000", AGGREGATOR_KEEP_MODELS="1", **goals, **kept_in(tmp_path))
    with two_services(**settings) as (coordinator, aggregator):
        with silo(coordinator) as participant:
            assert participant.wait() == 0
        status = coordinator.status("COORDINATOR_OPS_PORT")
        assert re.fullmatch(r"server_weight >= 20: \d+ in round \d+", status["stopped"])
        found = by_server(coordinator, tmp_path)
        assert max(found) == status["round"] - 1, "the final model is evaluated before training is complete"
        best = min(found, key=lambda number: (abs(found[number] - 3), number))
        assert status["best"] == {"metric": "server_peak", "round": best, "value": -abs(found[best] - 3)}
        until(lambda: best in aggregator.status("AGGREGATOR_OPS_PORT")["models"])
        url, file = aggregator.url("AGGREGATOR_OPS_PORT"), tmp_path / "best.npy"
        assert command("model", "--from", url, "--round", "best", "-o", str(file)).returncode == 0
        assert np.load(file)[0] == found[best]


def test_rounds_go_on_while_a_slow_function_is_at_work_and_the_end_waits_for_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    settings = evaluating("gated", COORDINATOR_ROUNDS="6", **{GATE: str(gate)}, **kept_in(tmp_path))
    with two_services(**settings) as (coordinator, aggregator), silo(coordinator) as participant:
        until(lambda: state(coordinator) == WAITING)
        told = aggregator.status("AGGREGATOR_OPS_PORT")["evaluation"]
        assert (told["evaluating"]["round"], [one["round"] for one in told["waiting"]]) == (0, [5])
        assert sample(aggregator, 'evaluations_total{outcome="skipped"}') == 4
        until(lambda: sample(aggregator, "evaluation_running_seconds") > 0)
        coordinator.kill()
        with running("coordinator", **beside(aggregator), **settings, **coordinator.ports) as again:
            until(lambda: state(again) == WAITING)
            gate.touch()
            assert participant.wait() == 0
            assert by_server(again, tmp_path) == {0: 1, 5: 6}


def test_an_aggregator_that_is_killed_evaluates_the_final_model_when_it_is_back(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    settings = evaluating("gated", COORDINATOR_ROUNDS="2", **{GATE: str(gate)}, **kept_in(tmp_path))
    with two_services(**settings) as (coordinator, aggregator), silo(coordinator) as participant:
        until(lambda: state(coordinator) == WAITING)
        aggregator.kill()
        gate.touch()
        with running("aggregator", **settings, **aggregator.ports):
            assert participant.wait() == 0
            assert by_server(coordinator, tmp_path) == {1: 2}


def test_a_function_that_fails_is_named_and_costs_no_round() -> None:
    goal = {"COORDINATOR_BEST_BY": "server_weight:max"}
    with running("platform", COORDINATOR_ROUNDS="3", **evaluating("failing"), **goal) as platform:
        with silo(platform) as participant:
            assert participant.wait() == 0
        what = "AGGREGATOR_EVALUATE=support.examiner:failing: evaluation of the model of round 2 failed: ValueError: no test set"
        platform.said(re.escape(what))
        status = platform.status("COORDINATOR_OPS_PORT")
        assert (status["state"], status["best"]) == ("complete", None)
        assert status["server_evaluation"]["problem"] == "ValueError: no test set for 3.0"
        assert (
            sample(platform, 'evaluations_total{outcome="failed"}') + sample(platform, 'evaluations_total{outcome="skipped"}') == 3
        )
        assert sample(platform, "evaluation_consecutive_failures") == sample(platform, 'evaluations_total{outcome="failed"}')
        assert sample(platform, "evaluation_models_behind") == 3


def test_a_function_that_never_returns_keeps_neither_a_round_nor_the_end_nor_the_exit() -> None:
    settings = evaluating("hanging", COORDINATOR_ROUNDS="3", COORDINATOR_EVALUATE_TIMEOUT="1s")
    with running("platform", **settings) as platform:
        with silo(platform) as participant:
            assert participant.wait() == 0
        platform.said("the aggregator did not evaluate the final model within 1 s; the run ends without it: round 2")
        assert platform.status("AGGREGATOR_OPS_PORT")["evaluation"]["evaluating"]["round"] == 0
        assert (sample(platform, "evaluation_consecutive_failures"), sample(platform, "evaluation_models_behind")) == (0, 3)
        assert platform.end() == 0


def test_a_goal_without_a_function_is_told_once() -> None:
    with (
        running("platform", COORDINATOR_STOP_WHEN="server_weight > 1", COORDINATOR_ROUNDS="3") as platform,
        silo(platform) as silo_,
    ):
        assert silo_.wait() == 0
        warning = "COORDINATOR_STOP_WHEN: no evaluation has the metric server_weight: set AGGREGATOR_EVALUATE at the aggregator"
        platform.said(warning)
        platform.end()
        assert platform.log.count(warning) == 1


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("support.examiner", "write it as my_package.my_module:my_function"),
        ("support.examiner:frist", "support.examiner has no frist: did you mean first?"),
        ("support.nobody:first", "there is no module support.nobody"),
        ("support.examiner:GATE", "support.examiner:GATE is not a function"),
        ("support.examiner:two", "support.examiner:two must accept one argument, the weights of a model"),
        ("support.examiner:later", "support.examiner:later is a coroutine function"),
    ],
)
def test_a_wrong_function_is_refused_at_the_start(value: str, problem: str) -> None:
    done = command("aggregator", AGGREGATOR_EVALUATE=value)
    assert done.returncode == 78
    assert problem in done.stderr
