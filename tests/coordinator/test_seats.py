"""Seats: first heartbeats, identities, and registrations after a restart."""

import math
from random import Random

import pytest

from fedround import events
from fedround.common.books import Close, Outcome, Page, Verdict
from fedround.common.wire import HeartbeatState
from fedround.coordinator.plan import Plan
from fedround.coordinator.presence import MOST_REGISTERED, PROBE
from fedround.coordinator.rounds import Rounds
from fedround.errors import Forbidden, NoSeat
from support.table import LIFE, Table


def ids(rounds: Rounds) -> set[str]:
    return {participant.id for participant in rounds.present}


# The first heartbeat


def test_a_registration_without_a_heartbeat_neither_counts_nor_is_selected() -> None:
    table = Table(Plan(min_clients=2), present=1)
    unheard = table.register()
    assert table.rests()
    assert table.status()["state"] == "waiting for participants: 1 of 2"
    assert table.status()["registered"] == 1
    assert len(table.facts(events.ParticipantJoined)) == 1
    assert table.rounds.start_training(unheard) is None
    assert table.rounds.memory.participants[0].id == table.ids[0]
    table.state(unheard)
    assert {a.id for a in table.open().admissions} == {unheard, *table.ids}


def test_registrations_without_heartbeats_delay_no_round() -> None:
    table = Table(Plan(min_clients=2, rounds=0), present=2)
    for number in range(20):
        table.register()
        assert {a.id for a in table.open().admissions} == set(table.ids)
        table.enter(*table.ids)
        table.close()
        table.later(1.0, *table.ids)
        assert table.rounds.round == number + 1
    newcomer = table.join(extended=True)
    assert table.rounds.present.find(newcomer).ordinal == 2  # type: ignore[union-attr]  # just joined
    assert table.status()["missing"] == []


def test_a_registration_times_out_unless_the_coordinator_was_suspended() -> None:
    table = Table(Plan(heartbeat_timeout=10), life="")
    first = table.register()
    table.later(9.0)
    table.rounds.suspended(table.now, 9.0)
    second = table.register()
    assert table.rounds.next_deadline() == table.now + 10
    table.later(9.5)
    assert table.state(second) is HeartbeatState.STAND_BY
    table.later(0.5)
    assert table.state(first) is HeartbeatState.REJECT
    assert table.facts(events.ParticipantGone) == []


def test_registrations_are_bounded_and_the_oldest_is_dropped() -> None:
    table = Table(Plan(min_clients=9))
    oldest, second = table.register(), table.register()
    for _ in range(MOST_REGISTERED - 1):
        table.register()
    assert table.status()["registered"] == MOST_REGISTERED
    assert table.state(oldest) is HeartbeatState.REJECT
    assert table.state(second) is HeartbeatState.STAND_BY


def test_a_registration_can_be_cancelled() -> None:
    table = Table(Plan(min_clients=9))
    assert table.leave(id := table.register(extended=True))
    assert table.state(id) is HeartbeatState.REJECT
    assert table.facts(events.ParticipantGone) == []


# Identities


@pytest.mark.parametrize("other", ["bert", ""])
def test_a_seat_with_an_owner_is_valid_only_for_the_owner(other: str) -> None:
    table = Table(Plan(min_clients=9))
    id = table.register("anna", owner="anna")
    for _ in ("only registered", "heard"):
        with pytest.raises(Forbidden):
            table.rounds.present.authorize(id, other)
        table.rounds.present.authorize(id, "anna")
        table.state(id)
    table.rounds.present.authorize(table.join(), other)
    table.rounds.present.authorize("unknown", other)


def test_an_identity_that_registers_again_replaces_its_seat_immediately() -> None:
    table = Table(Plan(min_clients=1), present=1)
    old = table.join("anna", owner="anna", extended=True)
    ordinal = table.rounds.present.find(old).ordinal  # type: ignore[union-attr]  # just joined
    table.join("other", extended=True)
    table.leave(table.ids[0])
    new = table.register("anna", owner="anna", extended=True)
    assert table.state(old) is HeartbeatState.REJECT
    assert [gone.reason for gone in table.facts(events.ParticipantGone)] == ["left", "replaced"]
    assert table.rounds.present.find(new).ordinal == ordinal  # type: ignore[union-attr]  # its shard stays the same


@pytest.mark.parametrize("counted", [True, False])
def test_an_identity_counts_once_in_a_round(counted: bool) -> None:
    table = Table(Plan(min_clients=2))
    old, other = table.join("anna", owner="anna"), table.join("bert", owner="bert")
    table.open()
    if counted:
        table.enter(old)
    new = table.join("anna", owner="anna")
    if not counted:
        assert table.revoke(Verdict.REVOKED) == old
    table.enter(other, outcome=Outcome.REFUSED)
    if counted:
        assert table.rests(), "the attempt has failed: nobody is left who was not counted"
        assert len(table.facts(events.AttemptDropped)) == 1
    else:
        table.admit()
        assert table.state(new) is HeartbeatState.ROUND


