"""Which updates are plausible, by their figures: no single update may end a training. A protocol core: no I/O, no clock.

The figures of an update are its sample count and its *change*: the L2 norm of its difference from the round's model, or of the
weights themselves where there is no model yet. Updates in a format that only the strategy understands have no change.

The rules:

1. A sample count above `Limits.samples` and a change above `Limits.change` are refused.
2. Each attempt teaches a *lesson*: the median of the changes and the second largest of the sample counts that it counted. Of fewer
   than three updates nobody can tell which one is odd: they teach the largest. Zeros teach nothing.
3. An update whose change or sample count is above `Limits.ratio` times the largest of the last `ROUNDS` lessons is refused.
   A change that is not larger than the model itself never is: training that has converged moves by noise.
4. While there is no lesson, the updates of an attempt are compared with each other at its end. Where one of three or more exceeds
   the attempt's own lesson as in rule 3, the attempt is void. Its lesson stays, so the odd update is refused when it comes again.
5. If rule 3 refuses more than half of the participants that an attempt admitted, then it is the training that has changed, and not
   a participant: the next attempt begins without lessons.
6. Sample counts matter only to a strategy that weighs by them: for others rules 2 to 4 look at the changes alone.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from fedround.errors import Implausible

ROUNDS = 10
"""Lessons that are remembered."""
FEW = 3
"""Updates from which on one can be told from the others."""
RATIO, SAMPLES = 100.0, 100_000_000
"""The defaults of `Limits.ratio` and `Limits.samples`."""

Norm = Callable[[], float]
"""Computes the L2 norm of the round's model; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an operator allows. `ratio` 0 turns the rules 3 to 5 off."""

    change: float = math.inf
    ratio: float = RATIO
    samples: int = SAMPLES
    weighted: bool = True
    """Whether the strategy weighs updates by their sample counts."""


@dataclass(frozen=True, slots=True)
class Figures:
    samples: int
    change: float = 0.0


NOTHING = Figures(0)
"""The lesson that nothing is known."""


@dataclass(frozen=True, slots=True)
class Odd:
    """An update that stands out from the others of its attempt, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dominant:
    """An update with more than half of the samples of its round."""

    id: str
    share: float


class Guard:
    """See the rules above. For one attempt after the other; `lessons` are of the rounds before, oldest first."""

    def __init__(self, limits: Limits = Limits(), lessons: Iterable[Figures] = ()) -> None:
        self._limits = limits
        self._lessons = deque(lessons, maxlen=ROUNDS)
        self._admitted: set[str] = set()
        self._refused: set[str] = set()
        self._counted: dict[str, Figures] = {}

    def roll_back(self, lessons: Iterable[Figures]) -> None:
        """Replace what was learned by the lessons of the rounds that are left."""
        self._lessons = deque(lessons, maxlen=ROUNDS)

    def open(self, ids: Iterable[str]) -> None:
        """Begin an attempt that admits these participants."""
        if 2 * len(self._refused) > len(self._admitted):
            self._lessons.clear()
        self._admitted, self._refused, self._counted = set(ids), set(), {}

    def admit(self, ids: Iterable[str]) -> None:
        """Admit more participants."""
        self._admitted.update(ids)

    def check(self, id: str, figures: Figures, norm: Norm) -> None:
        """Check an update of the open attempt. Raises `Implausible`."""
        limits = self._limits
        if figures.samples > limits.samples:
            raise Implausible(f"{figures.samples} samples are more than the {limits.samples} of AGGREGATOR_MAX_SAMPLES")
        if figures.change > limits.change:
            raise Implausible(
                f"a change of {figures.change:.3g} is more than the {limits.change:.3g} of AGGREGATOR_MAX_UPDATE_NORM"
            )
        samples = max((lesson.samples for lesson in self._lessons), default=0)
        change = max((lesson.change for lesson in self._lessons), default=0.0)
        if reason := self._excess(figures, Figures(samples, change), norm):
            self._refused.add(id)
            raise Implausible(reason)

    def count(self, id: str, figures: Figures) -> None:
        """Take note of an update that was counted."""
        self._counted[id] = figures

    def close(self, norm: Norm) -> Odd | None:
        """End the attempt and learn from it. Returns the update because of which it is void."""
        lesson, first = self._lesson(), not any(lesson.change or lesson.samples for lesson in self._lessons)
        self._lessons.append(lesson)
        if first and len(self._counted) >= FEW:
            for id, figures in self._counted.items():
                if reason := self._excess(figures, lesson, norm):
                    return Odd(id, reason)
        return None

    @property
    def newest(self) -> Figures:
        """The lesson of the attempt that was closed last."""
        return self._lessons[-1]

    def dominant(self) -> Dominant | None:
        """The update that outweighs all others together, where there are enough of them for that to be odd."""
        total = sum(figures.samples for figures in self._counted.values())
        if not self._limits.weighted or len(self._counted) < FEW or not total:
            return None
        id, largest = max(self._counted.items(), key=lambda item: item[1].samples)
        share = largest.samples / total
        return Dominant(id, share) if share > 0.5 else None

    def _lesson(self) -> Figures:
        few = len(self._counted) < FEW
        samples = sorted((figures.samples for figures in self._counted.values()), reverse=True)
        changes = [figures.change for figures in self._counted.values()]
        return Figures(samples[0 if few else 1], max(changes) if few else median(changes))

    def _excess(self, figures: Figures, lesson: Figures, norm: Norm) -> str:
        """Why an update is out of proportion to a lesson; empty if it is not."""
        ratio = self._limits.ratio
        most, change = ratio * lesson.samples, ratio * lesson.change
        if self._limits.weighted and 0 < most < figures.samples:
            return (
                f"{figures.samples} samples are more than {ratio:g} times the {lesson.samples} of other updates "
                "(AGGREGATOR_MAX_UPDATE_RATIO)"
            )
        if 0 < change < figures.change and figures.change > norm():
            return (
                f"a change of {figures.change:.3g} is more than {ratio:g} times the {lesson.change:.3g} of other updates, "
                "and larger than the model (AGGREGATOR_MAX_UPDATE_RATIO)"
            )
        return ""
