"""Evaluations for users: every metric belongs to its model, and the final model is evaluated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedround
from fedround.tensors.weights import encode_update
from fedround.testing import platform
from support.processes import Process, joining, kept_in, running, until
from support.processes import fedround as command


class Judge(fedround.NumPyParticipant):
    """A participant that adds 1. Its evaluation reports the first weight of the model, and its own number."""

    def __init__(self, *, samples: int = 1, offset: float = 0.0) -> None:
        self.samples, self.offset, self.given = samples, offset, list[float]()

    def evaluate(self, weights: Any, /) -> fedround.Evaluation:
        self.given.append(float(weights[0]))
        return fedround.Evaluation(self.samples, weight=weights[0] + self.offset)

    def train_round(self, weights: Any, /) -> fedround.Update:
        return fedround.Update(1, (np.zeros(2) if weights is None else weights) + 1)


class Plain(fedround.NumPyParticipant):
    """A participant without fedround's `evaluate`: the method of this class takes other arguments."""

    def evaluate(self, x: Any, y: Any) -> None:
        raise AssertionError

    def train_round(self, weights: Any, /) -> fedround.Update:
        return fedround.Update(1, (np.zeros(2) if weights is None else weights) + 1)


def test_each_round_has_the_metrics_of_its_own_model() -> None:
    silo = Judge()
    with platform(rounds=4) as p:
        p.run(silo)
    assert [(round.number, dict(round.evaluation)) for round in p.rounds] == [(n, {"weight": n + 1.0}) for n in range(4)]
    assert silo.given == [1, 2, 3, 4], "no model is evaluated twice"


def test_the_mean_is_weighted_by_samples() -> None:
    with platform(rounds=2, min_clients=3) as p:
        p.run(Judge(samples=1), Judge(samples=3, offset=4), Plain())
    assert [round.evaluation["weight"] for round in p.rounds] == [1 + 3, 2 + 3]
    assert [round.updates for round in p.rounds] == [3, 3]


@pytest.mark.parametrize(("every", "given"), [(0, []), (2, [2, 4, 5]), (3, [3, 5])])
def test_models_may_be_skipped_except_the_final_one(every: int, given: list[float]) -> None:
    silo = Judge()
    with platform(rounds=5, evaluate_every=every) as p:
        p.run(silo)
    assert silo.given == given
    assert p.global_model.tolist() == [5, 5]


