"""What the lifecycle remembers of a round, and of exchanges that are due. No I/O, no clock; no rule of the protocol."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedround import wire
from fedround.backoff import delays
from fedround.participant.moves import Heartbeat, Order, Outcome, Policy, Register, Transfer, Upload
from fedround.wire import HeartbeatState

FIRST_DELAY = 0.1
RETRY_AFTER_MAX = 60.0
"""Seconds: no peer sends us away for longer."""
REJOIN_MAX = 20.0
"""Seconds, at most, between two registrations of a participant that is rejected again and again."""


class Lane:
    """Nothing planned, an exchange planned for `due`, or one under way."""

    def __init__(self, policy: Policy, random: Callable[[], float]) -> None:
        self.command: Transfer | None = None
        self.due = math.inf
        self.under_way = False
        self._policy = policy
        self._random = random
        self._delays = self._new_delays()

    def plan(self, at: float, command: Transfer | None = None) -> None:
        self.command, self.due, self.under_way = command, at, False

    def start(self, now: float) -> bool:
        """Whether something is due; then it is under way."""
        if self.due > now:
            return False
        self.due, self.under_way = math.inf, True
        return True

    def end(self) -> Transfer | None:
        """What was under way is answered, and nothing is planned."""
        command = self.command
        self.plan(math.inf)
        return command

    def delay(self, retry_after: float | None = None) -> float:
        """How long to wait until it is done again."""
        return max(next(self._delays), min(retry_after or 0.0, RETRY_AFTER_MAX))

    def _new_delays(self) -> Iterator[float]:
        return delays(self._random, first=FIRST_DELAY, most=self._policy.reconnect_max, spread=0.5)


class Contact(Lane):
    """The lane of the coordinator: there is always a next exchange, and it is known since when there was no answer."""

    def __init__(self, policy: Policy, random: Callable[[], float]) -> None:
        super().__init__(policy, random)
        self.plan(-math.inf)
        self.held = False
        """The heartbeat under way may be held."""
        self.outdated = False
        """The heartbeat under way was sent before the round ended: what it says of it is old."""
        self.give_up_at = math.inf
        self._asked_at = -math.inf
        self._rejoins: Iterator[float] | None = None

    def ask(self, id: str | None, wait: float, now: float) -> Register | Heartbeat:
        """The exchange that has just been started."""
        self._asked_at, self.held = now, wait > 0
        return Register() if id is None else Heartbeat(id, wait)

    def anew(self, now: float) -> None:
        """Ask at once; but if a heartbeat is under way, when it is answered."""
        self.outdated = self.under_way
        if not self.under_way:
            self.plan(now)

    def answered(self, now: float) -> None:
        self._delays = self._new_delays()
        self.give_up_at = math.inf
        self.plan(max(now, self._asked_at + self._policy.heartbeat_period))

    def failed(self, retry_after: float | None, now: float) -> float:
        """How long to wait until it is done again."""
        if self.give_up_at == math.inf and self._policy.give_up_after is not None:
            self.give_up_at = now + self._policy.give_up_after
        self.outdated = False
        return self.delay(retry_after)

    def rejoin(self, now: float) -> float:
        """When to register after a rejection."""
        if self._rejoins is None:
            self._rejoins = delays(self._random, first=1.0, most=REJOIN_MAX)
            return now
        return now + next(self._rejoins)

    def welcome(self) -> None:
        """The id is good: the next rejection will be a first one."""
        self._rejoins = None


@dataclass(frozen=True, slots=True)
class Kept:
    """For what the update that the shell keeps was trained, and on which model."""

    round: int
    etag: str | None


@dataclass(slots=True)
class Work:
    """The round that is worked on."""

    order: Order
    lane: Lane
    accepted_at: float | None = None
    etag: str | None = None
    sent_at: float | None = None
    """Since when the peer may have the update, without having said so."""
    over: bool = False
    """The heartbeat says so, but the upload is still under way."""
    deadline: float = math.inf
    """Of confirming, or of that upload."""
    dead_tokens: int = 0
    """How often it was ordered again because its token was dead, ..."""
    confirms: int = 0
    """... and because nobody confirmed the update."""

    @property
    def uploading(self) -> bool:
        return self.lane.under_way and isinstance(self.lane.command, Upload)

    @property
    def confirming(self) -> bool:
        return self.lane.command is None and self.sent_at is not None

    def may_have_arrived(self, now: float) -> None:
        if self.sent_at is None:
            self.sent_at = now

    def goes_on(self, answer: wire.Heartbeat) -> bool:
        return answer.state is HeartbeatState.ROUND and answer.round == self.order.round

    def verdict(self, answer: wire.Heartbeat) -> Outcome:
        """The outcome of the round that does not go on."""
        if self.sent_at is None:
            return Outcome.ABANDONED
        later = answer.round is not None and answer.round > self.order.round
        counted = answer.counted is not None and answer.counted >= self.order.round
        settled = later or counted or answer.state is HeartbeatState.FINISH
        return Outcome.COMPLETED if settled else Outcome.UNCONFIRMED
