"""Participants by name, as operators see them."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from fedround import events
from fedround.common import wire
from fedround.common.books import Evaluation, Newest, Outcome, Page, Verdict
from fedround.common.wire import MAX_METRICS, Claim
from fedround.coordinator.plan import Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.silos import MOST_GONE, REASONS, SHOWN_FOR, Phase, Silos
from fedround.coordinator.status import by_name, status
from support.table import Table

UNIX = 1e9
"""Unix time at the table's time 0."""
PLAN = Plan(rounds=0, participants_ratio=0.9, round_timeout=60, heartbeat_timeout=1000)
"""The round selects all participants, and closes without one of them."""


class Watched(Table):
    """A table that passes its facts to the silos."""

    def __init__(self, plan: Plan = PLAN, *names: str) -> None:
        super().__init__(replace(plan, min_clients=max(plan.min_clients, len(names))))
        self.silos = Silos(self.rounds.present)
        self.by = {name: self.join(name, extended=True) for name in names}
        self.watch()

    def watch(self) -> None:
        for fact in self.rounds.take_facts():
            self.silos.note(self.now, fact)

    def shown(self, most: int = 200) -> dict[str, dict[str, Any]]:
        self.watch()
        found = by_name(self.rounds, self.silos, self.now, UNIX + self.now, most)
        return {silo["name"]: silo for silo in found["silos"]}

    def phase(self, name: str) -> tuple[str, float]:
        """Return the current phase and its duration in seconds."""
        silo = self.shown()[name]
        (phase,) = [phase for phase, current in silo["phase"].items() if current]
        return phase, UNIX + self.now - silo["phase_started_timestamp_seconds"]

    def reports(self, name: str, phase: str) -> None:
        assert self.rounds.attempt is not None
        self.rounds.attempt.report(self.by[name], phase, self.now)

    def misses(self, name: str, *others: str) -> None:
        """Play a round in which all but `name` upload."""
        self.open()
        self.enter(*(self.by[other] for other in others))
        self.later(60, *self.by.values())
        assert self.revoke(Verdict.REVOKED) == self.by[name]
        self.close()


def test_the_status_shows_the_phase_of_a_participant_and_since_when() -> None:
    table = Watched(replace(PLAN, min_clients=2), "anna")
    table.later(5, table.by["anna"])
    assert table.phase("anna") == ("waiting", 5)
    table.by["ben"] = table.join("ben")
    assert table.phase("anna") == ("selected", 0), "the books have not admitted it yet"
    table.later(1)
    table.open()
    table.later(2)
    assert table.phase("anna") == ("selected", 2)
    for phase in wire.PHASES:
        table.reports("anna", phase)
        table.later(3)
        for again in (phase, "", "dreaming"):
            table.reports("anna", again)
        assert table.phase("anna") == (phase, 3)
    assert table.phase("ben")[0] == "selected", "it does not say what it does"
    table.enter(table.by["anna"])
    table.later(4)
    assert table.phase("anna") == ("counted", 4)
    table.enter(table.by["ben"])
    table.close()
    table.open()
    assert table.phase("anna") == ("selected", 0)
    table.later(60, *table.by.values())
    table.later(1)
    assert table.phase("anna") == ("revoked", 1)


def test_participants_report_only_known_phases() -> None:
    assert set(wire.PHASES) < {phase.value for phase in Phase}


def test_a_participant_without_a_part_waits_or_rests_since_its_last_part() -> None:
    table = Watched(PLAN, "anna", "ben")
    for _ in range(2):
        table.misses("ben", "anna")
    table.later(7)
    assert table.phase("ben") == ("resting", 7)
    table.open()
    table.later(8)
    assert table.phase("ben") == ("resting", 15)


def test_an_evaluation_has_its_own_phase() -> None:
    table = Watched(Plan(rounds=1))
    participant = table.rounds.join(table.now, "anna", evaluates=True)
    assert participant is not None
    table.rounds.heartbeat(table.now, participant.id)
    table.play(participant.id)
    table.open()
    table.later(2)
    assert table.phase("anna") == ("evaluating", 2)


