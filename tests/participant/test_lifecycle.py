"""The participant's lifecycle: contact with the coordinator, the end of training, illegal and late responses."""

import math
from collections.abc import Iterable

import pytest

from fedround.common import wire
from fedround.common.wire import UpdateOutcome
from fedround.errors import IllegalMove
from fedround.events import ContactLost, ContactMade, Registered, RegistrationRefused, Retrying, StateChanged
from fedround.participant import moves as m
from fedround.participant.lane import Failures, Lane
from fedround.participant.lifecycle import ASK_FINISHED, Lifecycle
from fedround.participant.work import SETTLE, Work
from support.lifecycle import FINISH, ID, REJECT, ROUND, STAND_BY, TOKEN, URL, Participant, training, uploading, waiting


def test_a_participant_starts_by_registering() -> None:
    participant = Participant()
    assert participant.asked == m.Register()
    assert participant.state == "registering"
    assert participant.join() == [m.Heartbeat(ID, wait=15.0)]
    assert participant.facts == [
        StateChanged("registering", None, False),
        ContactMade(),
        Registered(ID, "start"),
        StateChanged("waiting", None, False),
    ]


def test_a_failed_registration_is_retried_forever_within_the_maximum_delay() -> None:
    participant = Participant()
    for _ in range(50):
        participant.tell(m.RegistrationFailed("unreachable", None, "no such host"))
        assert participant.core.next_deadline() - participant.now <= 1.5
        assert participant.wait() == [m.Register()]
    assert participant.facts[1:3] == [ContactLost("no such host"), Retrying("/rendez_vous", "unreachable", 0.1)]


def test_retry_after_of_a_busy_coordinator_is_respected_up_to_a_minute() -> None:
    participant = waiting()
    participant.tell(m.HeartbeatFailed(ID, "busy", 7.0))
    assert participant.core.next_deadline() == participant.now + 7
    participant.wait()
    participant.tell(m.HeartbeatFailed(ID, "busy", 1e9))
    assert participant.core.next_deadline() == participant.now + 60


def test_it_gives_up_after_the_configured_time_without_contact() -> None:
    participant = training(policy=m.Policy(give_up_after=5.0))
    while participant.core.exited is None:
        for command in participant.wait():
            if isinstance(command, m.Heartbeat):
                participant.tell(m.HeartbeatFailed(ID, "unreachable"))
    assert participant.core.exited is m.Reason.GAVE_UP
    assert participant.state == "stopped"
    assert participant.outcomes == ["abandoned"]
    assert 1005 <= participant.now <= 1008


def test_a_response_resets_the_time_to_give_up() -> None:
    participant = waiting(m.Policy(give_up_after=5.0))
    participant.tell(m.HeartbeatFailed(ID, "unreachable"))
    participant.hear(STAND_BY)
    participant.tell(m.TimerFired(), after=100)
    assert participant.core.exited is None


def test_the_next_heartbeat_follows_a_held_one_immediately() -> None:
    participant = waiting()
    participant.now += 15
    assert participant.hear(STAND_BY) == [m.Heartbeat(ID, wait=15.0)]


def test_a_coordinator_that_does_not_hold_heartbeats_is_polled_once_a_period() -> None:
    participant = waiting()
    assert participant.hear(STAND_BY) == []
    assert participant.core.next_deadline() == participant.now + 1


def test_a_rejected_participant_registers_immediately_then_after_growing_delays() -> None:
    participant = waiting()
    assert participant.hear(REJECT) == [m.Register()]
    pauses = []
    for _ in range(8):
        participant.join()
        participant.hear(REJECT)
        pauses.append(participant.core.next_deadline() - participant.now)
        participant.wait()
    assert pauses == [1, 2, 4, 8, 16, 20, 20, 20]
    assert Registered(ID, "rejected") in participant.facts


def test_after_an_accepted_heartbeat_a_rejection_counts_as_the_first_again() -> None:
    participant = waiting()
    participant.hear(REJECT)
    participant.join("b")
    participant.hear(STAND_BY)
    assert participant.hear(REJECT) == [m.Register()]


def test_finish_makes_the_participant_exit() -> None:
    participant = waiting()
    assert participant.hear(FINISH) == [m.Exit(m.Reason.FINISHED)]
    assert participant.state == "finished"
    assert participant.core.next_deadline() == math.inf
    assert participant.tell(m.StopRequested()) == []


