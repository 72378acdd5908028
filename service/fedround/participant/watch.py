"""The observer that maintains a participant's health and its `/status`."""

import time
from collections.abc import Callable

from fedround import events
from fedround.common.text import short
from fedround.events import Fact
from fedround.observability.health import STOPPING, Health
from fedround.participant.moves import Outcome, State

MARGIN = 5.0
"""Seconds that a heartbeat may be late."""
DELIVERED = (Outcome.COMPLETED, Outcome.UNCONFIRMED)
"""Outcomes of rounds whose update reached the aggregator."""


class StatusObserver:
    """Health and `/status` of a participant.

    It is ready if it is registered, its last heartbeat was accepted, and no proxy blocks its updates; or if training is complete.

    Args:
        name: Name of the participant.
        health: Health to update.
        within: Maximum seconds between two contacts with the coordinator.
        clock: Returns monotonic seconds.
    """

    def __init__(self, name: str, health: Health, *, within: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._health = health
        self._within = within + MARGIN
        self._clock = clock
        self._state = events.StateChanged(State.REGISTERING, None, draining=False)
        self._id = ""
        self._shard: str | None = None
        self._contact: float | None = None
        self._rounds: dict[str, int] = {}
        self._trouble = ""
        health.fault("coordinator", "not registered yet")

    def __call__(self, fact: Fact) -> None:
        """Update health and status from `fact`."""
        match fact:
            case events.StateChanged():
                self._state_changed(fact)
            case events.Registered(id):
                self._id = id
            case events.ShardAssigned(index, count):
                self._shard = f"{index}/{count}"
            case events.ContactMade():
                self._contact = self._clock()
                if self._state.state in (State.WAITING, State.TRAINING, State.CONFIRMING):
                    self._health.clear("coordinator", within=self._within)
            case events.ContactLost(reason) if self._state.state != State.FINISHED:
                self._health.fault("coordinator", f"no contact with the coordinator: {reason}")
            case events.TransferLost(reason):
                self._trouble = reason
                if fact.intercepted:
                    self._health.fault("aggregator", reason)
            case events.WorkerReady():
                self._health.clear("training")
            case events.WorkerEnded("unusable", reason):
                self._health.fault("training", f"the training process {reason}")
            case events.RoundEnded(outcome=outcome):
                self._rounds[outcome] = self._rounds.get(outcome, 0) + 1
                if outcome in DELIVERED:
                    self._trouble = ""
                    self._health.clear("aggregator")

    def _state_changed(self, fact: events.StateChanged) -> None:
        former, self._state = self._state.state, fact
        if fact.state == State.REGISTERING:
            self._health.fault("coordinator", "not registered")
        elif fact.state == State.FINISHED:
            self._health.clear("coordinator")
        elif former in (State.REGISTERING, State.FINISHED):
            self._health.clear("coordinator", within=self._within)
        if fact.draining or fact.state == State.STOPPED:
            self._health.fault("process", STOPPING)

    def status(self) -> dict[str, object]:
        """Return the state as JSON-able data, with a short id."""
        contact = self._contact
        return {
            "name": self._name,
            "state": "training complete" if self._state.state == State.FINISHED else self._state.state,
            "draining": self._state.draining,
            "round": self._state.round,
            "id": short(self._id),
            "shard": self._shard,
            "seconds_since_contact": None if contact is None else round(self._clock() - contact, 3),
            "rounds": self._rounds,
            "trouble": self._trouble,
        }