def test_an_identity_with_several_seats_has_at_most_one_part_per_seat() -> None:
    table = Table(Plan(min_clients=3, seats=2))
    first, second = table.join("anna", owner="anna"), table.join("anna", owner="anna")
    other = table.join("bert", owner="bert")
    assert {a.id for a in table.open().admissions} == {first, second, other}
    table.enter(first, second)
    third = table.join("anna", owner="anna")
    assert ids(table.rounds) == {second, third, other}
    table.leave(other)
    table.join("carl", owner="carl")
    table.revoke(Verdict.REVOKED)
    table.admit()
    assert table.rounds.attempt is not None
    assert third not in table.rounds.attempt.members


def test_after_a_restart_with_fewer_seats_an_identity_has_no_more_parts() -> None:
    before = Table(Plan(min_clients=3, seats=2))
    for owner in ("anna", "anna", "bert"):
        before.join(owner, owner=owner)
    table = Table(Plan(min_clients=2))
    table.rounds = Rounds(table.rounds.plan, Random(1), table.now, before.rounds.memory)
    table.rounds.recorded(table.now, Page(LIFE, ()))
    owners = [admission.owner for admission in table.open().admissions]
    assert sorted(owners) == ["anna", "bert"]


def test_participants_without_an_identity_share_a_limited_number_of_seats() -> None:
    table = Table(Plan(min_clients=99, shared_seats=2), present=1)
    late = table.register()
    last = table.join()
    with pytest.raises(NoSeat, match=r"all 2 seats .* COORDINATOR_SHARED_SEATS"):
        table.join()
    with pytest.raises(NoSeat):
        table.state(late)
    assert table.state(last) is HeartbeatState.STAND_BY
    table.join("anna", owner="anna")
    table.leave(last)
    assert table.state(late) is HeartbeatState.STAND_BY


# Former lives


def test_a_participant_that_restarts_costs_the_round_three_seconds() -> None:
    table = Table(Plan(min_clients=2, heartbeat_timeout=15), present=2, extended=True)
    table.open()
    killed, other = table.ids
    table.enter(other)
    table.later(2.0, other)
    new = table.join("silo-0", extended=True)
    assert table.facts(events.ParticipantProbed) == [events.ParticipantProbed(killed, "silo-0")]
    assert table.rounds.next_deadline() == table.now + PROBE
    table.later(PROBE, other, new)
    assert table.revoke(Verdict.REVOKED) == killed
    table.admit()
    table.enter(new)
    assert set(table.due(Close).ids) == {other, new}


def test_the_response_to_a_held_heartbeat_is_not_a_sign_of_life() -> None:
    table = Table(Plan(min_clients=9), present=1, extended=True)
    table.join("silo-0", extended=True)
    table.rounds.heartbeat(table.now, table.ids[0], idle=True, held=True)
    table.later(PROBE)
    assert table.ids[0] not in table.rounds.present


def test_registering_the_name_of_a_live_participant_does_not_remove_it() -> None:
    table = Table(Plan(min_clients=9), present=1, extended=True)
    (live,) = table.ids
    for _ in range(100):
        for _ in range(10):
            table.register("silo-0", extended=True)
        table.later(0.1, live)
    assert live in table.rounds.present
    probes = table.facts(events.ParticipantProbed)
    assert 2 <= len(probes) <= 10 / PROBE + 1


def test_a_participant_with_rare_heartbeats_has_time_for_the_next_one() -> None:
    table = Table(Plan(min_clients=9, heartbeat_timeout=15), present=1, extended=True)
    table.later(5.0, *table.ids)
    table.register("silo-0", extended=True)
    table.later(9.0)
    assert set(table.ids) <= ids(table.rounds)
    table.later(1.0)
    assert not set(table.ids) & ids(table.rounds)


def test_two_live_participants_with_one_name_are_both_selected() -> None:
    table = Table(Plan(min_clients=2), present=2, extended=True)
    table.open()
    twin = table.join("silo-0", extended=True)
    table.later(PROBE, *table.ids, twin)
    table.leave(table.ids[1])
    table.revoke(Verdict.REVOKED)
    table.admit()
    assert table.state(twin) is HeartbeatState.ROUND


def test_a_suspension_extends_the_time_of_participants_in_doubt() -> None:
    table = Table(Plan(min_clients=9), present=1, extended=True)
    table.register("silo-0", extended=True)
    table.now += 60
    table.rounds.suspended(table.now, 60)
    table.later(PROBE / 2)
    assert table.ids[0] in table.rounds.present
    table.later(PROBE / 2)
    assert table.ids[0] not in table.rounds.present


def test_seats_from_before_a_restart_can_be_in_doubt() -> None:
    before = Table(Plan(min_clients=2), present=2, extended=True)
    rounds = Rounds(before.rounds.plan, before.rounds._rng, before.now, before.rounds.memory)
    rounds.join(before.now, "silo-0", extended=True)
    rounds.heartbeat(before.now + 1, before.ids[1], idle=True)
    rounds.tick(before.now + PROBE)
    assert ids(rounds) == {before.ids[1]}


def test_participants_of_0_8_are_not_recognised_by_name() -> None:
    table = Table(Plan(min_clients=9))
    first = table.join("participant")
    table.join("participant")
    table.later(PROBE * 2)
    assert first in table.rounds.present
    assert table.facts(events.ParticipantProbed) == []


def test_without_participants_there_is_no_deadline() -> None:
    assert Table(Plan()).rounds.next_deadline() == math.inf
