"""The failed attempts of a round: why, how many, and when the next may begin. Part of the coordinator's core: no I/O, no clock."""

import math
from dataclasses import dataclass

PAUSE = 1.0
"""Seconds between a failed attempt and the next."""
MOST_PAUSE = 60.0
"""The same once many have failed for reasons that do not pass by themselves: the pause doubles with each."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What became of the attempts since the last completed round."""

    lasting: int = 0
    """How many failed for reasons that do not pass by themselves, such as refused updates."""
    reason: str = ""
    """Why the last one failed, for people; empty where none did."""
    not_before: float = -math.inf
    """When the next attempt may begin, in monotonic seconds."""

    def after(self, now: float, reason: str, *, lasting: bool) -> "Trouble":
        """Return the trouble after one more failed attempt."""
        failed = self.lasting + lasting
        pause = min(PAUSE * 2.0 ** min(failed - 1, 30), MOST_PAUSE) if lasting else PAUSE
        return Trouble(failed, reason, now + pause)