def test_a_refused_registration_means_that_training_is_complete() -> None:
    participant = Participant()
    assert participant.tell(m.RegistrationRefused()) == [m.Exit(m.Reason.FINISHED)]
    assert RegistrationRefused() in participant.facts


def test_a_participant_that_stays_after_finish_asks_whether_training_continues() -> None:
    participant = waiting(m.Policy(exit_after_finish=False, give_up_after=1.0))
    assert participant.hear(FINISH) == []
    for answer in (m.RegistrationRefused(), m.RegistrationFailed("unreachable"), m.RegistrationRefused()):
        assert participant.state == "finished"
        assert participant.core.next_deadline() == participant.now + ASK_FINISHED
        assert participant.wait() == [m.Register()]
        participant.tell(answer)
    participant.wait()
    participant.join("b")
    assert participant.state == "waiting"
    assert participant.asked == m.Heartbeat("b", 15.0)


def test_finish_cancels_the_training() -> None:
    participant = training()
    assert participant.hear(FINISH) == [m.Cancel(), m.Exit(m.Reason.FINISHED)]
    assert participant.outcomes == ["abandoned"]


def test_finish_during_an_upload_waits_for_its_response_without_heartbeats() -> None:
    participant = uploading()
    participant.hear(FINISH)
    assert participant.state == "training"
    assert participant.core.next_deadline() == participant.now + SETTLE
    assert participant.upload() == [m.Discard(), m.Exit(m.Reason.FINISHED)]
    assert participant.outcomes == ["completed"]


def test_late_responses_change_nothing() -> None:
    participant = uploading()
    old = participant.at_hand
    participant.hear(REJECT)
    participant.join("b")
    before = participant.core.state, participant.core.next_deadline()
    answer = wire.Heartbeat(FINISH)
    for event in (
        m.HeartbeatAnswered(ID, answer),
        m.HeartbeatFailed(ID, "x"),
        m.UploadAnswered(old, UpdateOutcome.COUNTED),
        m.TransferRefused(old, 422),
    ):
        assert participant.tell(event) == []
        assert (participant.core.state, participant.core.next_deadline()) == before


def insides(thing: object) -> object:
    """Return everything that an object of the core consists of, for a comparison."""
    if not isinstance(thing, Lifecycle | Lane | Work | Failures):
        return repr(thing)
    names: Iterable[str] = getattr(thing, "__dict__", ()) or getattr(thing, "__slots__", ())
    return {name: insides(getattr(thing, name)) for name in names}


@pytest.mark.parametrize(
    "event",
    [
        m.Registered("b"),
        m.RegistrationRefused(),
        m.RegistrationFailed("x"),
        m.StartTrainingAnswered(m.TrainingRequest(1, ID, 0), wire.StartTraining(None, None)),
        m.UploadAnswered(m.TrainingRequest(1, ID, 0), UpdateOutcome.COUNTED),
        m.Downloaded(m.TrainingRequest(1, ID, 0), None),
        m.ModelRefused(m.TrainingRequest(1, ID, 0), "x"),
        m.TransferFailed(m.TrainingRequest(1, ID, 0), "x"),
        m.TransferRefused(m.TrainingRequest(1, ID, 0), 409),
        m.Trained(m.TrainingRequest(9, ID, 0)),
        m.TrainingFailed(m.TrainingRequest(9, ID, 0), "x"),
        m.HeartbeatAnswered(ID, wire.Heartbeat(STAND_BY)),
        m.HeartbeatFailed(ID, "x"),
    ],
)
def test_an_unasked_response_raises_and_changes_nothing(event: m.Event) -> None:
    participant = training()
    before = insides(participant.core)
    with pytest.raises(IllegalMove, match=rf"{type(event).__name__}.* is not possible in training"):
        participant.tell(event)
    assert insides(participant.core) == before


def test_the_repr_of_events_and_commands_has_no_id_or_token() -> None:
    order = m.TrainingRequest(1, ID, 0, URL, TOKEN)
    answered = m.HeartbeatAnswered(ID, wire.Heartbeat(ROUND, 1, token=TOKEN))
    shown = repr([m.Registered(ID), answered, m.Upload(order), m.Heartbeat(ID, 0), m.Leave(ID, immediately=True), m.Train(order)])
    assert ID not in shown
    assert TOKEN not in shown
