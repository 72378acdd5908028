"""Participants and rounds that fail repeatedly."""

import pytest

from fedround import events
from fedround.common.books import Close, Outcome, Page, Verdict
from fedround.common.wire import HeartbeatState
from fedround.coordinator.attempt import REVOKE_AGAIN
from fedround.coordinator.failed_attempts import MOST_PAUSE, PAUSE
from fedround.coordinator.plan import UPLOAD_GRACE, Plan
from fedround.coordinator.reliability import MOST_RECORDS, MOST_SAT_OUT, Reliability
from fedround.coordinator.status import MOST_FAILURES
from fedround.errors import Busy
from support.table import Table


def play(table: Table, hung: str) -> bool:
    """Play a round in which all but `hung` upload immediately. Return whether `hung` was selected, and cost the whole time-out."""
    chosen = {admission.id for admission in table.open().admissions}
    table.enter(*(id for id in chosen if id != hung))
    if hung in chosen:
        table.later(table.rounds.plan.round_timeout, *table.ids)
        assert table.revoke(Verdict.REVOKED) == hung
    table.close()
    return hung in chosen


def test_a_participant_that_never_delivers_pauses_for_more_and_more_rounds() -> None:
    table = Table(Plan(rounds=0, min_clients=3, participants_ratio=0.7, round_timeout=10), present=3, extended=True)
    hung = table.ids[2]
    selected = [play(table, hung) for _ in range(100)]
    rounds = [number for number, was in enumerate(selected) if was]
    # It sits out 1, 2, 4, 8, 16 rounds, and then 32 each time.
    assert rounds == [0, 1, 3, 6, 11, 20, 37, 70]
    facts = table.facts(events.SatOut)
    assert [(fact.name, fact.failures, fact.rounds) for fact in facts[:2]] == [("silo-2", 2, 1), ("silo-2", 3, 2)]
    assert facts[0].reason == "deadline"


def test_a_counted_update_ends_the_pause() -> None:
    table = Table(Plan(rounds=0, min_clients=3, participants_ratio=0.7, round_timeout=10), present=3, extended=True)
    hung = table.ids[2]
    for _ in range(3):
        play(table, hung)
    play(table, "nobody")
    assert [record.failures for record in table.rounds.reliability] == [0]
    assert table.status()["sitting_out"] == 0
    assert table.status()["failures"][0]["reason"] == "deadline", "it can still be looked up"


def test_the_status_names_a_paused_participant() -> None:
    table = Table(Plan(rounds=0, min_clients=3, participants_ratio=0.7, round_timeout=10), present=3, extended=True)
    for _ in range(2):
        play(table, table.ids[2])
    table.now += 5
    told = table.status()
    assert [(p["name"], p["failures"], p["sits_out_until"]) for p in told["participants"]] == [
        ("silo-0", 0, None),
        ("silo-1", 0, None),
        ("silo-2", 2, 3),
    ]
    assert told["sitting_out"] == 1
    assert told["failures"] == [{"name": "silo-2", "failures": 2, "reason": "deadline", "seconds": 5.0}]


def test_a_paused_participant_is_selected_if_too_few_others_are_left() -> None:
    table = Table(Plan(rounds=0, min_clients=3, participants_ratio=0.7, round_timeout=10), present=3, extended=True)
    hung = table.ids[2]
    for _ in range(2):
        play(table, hung)
    assert {a.id for a in table.open().admissions} == set(table.ids[:2])
    table.enter(table.ids[0], outcome=Outcome.REFUSED)
    table.admit()
    assert table.state(hung) is HeartbeatState.ROUND


@pytest.mark.parametrize("known_by", ["name", "owner"])
def test_failures_are_kept_across_registrations(known_by: str) -> None:
    table = Table(Plan(rounds=0, min_clients=1, participants_ratio=0.6), present=2, extended=True)
    owner = "anna" if known_by == "owner" else ""
    for _ in range(2):
        failing = table.join("anna", extended=True, owner=owner)
        table.leave(failing, "RuntimeError in train_round: no such file")
    (fact,) = table.facts(events.SatOut)
    assert (fact.name, fact.rounds, fact.reason) == ("anna", 1, "RuntimeError in train_round: no such file")
    table.join("anna", extended=True, owner=owner)
    assert table.status()["sitting_out"] == 1


