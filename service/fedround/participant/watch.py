"""What operators see of a participant: an observer that keeps its health and its `/status`."""

import time
from collections.abc import Callable

from fedround import events
from fedround.events import Fact, short
from fedround.observability.health import Health
from fedround.participant.moves import State

MARGIN = 5.0
"""Seconds by which a heartbeat may be late."""


class Watch:
    """Ready means: registered, and the last heartbeat was accepted, or training is complete. `within`: how often contact is due."""

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
        health.fault("coordinator", "not registered yet")

    def __call__(self, fact: Fact) -> None:
        """Take note of `fact`."""
        match fact:
            case events.StateChanged():
                self._state_changed(fact)
            case events.Registered(id):
                self._id = id
            case events.ShardTaken(index, count):
                self._shard = f"{index}/{count}"
            case events.ContactMade():
                self._contact = self._clock()
                if self._state.state in (State.WAITING, State.TRAINING, State.CONFIRMING):
                    self._health.fine("coordinator", within=self._within)
            case events.ContactLost(reason) if self._state.state != State.FINISHED:
                self._health.fault("coordinator", f"no contact with the coordinator: {reason}")
            case events.RoundEnded(outcome=outcome):
                self._rounds[outcome] = self._rounds.get(outcome, 0) + 1

    def _state_changed(self, fact: events.StateChanged) -> None:
        former, self._state = self._state.state, fact
        if fact.state == State.REGISTERING:
            self._health.fault("coordinator", "not registered")
        elif fact.state == State.FINISHED:
            self._health.fine("coordinator")
        elif former in (State.REGISTERING, State.FINISHED):
            self._health.fine("coordinator", within=self._within)
        if fact.draining or fact.state == State.STOPPED:
            self._health.fault("process", "it stops")

    def status(self) -> dict[str, object]:
        """The state as JSON-able data, the id cut."""
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
        }
