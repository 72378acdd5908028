"""The participant's next or current exchanges, and the delays between attempts. Part of its core: no I/O, no clock."""

import math
from collections.abc import Callable, Iterator

from fedround.common.backoff import delays
from fedround.participant.moves import Heartbeat, Policy, Register, Transfer

FIRST_DELAY = 0.1
"""Seconds before the first retry."""
RETRY_AFTER_MAX = 60.0
"""Maximum seconds of a `Retry-After` that the participant respects."""
REGISTER_MAX = 20.0
"""Maximum seconds between two registrations of a participant that is rejected repeatedly."""
PAUSE, PAUSE_MAX = 1.0, 60.0
"""Seconds between a failure of user code and its next training: after the first failure, and the maximum."""


class Lane:
    """One exchange at a time: none, planned for `due`, or under way."""

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
        """Start the planned exchange if it is due, and return whether it was."""
        if self.due > now:
            return False
        self.due, self.under_way = math.inf, True
        return True

    def end(self) -> Transfer | None:
        """Return the exchange that was under way, and plan none."""
        command = self.command
        self.plan(math.inf)
        return command

    def delay(self, retry_after: float | None = None) -> float:
        """Return the seconds to wait before the next attempt."""
        return max(next(self._delays), min(retry_after or 0.0, RETRY_AFTER_MAX))

    def _new_delays(self) -> Iterator[float]:
        return delays(self._random, first=FIRST_DELAY, most=self._policy.reconnect_max, spread=0.5)


class Contact(Lane):
    """Exchanges with the coordinator. There is always a next one, and a time to give up after failures."""

    def __init__(self, policy: Policy, random: Callable[[], float]) -> None:
        super().__init__(policy, random)
        self.plan(-math.inf)
        self.long_polling = False
        """Whether the heartbeat under way is a long poll."""
        self.outdated = False
        """Whether the heartbeat under way was sent before the round ended, so that its response may be outdated."""
        self.give_up_at = math.inf
        self._started_at = -math.inf
        self._register_delays: Iterator[float] | None = None

    def command_for(self, id: str | None, wait: float, now: float) -> Register | Heartbeat:
        """Return the command for the exchange that has just started."""
        self._started_at, self.long_polling = now, wait > 0
        return Register() if id is None else Heartbeat(id, wait)

    def plan_now(self, now: float) -> None:
        """Plan an exchange for now, or for the response to the heartbeat under way."""
        self.outdated = self.under_way
        if not self.under_way:
            self.plan(now)

    def answered(self, now: float) -> None:
        self._delays = self._new_delays()
        self.give_up_at = math.inf
        self.plan(max(now, self._started_at + self._policy.heartbeat_period))

    def failed(self, retry_after: float | None, now: float) -> float:
        """Return the seconds to wait before the next attempt."""
        if self.give_up_at == math.inf and self._policy.give_up_after is not None:
            self.give_up_at = now + self._policy.give_up_after
        self.outdated = False
        return self.delay(retry_after)

    def register_at(self, now: float) -> float:
        """Return the time to register at after a rejection."""
        if self._register_delays is None:
            self._register_delays = delays(self._random, first=1.0, most=REGISTER_MAX)
            return now
        return now + next(self._register_delays)

    def accepted(self) -> None:
        """Record that the coordinator accepted the id: the next rejection counts as the first."""
        self._register_delays = None


class Failures:
    """Consecutive failures of user code."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.reset()

    def add(self) -> float:
        """Count one more. Return the seconds until user code gets another model."""
        self.count += 1
        return next(self._pauses)

    def reset(self) -> None:
        self.count = 0
        self._pauses = delays(self._random, first=PAUSE, most=PAUSE_MAX, spread=0.2)
