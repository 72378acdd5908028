"""What the lifecycle remembers of a round, and of exchanges that are due. No I/O, no clock; no rule of the protocol."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fedround import wire
from fedround.backoff import delays
from fedround.participant.moves import Order, Outcome, Transfer, Upload
from fedround.wire import HeartbeatState

FIRST_DELAY = 0.1
RETRY_AFTER_MAX = 60.0
"""Seconds: no peer sends us away for longer."""


class Lane:
    """Nothing planned, an exchange planned for `due`, or one under way."""

    def __init__(self, random: Callable[[], float], most: float) -> None:
        self.command: Transfer | None = None
        self.due = math.inf
        self.under_way = False
        self._random = random
        self._most = most
        self.reset()

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

    def reset(self) -> None:
        """The peer is well: delays begin small again."""
        self._delays = delays(self._random, first=FIRST_DELAY, most=self._most, spread=0.5)


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
    """Since when a peer that says nothing may have the update."""
    over: bool = False
    """The heartbeat says so, but the upload is still under way."""
    deadline: float = math.inf
    """Of confirming, or of that upload."""
    orders: int = 0

    @property
    def uploading(self) -> bool:
        return self.lane.under_way and isinstance(self.lane.command, Upload)

    @property
    def confirming(self) -> bool:
        return self.lane.command is None and self.sent_at is not None

    def counted(self, answer: wire.Heartbeat) -> bool:
        return answer.counted is not None and answer.counted >= self.order.round

    def goes_on(self, answer: wire.Heartbeat) -> bool:
        ordered = answer.state is HeartbeatState.ROUND and answer.round == self.order.round
        return ordered and not (self.confirming and self.counted(answer))

    def verdict(self, answer: wire.Heartbeat) -> Outcome:
        """The outcome of the round that does not go on."""
        if self.sent_at is None:
            return Outcome.ABANDONED
        later = answer.round is not None and answer.round > self.order.round
        settled = later or answer.state is HeartbeatState.FINISH or self.counted(answer)
        return Outcome.COMPLETED if settled else Outcome.UNCONFIRMED