WRONG: list[Any] = [
    lambda: 1 / 0,
    lambda: 5,
    lambda: (-1, {}),
    lambda: fedround.Evaluation(1, name="text"),  # type: ignore[arg-type]
    lambda: (1, {"x" * 65: 1}),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_failed_evaluation_costs_no_round(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Judge):
        def evaluate(self, weights: Any, /) -> Any:
            return wrong()

    with platform(rounds=3) as p:
        p.run(Wrong())
    assert p.global_model.tolist() == [3, 3]
    assert all(not round.evaluation for round in p.rounds)
    assert "round 1: the global model is not evaluated: " in caplog.text


def test_the_initial_model_is_evaluated_and_the_next_run_continues(caplog: pytest.LogCaptureFixture) -> None:
    silo = Judge()
    with platform(rounds=2, initial_model=np.array([7.0, 7.0])) as p:
        p.run(silo)
        p.run(silo)
    assert silo.given[:3] == [7, 8, 9]
    assert [round.evaluation["weight"] for round in p.rounds] == [8, 9, 10, 11]


def silo(platform: Process, isolation: str = "process", **options: Any) -> dict[str, str]:
    return joining(platform, "judge:Judge", options, PARTICIPANT_ISOLATION=isolation)


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_the_history_has_the_evaluation_of_each_participant(isolation: str, tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "3", "COORDINATOR_MIN_CLIENTS": "2"} | kept_in(tmp_path)
    with running("platform", **settings) as platform:
        names = {"PARTICIPANT_NAME": "one"}, {"PARTICIPANT_NAME": "two"}
        with (
            running("participant", **silo(platform, isolation), **names[0]) as one,
            running("participant", **silo(platform, isolation, offset=10), **names[1]) as two,
        ):
            assert (one.wait(), two.wait()) == (0, 0)
            assert "evaluated the final model" in one.log
            assert "round 2 completed" in one.log
            assert "round 3" not in one.log
        platform.said(r"model of round 2 evaluated by 2 participants: weight=8 \(3 to 13\) ")
        url = platform.url("COORDINATOR_OPS_PORT")
        for name in ("x.json", "x.csv"):
            assert command("history", "--from", url, "-o", str(tmp_path / name)).returncode == 0
        rounds = json.loads((tmp_path / "x.json").read_text())["rounds"]
        assert [round["evaluation"]["metrics"]["weight"] for round in rounds] == [6, 7, 8]
        assert rounds[2]["evaluation"]["lowest"]["weight"] == 3
        assert {silo["name"]: silo["metrics"]["weight"] for silo in rounds[2]["evaluation"]["participants"]} == {
            "one": 3,
            "two": 13,
        }
        assert "evaluation_weight" in (tmp_path / "x.csv").read_text().splitlines()[0]
        assert platform.status("COORDINATOR_OPS_PORT")["last_rounds"][-1]["evaluation"]["weight"] == 8


def test_training_ends_without_a_participant_that_never_evaluates(tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "2", "COORDINATOR_MIN_CLIENTS": "2", "COORDINATOR_ROUND_TIMEOUT": "3s"}
    with (
        running("platform", **settings) as platform,
        running("participant", **silo(platform, hang=2)),
        running("participant", **silo(platform)) as other,
    ):
        platform.said("round 1 completed")
        assert other.wait() == 0
        platform.said("training complete after 2 rounds")
        platform.said(r"model of round 1 evaluated by 1 participant: ")


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_a_participant_that_hangs_while_it_evaluates_is_shown_as_such(isolation: str) -> None:
    with (
        running("platform") as platform,
        running("participant", **silo(platform, isolation, hang=1), PARTICIPANT_HEARTBEAT_PERIOD="50ms"),
    ):
        platform.said("round 0 completed")
        until(lambda: [p["phase"] for p in platform.status("COORDINATOR_OPS_PORT")["participants"]] == ["evaluating"])


def test_a_restarted_platform_evaluates_the_final_model(tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "2"} | kept_in(tmp_path)
    with running("platform", **settings) as platform, running("participant", **silo(platform, slow=2)) as participant:
        platform.said("round 1 completed")
        until(lambda: platform.status("COORDINATOR_OPS_PORT")["state"] == "evaluating the final model")
        participant.said("evaluating the final model")
        platform.kill()
        with running("platform", **settings, **platform.ports) as again:
            assert participant.wait() == 0
            again.said(r"model of round 1 evaluated by 1 participant: weight=2 ")
            assert again.status("COORDINATOR_OPS_PORT")["state"] == "complete"


def test_the_best_model_is_kept_and_training_stops_without_improvement(tmp_path: Path) -> None:
    """The metric is largest for the model of round 2."""
    goal = {"COORDINATOR_BEST_BY": "peak:max", "COORDINATOR_PATIENCE": "3", "AGGREGATOR_KEEP_MODELS": "2"}
    with running("platform", COORDINATOR_ROUNDS="50", **goal, **kept_in(tmp_path)) as platform:
        with running("participant", **silo(platform, peak=3)) as participant:
            assert participant.wait() == 0
        platform.said(r"training complete after 7 rounds, stopped early: no better peak than 0 \(round 2\) in 3 evaluations")
        status = platform.status("COORDINATOR_OPS_PORT")
        assert (status["state"], status["best"]) == ("complete", {"metric": "peak", "round": 2, "value": 0.0})
        until(lambda: platform.status("AGGREGATOR_OPS_PORT")["models"] == [2, 5, 6])
        done = command("model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "--round", "best", "-o", str(tmp_path / "best.npy"))
        assert (done.returncode, done.stderr) == (0, "")
        assert np.load(tmp_path / "best.npy").tolist() == [3, 3]
        assert "stopped early: no better peak" in command("runs", "--from", platform.url("COORDINATOR_OPS_PORT")).stdout
    # The run is also complete after a restart. Without the reason to stop it continues.
    with running("platform", COORDINATOR_ROUNDS="50", **goal, **kept_in(tmp_path)) as platform:
        assert platform.status("COORDINATOR_OPS_PORT")["state"] == "complete"
        platform.said(r"after 7 rounds, stopped early \(no better peak .*\): to continue it, change COORDINATOR_STOP_WHEN or ")
    with running("platform", COORDINATOR_ROUNDS="9", **kept_in(tmp_path)) as platform:
        with running("participant", **silo(platform, peak=3)) as participant:
            assert participant.wait() == 0
        platform.said("training complete after 9 rounds$")
        assert platform.status("AGGREGATOR_OPS_PORT")["models"][0] == 2, "the best is still kept"


def test_training_stops_when_the_goal_is_reached(tmp_path: Path) -> None:
    settings = {"COORDINATOR_ROUNDS": "50", "COORDINATOR_STOP_WHEN": "weight >= 3", "COORDINATOR_BEST_BY": "accuracy:max"}
    with running("platform", **settings) as platform:
        with running("participant", **silo(platform)) as participant:
            assert participant.wait() == 0
        platform.said("training complete after 4 rounds, stopped early: weight >= 3: 3 in round 2")
        missing = "COORDINATOR_BEST_BY: no evaluation has the metric accuracy; available: weight, peak"
        platform.said(missing)
        status = platform.status("COORDINATOR_OPS_PORT")
        assert status["best"] is None
        assert [warning["text"] for warning in status["warnings"]] == [missing], "the page shows it too"
        with platform.open("AGGREGATOR_OPS_PORT", "/model") as answer:
            assert len(answer.read()) > 0
        done = command("model", "--from", platform.url("AGGREGATOR_OPS_PORT"), "--round", "best", "-o", str(tmp_path / "best.npy"))
        assert done.returncode == 1
        assert "no best model is known: set COORDINATOR_BEST_BY to a metric of evaluations, and AGGREGATOR_DATA_DIR" in done.stderr


@pytest.mark.parametrize(("every", "rounds"), [("1", "2"), ("5", "3")])
def test_a_goal_that_no_participant_evaluates_causes_a_warning(every: str, rounds: str) -> None:
    goal = {"COORDINATOR_BEST_BY": "accuracy:max", "COORDINATOR_STOP_WHEN": "loss < 1", "COORDINATOR_EVALUATE_EVERY": every}
    with running("platform", COORDINATOR_ROUNDS=rounds, **goal) as platform:
        with running("participant", **silo(platform) | {"PARTICIPANT_CLASS": "support.participants:Mean"}) as participant:
            assert participant.wait() == 0
        assert [warning["text"] for warning in platform.status("COORDINATOR_OPS_PORT")["warnings"]] == [
            f"COORDINATOR_{setting}: no evaluation has the metric {metric}: no participant evaluates models: "
            "does its class have a method evaluate?"
            for setting, metric in (("BEST_BY", "accuracy"), ("STOP_WHEN", "loss"))
        ]


def test_a_goal_that_needs_evaluations_refuses_settings_without_them() -> None:
    done = command("platform", COORDINATOR_EVALUATE_EVERY="0", COORDINATOR_STOP_WHEN="accuracy > 0.9")
    assert done.returncode == 78
    assert "COORDINATOR_EVALUATE_EVERY: 0 turns off the evaluations that COORDINATOR_STOP_WHEN needs" in done.stderr


def test_a_class_with_its_own_format_declares_that_it_evaluates() -> None:
    """A participant of 0.8 may have a method of this name with another meaning."""

    class Own(fedround.ParticipantABC[bytes, bytes]):
        def __init__(self) -> None:
            self.given: list[bytes] = []

        def deserialize_training_input(self, data: bytes, /) -> bytes:
            return data

        def evaluate(self, model: bytes) -> fedround.Evaluation:
            self.given.append(model)
            return fedround.Evaluation(1, size=len(model))

        def train_round(self, training_input: bytes, /) -> bytes:
            return training_input

        def serialize_training_result(self, training_result: bytes, /) -> list[memoryview]:
            return encode_update(1, np.ones(3))

    class Evaluating(Own):
        evaluates = True

    for cls, count in ((Own, 0), (Evaluating, 2)):
        silo = cls()
        with platform(rounds=2) as p:
            p.run(silo)
        assert len(silo.given) == count
        assert [bool(round.evaluation) for round in p.rounds] == [count > 0] * 2