def test_an_update_does_not_clear_other_participants_with_the_same_name() -> None:
    table = Table(Plan(rounds=0, min_clients=2, round_timeout=10, heartbeat_timeout=1000), present=2, extended=True)
    play(table, "nobody")
    thief = table.join("silo-0", extended=True)
    table.later(1, *table.ids, thief)
    play(table, "nobody")  # this round had begun before it came
    assert [play(table, thief) for _ in range(7)] == [True, True, False, True, False, False, True]
    assert [p["failures"] for p in table.status()["participants"]] == [0, 0, 4]


def test_an_update_clears_the_failures_of_its_own_participant() -> None:
    table = Table(Plan(rounds=0, min_clients=3, participants_ratio=0.7, round_timeout=10), present=3, extended=True)
    play(table, "nobody")
    assert [play(table, table.ids[2]) for _ in range(6)] == [True, True, False, True, False, False]


@pytest.mark.parametrize("how", ["silent", "refused", "failed", "left"])
def test_time_outs_refusals_and_errors_of_code_are_failures(how: str) -> None:
    table = Table(Plan(rounds=0, min_clients=1, heartbeat_timeout=10), present=2, extended=True)
    one, other = table.ids
    table.open()
    if how == "refused":
        table.enter(one, outcome=Outcome.REFUSED, reason="float32 in place of float64")
    elif how == "silent":
        table.later(10, other)
        table.revoke(Verdict.REVOKED)
    else:
        table.leave(one, "it failed" if how == "failed" else "")
        table.revoke(Verdict.REVOKED)
    reasons = [record.reason for record in table.rounds.reliability]
    expected = {
        "silent": ["silent"],
        "refused": ["its update was refused: float32 in place of float64"],
        "failed": ["it failed"],
        "left": [],
    }
    assert reasons == expected[how]


def test_the_number_of_records_is_bounded() -> None:
    reliability = Reliability()
    for number in range(MOST_RECORDS + 5):
        reliability.failed(0.0, ("name", f"silo-{number}"), f"silo-{number}", 0, "deadline")
    records = list(reliability)
    assert (len(records), records[0].name) == (MOST_RECORDS, "silo-5")
    facts = [fact for _ in range(2000) for fact in reliability.failed(0.0, ("name", "silo-6"), "silo-6", 0, "deadline")]
    assert facts[-1].rounds == MOST_SAT_OUT
    reliability.counted(("name", "unknown"))
    assert not reliability.sits_out(("name", "unknown"), 0)


def test_the_status_shows_a_few_failures_the_last_first() -> None:
    table = Table(Plan(min_clients=9999), extended=True)
    for number in range(MOST_FAILURES + 1):
        table.leave(table.join(f"silo-{number}", extended=True), "broken")
    shown = table.status()["failures"]
    assert (len(shown), shown[0]["name"], shown[-1]["name"]) == (MOST_FAILURES, f"silo-{MOST_FAILURES}", "silo-1")


# Deadlines


def test_an_endless_upload_does_not_extend_its_deadline_forever() -> None:
    table = Table(Plan(round_timeout=60, heartbeat_timeout=1000), present=1)
    table.open()
    table.later(60)
    patience = []
    for _ in range(100):
        call = table.rounds.pending(table.now)
        if call is None:
            table.later(table.rounds.next_deadline() - table.now)
            continue
        patience.append(call.patience)  # type: ignore[union-attr]  # a revocation
        if patience[-1] == 0:
            break
        table.revoke(Verdict.RECEIVING)
    assert patience[0] == UPLOAD_GRACE
    assert patience[-1] == 0
    assert len(patience) == UPLOAD_GRACE / REVOKE_AGAIN + 1
    assert table.now == 160 + UPLOAD_GRACE


