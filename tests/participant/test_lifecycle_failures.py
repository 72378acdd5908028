"""User code that fails: what the participant reports, and when it trains again."""

from collections.abc import Callable

import pytest

from fedround.events import Registered
from fedround.participant import moves as m
from support.lifecycle import ID, STAND_BY, Participant, training


def test_after_a_failure_it_leaves_with_the_reason_and_registers_after_growing_delays() -> None:
    participant = Participant(m.Policy(max_failures=9))
    pauses = []
    for _ in range(8):
        participant.join()
        participant.order()
        participant.download()
        assert participant.fail() == [m.Leave(ID, immediately=False, reason="it broke")]
        assert participant.state == "registering"
        pauses.append(participant.core.next_deadline() - participant.now)
        assert participant.wait() == [m.Register()]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert Registered(ID, "round_failed") in participant.facts


def train_and_fail(participant: Participant) -> list[m.Command]:
    participant.download()
    return participant.fail("it broke")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (train_and_fail, "it broke"),
        (lambda participant: participant.tell(m.ModelRefused(participant.at_hand, "too large")), "too large"),
    ],
)
def test_it_exits_after_the_maximum_of_consecutive_failures(failure: Callable[[Participant], list[m.Command]], reason: str) -> None:
    participant = Participant(m.Policy(max_failures=3))
    leave = m.Leave(ID, immediately=False, reason=reason)
    for last in (False, False, True):
        participant.join()
        participant.order()
        assert failure(participant) == ([leave, m.Exit(m.Reason.FAILED)] if last else [leave])
        participant.wait()
    assert participant.outcomes == ["failed"] * 3
    assert participant.state == "stopped"


def test_asked_to_stop_after_a_failure_it_exits_immediately() -> None:
    participant = training()
    participant.fail()
    assert participant.stop() == [m.Exit(m.Reason.STOPPED)]


def test_only_consecutive_failures_count() -> None:
    participant = Participant(m.Policy(max_failures=2))
    for _ in range(5):
        participant.join()
        participant.order()
        participant.download()
        participant.train()
        participant.upload()
        participant.order(1)
        participant.download()
        before = participant.now
        participant.fail()
        assert participant.wait() == [m.Register()]
        assert participant.now == before + 1, "the pauses begin anew, too"
    assert participant.core.exited is None


def test_a_failure_in_an_abandoned_round_does_not_count() -> None:
    participant = training(policy=m.Policy(max_failures=1))
    participant.hear(STAND_BY)
    participant.fail("interrupted")
    assert participant.core.exited is None
