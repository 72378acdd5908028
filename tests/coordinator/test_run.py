"""Runs in the coordinator's core."""

from random import Random

from fedround.common.books import Newest, Page
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.run import Config, Run, config_of


def test_a_schedule_has_the_value_of_its_last_step() -> None:
    config: Config = {"lr": {0: 0.1, 20: 0.01}, "late": {5: True}, "epochs": 2}
    assert config_of(config, 0) == {"lr": 0.1, "epochs": 2}
    assert config_of(config, 19) == {"lr": 0.1, "epochs": 2, "late": True}
    assert config_of(config, 20) == {"lr": 0.01, "epochs": 2, "late": True}


def test_a_new_run_starts_after_the_newest_model() -> None:
    for name, first in (("first", 0), ("second", 5), ("", 0)):
        rounds = Rounds(Plan(rounds=5), Random(0), 0.0, Memory(run=Run("id", "first" if name != "second" else "second")))
        rounds.recorded(0.0, Page("life", (), Newest(4, 1, "first" if name else "")))
        assert (rounds.round, rounds.run.first, rounds.complete) == (5, first, first == 0)