def test_a_missed_deadline_is_logged_with_phase_and_time_since_selection() -> None:
    table = Watched(PLAN, "anna", "ben")
    table.open()
    table.later(1)
    table.reports("ben", "training")
    table.enter(table.by["anna"])
    table.later(59, *table.by.values())
    table.revoke(Verdict.REVOKED)
    table.close()
    table.watch()
    table.now += 9
    shown = {p["name"]: p for p in status(table.rounds, table.now, table.silos)["participants"]}
    assert shown["anna"]["last_failure"] is None
    assert shown["ben"]["last_failure"] == {
        "round": 0,
        "reason": "deadline",
        "detail": "",
        "phase": "training",
        "seconds": 60,
        "seconds_ago": 9,
    }
    silo = table.shown()["ben"]
    assert (silo["missed_deadlines"], silo["failures"]["deadline"]) == (1, 1)
    assert silo["consecutive_failures"] == {"deadline": 1}
    assert table.shown()["anna"]["consecutive_failures"] == {}


def test_the_status_shows_what_a_participant_does_and_for_how_long() -> None:
    table = Watched(replace(PLAN, min_clients=2), "anna")
    table.later(3, table.by["anna"])
    (shown,) = status(table.rounds, table.now, table.silos)["participants"]
    assert (shown["phase"], shown["phase_seconds"], shown["seconds_since_selection"]) == ("waiting", 3, None)
    table.join("ben")
    table.open()
    table.later(4)
    table.reports("anna", "training")
    table.later(5)
    shown, _ = table.status()["participants"]
    assert (shown["phase"], shown["phase_seconds"], shown["seconds_since_selection"]) == ("training", 5, 9)


def test_a_counted_update_ends_the_consecutive_failures() -> None:
    table = Watched(PLAN, "anna", "ben")
    for _ in range(2):
        table.misses("ben", "anna")
    assert table.shown()["ben"]["missed_deadlines"] == 2
    table.open()  # ben sits out
    table.enter(table.by["anna"])
    table.close()
    table.play(*table.by.values())
    ben = table.shown()["ben"]
    assert (ben["missed_deadlines"], ben["consecutive_failures"], ben["failures"]["deadline"]) == (0, {}, 2)
    assert (ben["last_counted_round"], ben["rounds_counted"]) == (3, 1)


@pytest.mark.parametrize(
    ("how", "reason"),
    [("refused", "refused"), ("leaves failing", "failed"), ("silent", "silent"), ("replaced", "replaced"), ("leaves", "")],
)
def test_failures_are_counted_once_and_by_reason(how: str, reason: str) -> None:
    table = Watched(replace(PLAN, heartbeat_timeout=10), "anna", "ben")
    table.open()
    anna, ben = table.by["anna"], table.by["ben"]
    match how:
        case "refused":
            table.enter(ben, outcome=Outcome.REFUSED, reason="NaN")
        case "leaves failing":
            table.leave(ben, "train failed: boom")
        case "silent":
            table.later(10, anna)
        case "replaced":
            table.join("ben", extended=True)
            table.later(9, anna)
        case "leaves":
            table.leave(ben)
    if how != "refused":
        table.revoke(Verdict.REVOKED)
    silo = table.shown()["ben"]
    assert silo["failures"] == {one: int(one == reason) for one in REASONS}
    assert silo["up"] is (how in ("refused", "replaced"))
    failure = table.silos.get("ben")
    assert failure is not None
    assert (failure.failure.round if failure.failure else None) == (0 if reason else None)


def test_a_failure_between_rounds_counts() -> None:
    table = Watched(PLAN, "anna", "ben")
    table.open()
    table.enter(*table.by.values())
    table.leave(table.by["ben"], "it failed 5 times")
    assert table.shown()["ben"]["failures"]["failed"] == 1
    (missing,) = [f for f in status(table.rounds, table.now, table.silos)["failures"] if f["name"] == "ben"]
    assert missing["reason"] == "it failed 5 times"