def test_the_grace_is_not_longer_than_a_round() -> None:
    assert (Plan(round_timeout=3).upload_grace, Plan(round_timeout=3600).upload_grace) == (3, UPLOAD_GRACE)


# Rounds that fail for a reason that does not pass


def test_a_round_that_keeps_failing_is_retried_after_growing_delays() -> None:
    table = Table(Plan(min_clients=2, heartbeat_timeout=10_000), present=2, extended=True)
    pauses = []
    for _ in range(9):
        table.open()
        table.enter(table.ids[0])
        table.enter(table.ids[1], outcome=Outcome.REFUSED, reason="float32 in place of float64")
        pauses.append(table.rounds.next_deadline() - table.now)
        table.later(pauses[-1])
    assert pauses == [1, 2, 4, 8, 16, 32, MOST_PAUSE, MOST_PAUSE, MOST_PAUSE]
    dropped = table.facts(events.AttemptDropped)
    assert [fact.failures for fact in dropped] == list(range(1, 10))
    assert [fact.pause for fact in dropped] == pauses
    reason = "too few updates (1 of 2): silo-1: its update was refused: float32 in place of float64"
    assert {fact.reason for fact in dropped} == {reason}
    told = table.status()
    assert (told["failed_attempts"], told["trouble"]) == (9, reason)
    table.play()
    told = table.status()
    assert (told["failed_attempts"], told["trouble"]) == (0, "")


def test_the_reason_names_a_lost_sum_and_a_restart_does_not_count_as_a_failure() -> None:
    table = Table(Plan(), present=1)
    for life, lost, failures in [("a", "", 0), ("b", "cannot make a model: it overflows", 1), ("c", "", 1)]:
        attempt = table.open().attempt
        if life == "b":  # a call meets it before the ledger's page is read
            table.rounds.lost(attempt)
            assert table.rests()
            assert table.rounds.start_training(table.ids[0]) is None
            assert table.rounds.next_deadline() > table.now
            table.rounds.tick(table.now)
        table.rounds.recorded(table.now, Page(life, (), lost=lost))
        (dropped,) = table.facts(events.AttemptDropped)
        assert dropped.reason == "the aggregator lost the updates of this round" + (f": {lost}" if lost else "")
        assert (dropped.failures, dropped.pause) == (failures, PAUSE)
        table.later(PAUSE)


def test_the_reason_names_a_few_of_many_failed_participants() -> None:
    table = Table(Plan(min_clients=8), present=8)
    table.open()
    for id in table.ids:
        table.enter(id, outcome=Outcome.REFUSED)
    (dropped,) = table.facts(events.AttemptDropped)
    assert dropped.reason.endswith("silo-4: refused; and 3 more")


def test_an_attempt_with_enough_updates_is_closed_although_others_failed() -> None:
    table = Table(Plan(min_clients=2, participants_ratio=0.5), present=2)
    (first,) = (a.id for a in table.open().admissions)
    table.enter(first)
    assert table.due(Close).ids == (first,)


def test_a_rollback_does_not_extend_a_pause() -> None:
    records, who = Reliability(), ("id", "a")
    for round in (498, 499, 500):
        records.failed(0.0, who, "a", round, "deadline")
    assert (records.sits_out(who, 502), records.sits_out(who, 503)) == (True, False)
    records.rolled_back(400)
    assert (records.sits_out(who, 102), records.sits_out(who, 103)) == (True, False)
    records.rolled_back(200)
    assert not records.sits_out(who, 0)


def test_a_training_participant_gets_busy_while_its_attempt_is_lost() -> None:
    table = Table(Plan(), present=1, extended=True)
    table.rounds.lost(table.open().attempt)
    with pytest.raises(Busy):
        table.state(table.ids[0])
    assert table.rounds.heartbeat(table.now, table.ids[0], idle=True).state is HeartbeatState.STAND_BY
