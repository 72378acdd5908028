"""Log lines about lost contact."""

import logging

import pytest

from fedround import events
from fedround.events import Fact
from fedround.observability.contact import Contacts
from fedround.observability.logs import LogObserver


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


LOST = [
    ("coordinator", events.ContactLost("refused"), events.ContactMade()),
    ("aggregator", events.AggregatorUnreachable("open", "refused"), events.AggregatorReached()),
    ("aggregator", events.TransferLost("refused"), events.ExchangeEnded("GET", "/{id}/{token}", 200, None, 0.1, 0, 0)),
]


@pytest.mark.parametrize(("peer", "lost", "made"), LOST)
def test_a_lost_contact_is_logged_every_five_minutes_and_its_duration_at_the_end(peer: str, lost: Fact, made: Fact) -> None:
    clock = Clock()
    contacts = Contacts(clock)
    told = []
    for second in range(3700):
        clock.now = 1000.0 + second
        told += [(second, line[1]) for line in [contacts.line(lost)] if line]
    assert told[:3] == [
        (0, f"no contact with the {peer}: refused; retrying"),
        (300, f"no contact with the {peer} for 5 min: refused; retrying"),
        (600, f"no contact with the {peer} for 10 min: refused; retrying"),
    ]
    assert told[12] == (3600, f"no contact with the {peer} for 1 h: refused; retrying")
    assert len(told) == 13
    clock.now += 31
    assert contacts.line(made) == (logging.INFO, f"in contact with the {peer} after 1 h 2 min without")
    assert contacts.line(made) is None
    assert contacts.line(lost) == (logging.WARNING, f"no contact with the {peer}: refused; retrying")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.5, ""), (1, " after 1 s without"), (75, " after 1 min 15 s without"), (86400 * 3, " after 3 d without")],
)
def test_the_duration_of_a_lost_contact_is_logged_unless_it_was_short(seconds: float, told: str) -> None:
    clock = Clock()
    contacts = Contacts(clock)
    contacts.line(events.ContactLost("refused"))
    clock.now += seconds
    assert contacts.line(events.ContactMade()) == (logging.INFO, f"in contact with the coordinator{told}")


def test_a_lost_contact_is_repeated_in_the_log_and_in_the_last_warnings(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = LogObserver(clock=clock)
    for _ in range(3):
        log(events.ContactLost("refused"))
        clock.now += 299
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert [warning["text"] for warning in log.warnings][1] == "no contact with the coordinator for 9 min 58 s: refused; retrying"
