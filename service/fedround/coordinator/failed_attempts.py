"""The failed attempts of a round, and the pause before the next attempt. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass

PAUSE = 1.0
"""Seconds between a failed attempt and the next. They double with each attempt that fails for a lasting reason."""
MOST_PAUSE = 60.0
"""Maximum seconds between two attempts."""


@dataclass(frozen=True, slots=True)
class FailedAttempts:
    """The failed attempts since the last completed round."""

    lasting: int = 0
    """Number of attempts that failed for a lasting reason, such as refused updates."""
    reason: str = ""
    """Why the last attempt failed, for operators; empty: none failed."""
    not_before: float = -math.inf
    """When the next attempt may begin, in monotonic seconds."""

    def after(self, now: float, reason: str, *, lasting: bool) -> "FailedAttempts":
        """Return the failed attempts with one more."""
        count = self.lasting + lasting
        pause = min(PAUSE * 2.0 ** min(count - 1, 30), MOST_PAUSE) if lasting else PAUSE
        return FailedAttempts(count, reason, now + pause)
