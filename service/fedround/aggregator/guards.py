"""The guard: refuses implausible updates, so that no single update can ruin a training. A protocol core: no I/O, no clock.

The guard knows two values of an update: its sample count and its *change*. The change is the L2 norm of the difference from the
round's model, or of the weights if there is no model yet. Updates in a custom format have no change.

The rules:

1. The guard refuses an update with more samples than `Limits.samples` or a change above `Limits.change`.
2. Each attempt yields a *lesson*: the median of the counted changes and the second largest of the counted sample counts. With
   fewer than three updates an outlier cannot be recognised, so the lesson has the largest values. Zeros are ignored.
3. The guard refuses an update whose change or sample count exceeds `Limits.ratio` times the largest of the last `ROUNDS` lessons.
   It never refuses a change that is not larger than the model itself: after convergence, changes are small noise.
4. Without a lesson, the guard compares the updates of an attempt with each other at its end. If one of three or more exceeds the
   attempt's own lesson as in rule 3, the attempt is void. Its lesson stays, so the outlier is refused in the next attempt.
5. If rule 3 refuses more than half of the participants that an attempt admitted, the training has changed rather than a
   participant: the next attempt begins without lessons.
6. Strategies that do not weight by samples ignore sample counts: rules 2 to 4 then apply to the changes alone.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from fedround.errors import Implausible

ROUNDS = 10
"""Number of lessons that are remembered."""
FEW = 3
"""Minimum number of updates in which an outlier can be recognised."""
RATIO, SAMPLES = 100.0, 100_000_000
"""The defaults of `Limits.ratio` and `Limits.samples`."""

Norm = Callable[[], float]
"""Returns the L2 norm of the round's model; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that an operator sets. A `ratio` of 0 turns rules 3 to 5 off."""

    change: float = math.inf
    ratio: float = RATIO
    samples: int = SAMPLES
    weighted: bool = True
    """Whether the strategy weights updates by their sample counts."""


@dataclass(frozen=True, slots=True)
class Size:
    """The sample count and the change of an update."""

    samples: int
    change: float = 0.0


NOTHING = Size(0)
"""An empty lesson."""


@dataclass(frozen=True, slots=True)
class Odd:
    """An outlier among the updates of its attempt, and why it is one."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dominant:
    """An update with more than half of the samples of its round."""

    id: str
    share: float


class Guard:
    """See the rules above. It handles one attempt after another; `lessons` are of earlier rounds, oldest first."""

    def __init__(self, limits: Limits = Limits(), lessons: Iterable[Size] = ()) -> None:
        self._limits = limits
        self._lessons = deque(lessons, maxlen=ROUNDS)
        self._admitted: set[str] = set()
        self._refused: set[str] = set()
        self._counted: dict[str, Size] = {}

    def roll_back(self, lessons: Iterable[Size]) -> None:
        """Replace all lessons by those of the remaining rounds."""
        self._lessons = deque(lessons, maxlen=ROUNDS)

    def open(self, ids: Iterable[str]) -> None:
        """Begin an attempt that admits these participants."""
        if 2 * len(self._refused) > len(self._admitted):
            self._lessons.clear()
        self._admitted, self._refused, self._counted = set(ids), set(), {}

    def admit(self, ids: Iterable[str]) -> None:
        """Admit more participants."""
        self._admitted.update(ids)

    def check(self, id: str, size: Size, norm: Norm) -> None:
        """Check an update of the open attempt. Raises `Implausible`."""
        limits = self._limits
        if size.samples > limits.samples:
            raise Implausible(f"{size.samples} samples are more than the {limits.samples} of AGGREGATOR_MAX_SAMPLES")
        if size.change > limits.change:
            raise Implausible(f"a change of {size.change:.3g} is more than the {limits.change:.3g} of AGGREGATOR_MAX_UPDATE_NORM")
        samples = max((lesson.samples for lesson in self._lessons), default=0)
        change = max((lesson.change for lesson in self._lessons), default=0.0)
        if reason := self._excess(size, Size(samples, change), norm):
            self._refused.add(id)
            raise Implausible(reason)

    def count(self, id: str, size: Size) -> None:
        """Note a counted update."""
        self._counted[id] = size

    def close(self, norm: Norm) -> Odd | None:
        """End the attempt and add its lesson. Return the outlier that voids the attempt, if there is one."""
        lesson, first = self._lesson(), not any(lesson.change or lesson.samples for lesson in self._lessons)
        self._lessons.append(lesson)
        if first and len(self._counted) >= FEW:
            for id, size in self._counted.items():
                if reason := self._excess(size, lesson, norm):
                    return Odd(id, reason)
        return None

    @property
    def newest(self) -> Size:
        """The lesson of the attempt that was closed last."""
        return self._lessons[-1]

    def dominant(self) -> Dominant | None:
        """Return the update that outweighs all others together; None if there is none, or with fewer than `FEW` updates."""
        total = sum(size.samples for size in self._counted.values())
        if not self._limits.weighted or len(self._counted) < FEW or not total:
            return None
        id, largest = max(self._counted.items(), key=lambda item: item[1].samples)
        share = largest.samples / total
        return Dominant(id, share) if share > 0.5 else None

    def _lesson(self) -> Size:
        few = len(self._counted) < FEW
        samples = sorted((size.samples for size in self._counted.values()), reverse=True)
        changes = [size.change for size in self._counted.values()]
        return Size(samples[0 if few else 1], max(changes) if few else median(changes))

    def _excess(self, size: Size, lesson: Size, norm: Norm) -> str:
        """Return why an update exceeds a lesson; empty if it does not."""
        ratio = self._limits.ratio
        most, change = ratio * lesson.samples, ratio * lesson.change
        if self._limits.weighted and 0 < most < size.samples:
            return (
                f"{size.samples} samples are more than {ratio:g} times the {lesson.samples} of other updates "
                "(AGGREGATOR_MAX_UPDATE_RATIO)"
            )
        if 0 < change < size.change and size.change > norm():
            return (
                f"a change of {size.change:.3g} is more than {ratio:g} times the {lesson.change:.3g} of other updates, "
                "and larger than the model (AGGREGATOR_MAX_UPDATE_RATIO)"
            )
        return ""
