"""The state after restarts of coordinator and aggregator, and after rollbacks."""

from random import Random

import pytest

from fedround import events
from fedround.common.books import Admit, Measured, Newest, Open, Outcome, Page
from fedround.common.wire import HeartbeatState
from fedround.coordinator.failed_attempts import PAUSE
from fedround.coordinator.history import MOST
from fedround.coordinator.plan import Memory, Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.seats import Known
from fedround.coordinator.status import status
from support.table import LIFE, Table


def test_an_attempt_that_the_aggregator_lost_restarts_when_its_ledger_is_read() -> None:
    table = Table(Plan(), present=1)
    first = table.open()
    table.rounds.lost(first.attempt)
    assert table.rests()
    table.restart_aggregator()
    table.later(PAUSE)
    second = table.open()
    assert second.attempt != first.attempt
    assert second.round == first.round
    table.rounds.lost(first.attempt)
    assert table.rounds.attempt is not None
    assert table.rounds.attempt.id == second.attempt


def test_a_restarted_aggregator_has_lost_the_attempt() -> None:
    table = Table(Plan(min_clients=2), present=2)
    first = table.open()
    table.enter(table.ids[0])
    table.restart_aggregator()
    assert table.rounds.after == 0
    table.later(PAUSE)
    assert table.open().attempt != first.attempt


def test_a_restart_of_the_aggregator_before_any_attempt_changes_nothing() -> None:
    table = Table(Plan(min_clients=2), present=1)
    table.restart_aggregator()
    assert table.facts(events.AttemptDropped) == []


def test_a_round_is_complete_if_the_restarted_aggregator_has_its_model() -> None:
    table = Table(Plan(rounds=1), present=1)
    attempt = table.open().attempt
    table.enter(*table.ids, samples=3)
    table.rounds.take_facts()
    table.rounds.recorded(table.now, Page("second-life", (), Newest(0, parameters=5)))
    completed, over = table.rounds.take_facts()
    assert isinstance(completed, events.RoundCompleted)
    assert (completed.attempt, completed.samples, completed.parameters) == (attempt, 3, 5)
    assert over == events.TrainingCompleted(1)
    assert table.state(table.ids[0]) is HeartbeatState.FINISH


@pytest.mark.parametrize(("newest", "lost"), [(None, True), (1, True), (2, False), (3, False)])
def test_a_lost_model_of_the_last_round_is_reported(newest: int | None, lost: bool) -> None:
    core = Rounds(Plan(rounds=3), Random(1), memory=Memory(3))
    core.recorded(0, Page(LIFE, (), None if newest is None else Newest(newest, parameters=5)))
    told = [fact for fact in core.take_facts() if isinstance(fact, events.ModelsLost)]
    assert told == ([events.ModelsLost(2, newest)] if lost else [])


def known(*ids: str, owed: int) -> tuple[Known, ...]:
    return tuple(Known(id, id, n, extended=True, counted=owed - 1, owed=owed) for n, id in enumerate(ids))


@pytest.mark.parametrize(("newest", "rounds", "complete"), [(6, 10, False), (6, 7, True), (9, 0, False)])
def test_a_restarted_coordinator_continues_after_the_newest_model(newest: int, rounds: int, complete: bool) -> None:
    core = Rounds(Plan(rounds=rounds), Random(1), memory=Memory(4, known("anna", owed=4)))
    core.recorded(0, Page(LIFE, (), Newest(newest, parameters=5)))
    assert (core.round, core.complete) == (newest + 1, complete)
    assert ([type(fact) for fact in core.take_facts()] == [events.TrainingCompleted]) is complete
    call = core.pending(0)
    assert call is None if complete else isinstance(call, Open) and call.round == newest + 1


def test_participants_that_may_have_delivered_before_a_restart_are_selected_first() -> None:
    ids = [f"silo-{n}" for n in range(20)]
    memory = Memory(4, known(*ids[:3], owed=4) + known(*ids[3:], owed=3))
    core = Rounds(Plan(participants_ratio=0.1, min_clients=20), Random(1), memory=memory)
    core.recorded(0, Page(LIFE, ()))
    call = core.pending(0)
    assert isinstance(call, Open)
    assert {admission.id for admission in call.admissions} == set(ids[:3])
    assert {p.id for p in core.memory.participants if p.owed == 4} == set(ids[:3])


def test_the_members_of_a_round_are_persisted_whether_they_delivered_or_not() -> None:
    table = Table(Plan(participants_ratio=0.5, min_clients=4), present=4)
    table.open()
    assert table.rounds.attempt is not None
    members = set(table.rounds.attempt.members)
    table.enter(min(members))
    assert {p.id for p in table.rounds.memory.participants if p.owed == 0} == members
    assert len(members) == 2


def test_the_grace_after_a_restart_ends_with_the_first_heartbeat() -> None:
    core = Rounds(Plan(min_clients=99, heartbeat_timeout=15), Random(1), memory=Memory(0, known("heard", "silent", owed=0)))
    core.heartbeat(1, "heard", idle=True)
    assert core.next_deadline() == 16
    core.tick(16)
    assert [p.id for p in core.present] == ["silent"]
    core.heartbeat(20, "silent", idle=True)
    core.heartbeat(22, "silent", idle=True)
    core.tick(36)
    assert [p.id for p in core.present] == ["silent"]
    core.tick(37)
    assert [p.id for p in core.present] == []