def test_a_late_participant_has_not_failed() -> None:
    table = Watched(replace(PLAN, quorum=0.5), "anna", "ben")
    table.open()
    table.enter(table.by["anna"])
    table.later(0)
    table.revoke(Verdict.REVOKED)
    table.close()
    silo = table.shown()["ben"]
    assert (silo["late"], silo["consecutive_failures"], silo["failures"]) == (1, {}, dict.fromkeys(REASONS, 0))


def test_a_participant_that_timed_out_is_missing_until_it_returns() -> None:
    table = Watched(replace(PLAN, heartbeat_timeout=10), "anna", "ben")
    table.later(6, table.by["anna"])
    table.later(6, table.by["anna"])
    assert (table.phase("anna")[0], table.phase("ben")) == ("selected", ("missing", 0))
    table.join("ben", extended=True)
    assert table.phase("ben")[0] != "missing"


def test_a_participant_with_more_than_half_of_the_samples_of_three_dominates() -> None:
    table = Watched(PLAN, "anna", "ben", "carl")
    for samples in ({"anna": 3, "ben": 1, "carl": 1}, {"anna": 2, "ben": 1, "carl": 1}, {"anna": 9, "ben": 1}):
        members = tuple(events.Contribution(name, count, 0.5, {}) for name, count in samples.items())
        table.silos.note(0, events.RoundCompleted(0, "", (), 0, sum(samples.values()), 1, 1.0, (), members))
    shown = table.shown()
    assert [shown[name]["dominated_rounds"] for name in samples] == [1, 0]
    assert shown["anna"]["round_duration_seconds"] == 0.5


def test_the_series_of_a_participant_end_an_hour_after_it_left() -> None:
    table = Watched(PLAN, "anna", "ben")
    table.open()
    table.enter(table.by["anna"])
    table.later(1, table.by["ben"])
    table.leave(table.by["anna"])
    table.watch()
    table.now += SHOWN_FOR
    anna = table.shown()["anna"]
    assert (anna["up"], anna["seats"], table.phase("anna")) == (False, 0, ("gone", SHOWN_FOR))
    assert anna["last_contact_timestamp_seconds"] == UNIX + table.now - SHOWN_FOR - 1
    id = table.join("anna", extended=True)
    anna = table.shown()["anna"]
    assert (anna["up"], anna["last_counted_round"]) == (True, 0)
    table.leave(id)
    table.watch()
    table.now += SHOWN_FOR + 1
    assert list(table.shown()) == ["ben"]


def test_participants_with_one_name_share_series_that_show_the_worst() -> None:
    table = Watched(replace(PLAN, min_clients=2), "twin")
    other = table.join("twin")
    table.open()
    table.later(1)
    table.reports("twin", "training")
    table.enter(other)
    table.later(2)
    twin = table.shown()["twin"]
    assert (twin["seats"], twin["up"], table.phase("twin")) == (2, True, ("training", 2))
    table.leave(table.by["twin"])
    twin = table.shown()["twin"]
    assert (twin["seats"], twin["up"], table.phase("twin")) == (1, True, ("counted", 2))


def test_beyond_the_limit_participants_with_a_problem_are_shown_first() -> None:
    table = Watched(PLAN, "anna", "ben", "carl", "dora")
    table.open()
    table.enter(table.by["dora"], table.by["carl"], table.by["anna"])
    table.rounds.present.trouble(table.by["dora"], "413")
    table.leave(table.by["ben"], "it failed")
    assert [list(table.shown(most)) for most in range(5)] == [
        [],
        ["dora"],
        ["ben", "dora"],
        ["anna", "ben", "dora"],
        ["anna", "ben", "carl", "dora"],
    ]
    assert by_name(table.rounds, table.silos, table.now, UNIX, 1)["omitted"] == 3


def test_names_of_removed_participants_are_forgotten() -> None:
    table = Watched(replace(PLAN, min_clients=10**6, heartbeat_timeout=1000))
    for n in range(MOST_GONE + 1):
        id = table.join(f"invented-{n}")
        table.watch()
        table.leave(id)
        table.watch()
    shown = table.shown(2 * MOST_GONE)
    assert (len(shown), "invented-0" in shown) == (MOST_GONE, False)


