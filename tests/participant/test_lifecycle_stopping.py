"""A participant that stops."""

from collections.abc import Callable

import pytest

from fedround.common.wire import HeartbeatState
from fedround.events import StateChanged
from fedround.participant import moves as m
from fedround.participant.lifecycle import LEAVE_TIMEOUT
from support.lifecycle import FINISH, ID, REJECT, ROUND, STAND_BY, Participant, confirming, of, training, waiting


def test_a_waiting_participant_leaves_immediately() -> None:
    participant = waiting()
    assert participant.stop() == [m.Leave(ID, immediately=True), m.Exit(m.Reason.STOPPED)]
    assert participant.state == "stopped"


def test_a_participant_without_an_id_exits_without_leaving() -> None:
    participant = Participant()
    participant.tell(m.RegistrationFailed("unreachable"))
    assert participant.stop() == [m.Exit(m.Reason.STOPPED)]


@pytest.mark.parametrize(
    ("answer", "commands"),
    [
        (m.Registered(ID), [m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]),
        (m.RegistrationRefused(), [m.Exit(m.Reason.FINISHED)]),
        (m.RegistrationFailed("unreachable"), [m.Exit(m.Reason.STOPPED)]),
    ],
)
def test_it_waits_for_the_registration_under_way_and_leaves_with_its_id(answer: m.Event, commands: list[m.Command]) -> None:
    participant = Participant()
    assert participant.stop(0.0) == []
    assert participant.facts[-1] == StateChanged("registering", None, draining=True)
    assert participant.tell(answer) == commands


def test_it_does_not_wait_long_for_a_registration() -> None:
    participant = Participant()
    participant.stop()
    assert participant.wait() == [m.Exit(m.Reason.STOPPED)]
    assert participant.now == 1000 + LEAVE_TIMEOUT


def test_a_round_that_ends_in_time_is_finished_before_leaving() -> None:
    participant = training()
    assert participant.stop() == [m.Hurry()]
    assert participant.facts[-1] == StateChanged("training", 0, draining=True)
    participant.hear(ROUND, 0)
    participant.train()
    assert of(m.Leave, participant.upload()) == [m.Leave(ID, immediately=False)]
    assert participant.outcomes == ["completed"]
    assert participant.state == "stopped"


def test_a_round_that_cannot_end_in_time_is_abandoned() -> None:
    participant = training()
    participant.stop(0.5)
    assert participant.wait() == [m.Cancel(), m.Leave(ID, immediately=False), m.Exit(m.Reason.STOPPED)]
    assert participant.outcomes == ["abandoned"]


@pytest.mark.parametrize(
    ("state", "outcome", "reason"),
    [
        (ROUND, "completed", m.Reason.STOPPED),
        (STAND_BY, "unconfirmed", m.Reason.STOPPED),
        (REJECT, "unconfirmed", m.Reason.STOPPED),
        (FINISH, "completed", m.Reason.FINISHED),
    ],
)
def test_a_stopping_participant_exits_when_a_heartbeat_ends_the_round(
    state: HeartbeatState, outcome: str, reason: m.Reason
) -> None:
    participant = confirming(3)
    participant.stop()
    participant.hear(state, 4 if state is ROUND else None)
    assert participant.outcomes == [outcome]
    assert participant.core.exited is reason


def test_an_error_of_user_code_while_draining_is_not_a_failure() -> None:
    participant = training(policy=m.Policy(max_failures=1))
    participant.stop()
    participant.fail("interrupted")
    assert participant.outcomes == ["abandoned"]
    assert participant.core.exited is m.Reason.STOPPED


@pytest.mark.parametrize(("begin", "commands"), [(Participant, []), (training, [m.Cancel()])])
def test_asked_twice_to_stop_it_exits_immediately(begin: Callable[[], Participant], commands: list[m.Command]) -> None:
    participant = begin()
    participant.stop()
    assert participant.stop() == [*commands, m.Exit(m.Reason.STOPPED, immediately=True)]