def test_members_of_a_lost_attempt_are_selected_first_unless_they_were_refused() -> None:
    table = Table(Plan(participants_ratio=0.1, min_clients=20), present=20)
    refused, member = (admission.id for admission in table.open().admissions)
    table.enter(refused, outcome=Outcome.REFUSED)
    call = table.due(Admit)
    table.rounds.answered(table.now, call, None)
    # Both who have a part now may have been told that their updates were counted, though no entry was read.
    table.restart_aggregator()
    table.later(PAUSE)
    members = {member, call.admissions[0].id}
    assert {admission.id for admission in table.open().admissions} == members
    assert {p.id for p in table.rounds.memory.participants if p.owed == 0} == members


def test_the_last_rounds_are_persisted_with_statistics_of_their_models() -> None:
    table = Table(Plan(rounds=0), present=1)
    for number in range(MOST + 2):
        table.play(*table.ids, figures={"loss": 1 / (number + 1)})
        # A page may come late and have several statistics. Those of a round that is forgotten, or not over, have no effect.
        measured = tuple(Measured(n, {"mean": float(n)}) for n in (number - 1, number, number + 1))
        table.rounds.recorded(table.now, Page(LIFE, (), measured=measured))
    back = Rounds(Plan(rounds=0), Random(1), memory=table.rounds.memory)
    before, after = (status(rounds, 0)["last_rounds"] for rounds in (table.rounds, back))
    assert after == before
    assert [past["round"] for past in after] == list(range(2, MOST + 2))
    assert [past["weights"]["mean"] for past in after] == [past["round"] for past in after]
    assert after[-1]["figures"] == {"loss": 1 / (MOST + 2)}


def rolled_back(table: Table, newest: int, generation: int) -> None:
    table.rounds.recorded(table.now, Page(f"generation-{generation}", (), Newest(newest, 5), generation=generation))


def after_rounds(count: int, plan: Plan) -> Table:
    """A table with this many completed rounds. The next one is open, unless that was the last."""
    table = Table(plan, present=1)
    for _ in range(count):
        table.play()
    return table


def test_after_a_rollback_the_round_after_the_newest_model_is_next() -> None:
    table = after_rounds(5, Plan(rounds=8))
    (id,) = table.ids
    attempt = table.open().attempt
    table.rounds.take_facts()
    rolled_back(table, 2, 1)
    assert table.facts(events.RolledBack) == [events.RolledBack(5, 2)]
    assert table.rounds.round == 3
    answer = table.rounds.heartbeat(table.now, id)
    assert (answer.state, answer.counted) == (HeartbeatState.STAND_BY, 2)
    assert [past["round"] for past in table.status()["last_rounds"]] == [0, 1, 2]
    assert [past.get("rollbacks") for past in table.status()["last_rounds"]] == [None, None, 1]
    call = table.due(Open)
    assert (call.round, call.attempt != attempt) == (3, True)


def test_a_rollback_continues_a_complete_training() -> None:
    table = after_rounds(3, Plan(rounds=3))
    (id,) = table.ids
    assert table.state(id) is HeartbeatState.FINISH
    assert table.rounds.join(table.now, "late") is None
    rolled_back(table, 0, 1)
    assert table.state(id) is HeartbeatState.STAND_BY
    assert table.open().round == 1


def test_a_rollback_to_the_newest_model_voids_only_the_open_attempt() -> None:
    table = after_rounds(2, Plan())
    (id,) = table.ids
    table.open()
    rolled_back(table, 1, 1)
    assert (table.rounds.round, table.rounds.memory.participants[0].owed) == (2, 2)
    assert table.rounds.heartbeat(table.now, id).counted == 1
    rolled_back(table, 0, 2)
    assert table.rounds.memory.participants[0].owed == 1


def test_a_rollback_while_the_coordinator_was_away_shows_in_the_generation() -> None:
    memory = after_rounds(5, Plan()).rounds.memory
    assert memory.generation == 0
    back = Rounds(Plan(), Random(1), 0.0, memory)
    back.recorded(0.0, Page("life", (), Newest(2, 5), generation=1))
    assert (back.round, back.memory.generation) == (3, 1)
    assert [type(fact) for fact in back.take_facts()] == [events.RolledBack]
    assert [past.round for past in back.history] == [0, 1, 2]


@pytest.mark.parametrize("generation", [0, 3])
def test_a_coordinator_without_memory_continues_from_the_newest_model(generation: int) -> None:
    fresh = Rounds(Plan(), Random(1))
    fresh.recorded(0.0, Page("life", (), Newest(4, 5), generation=generation))
    assert (fresh.round, fresh.take_facts()) == (5, [])


def test_models_of_an_earlier_generation_are_lost_models_and_no_rollback() -> None:
    table = after_rounds(3, Plan())
    rolled_back(table, 1, 2)
    table.rounds.take_facts()
    table.rounds.recorded(table.now, Page("restored", (), Newest(0, 5), generation=1))
    assert table.facts(events.ModelsLost) == [events.ModelsLost(1, 0)]
    assert table.rounds.round == 2