def test_metrics_are_from_the_last_round_with_some_and_their_names_are_bounded() -> None:
    table = Watched(PLAN, "anna", "ben")
    table.open()
    table.enter(table.by["anna"], figures={"loss": 1.0})
    table.enter(table.by["ben"], figures={"loss": 2.0} | {f"mine{n}": 0.0 for n in range(MAX_METRICS)})
    table.close()
    table.play(*table.by.values())
    found = Evaluation(1, 10, {"accuracy": 0.5})
    table.silos.note(0, events.Evaluated(1, 10, (), (), (), (events.Contribution("anna", 10, 1.0, found.metrics),)))
    for fact in (
        events.Evaluated(1, 10, (), (), (), (events.Contribution("nobody", 10, 1.0, {}),)),
        events.RoundCompleted(1, "", (), 0, 1, 1, 1.0, (), (events.Contribution("nobody", 10, 1.0, {}),)),
        events.UpdateCounted(1, "nobody", 1),
        events.ParticipantJoined("nobody", "nobody"),
        events.ParticipantGone("nobody", "nobody", "failed"),
        events.Revoked(1, "nobody", "deadline", "nobody"),
    ):
        table.silos.note(0, fact)
    shown = table.shown()
    assert list(shown) == ["anna", "ben"]
    assert (shown["anna"]["training_metric"], shown["anna"]["evaluation_metric"]) == ({"loss": 1.0}, {"accuracy": 0.5})
    assert shown["ben"]["training_metric"]["loss"] == 2.0
    assert len({name for silo in shown.values() for name in (*silo["training_metric"], *silo["evaluation_metric"])}) == MAX_METRICS


def test_the_shown_shard_is_the_one_that_is_trained() -> None:
    table = Watched(PLAN, "anna")
    table.join("berta", extended=True, claim=Claim(4, 3))
    assert {name: silo["shard"] for name, silo in table.shown().items()} == {"anna": None, "berta": 3}


def test_the_certificate_is_that_of_the_last_request() -> None:
    table = Watched(PLAN, "anna", "ben")
    names = [f"certificate_not_{end}_timestamp_seconds" for end in ("before", "after")]

    def certificate(name: str) -> list[float | None]:
        return [table.shown()[name][end] for end in names]

    table.silos.note_certificate(table.by["anna"], (1e9, 2e9))
    table.silos.note_certificate("nobody's id", (1e9, 3e9))
    assert (certificate("anna"), certificate("ben")) == ([1e9, 2e9], [None, None])
    table.rounds.leave(table.now, table.by["anna"])
    assert certificate("anna") == [1e9, 2e9]
    id = table.join("anna", extended=True)
    table.watch()
    table.silos.note_certificate(id, None)
    assert certificate("anna") == [None, None]


def test_a_rollback_removes_later_counts() -> None:
    table = Watched(PLAN, "anna", "ben")
    for _ in range(3):
        table.play(*table.by.values())
    table.join("carl")
    table.leave(table.by["ben"])
    assert {name: silo["last_counted_round"] for name, silo in table.shown().items()} == {"anna": 2, "ben": 2, "carl": None}
    table.rounds.recorded(table.now, Page("second-life", (), newest=Newest(0, 5), generation=1))
    assert {name: silo["last_counted_round"] for name, silo in table.shown().items()} == {"anna": 0, "ben": 0, "carl": None}


def test_participants_from_before_a_restart_are_shown_immediately() -> None:
    before = Watched(PLAN, "anna")
    before.open()
    before.enter(before.by["anna"])
    after = Rounds(PLAN, Random(1), 0.0, before.rounds.memory)
    shown = by_name(after, Silos(after.present), 1.0, UNIX, 200)["silos"]
    assert [(silo["name"], silo["up"], silo["last_counted_round"]) for silo in shown] == [("anna", True, 0)]
