"""The guard: it refuses implausible updates, so that no single update can ruin a training. A protocol core: no I/O, no clock.

The guard compares two values of an update: its sample count and its *change*. The change is the L2 norm of the difference from the
round's model, or of the weights if there is no model yet. Updates in a custom format have no change.

The rules:

1. The guard refuses an update with more samples than `Limits.samples` or a change above `Limits.change`.
2. Each attempt yields a *baseline*: the median of the counted changes, and the second largest of the counted sample counts. With
   fewer than three updates no outlier can be recognised, so the baseline has the largest values. Zeros are ignored.
3. The guard refuses an update whose change or sample count exceeds `Limits.ratio` times the largest of the last `ROUNDS` baselines.
   It never refuses a change that is no larger than the model itself: after convergence, changes are small noise.
4. Without a baseline, the guard compares the updates of an attempt with each other at its end. If one of three or more exceeds the
   attempt's own baseline as in rule 3, the attempt is void. The baseline stays, so the next attempt refuses the outlier.
5. If rule 3 refuses more than half of the participants that an attempt admitted, the training itself has changed. Then the next
   attempt begins without baselines.
6. If the strategy does not weight by samples, the guard ignores sample counts in rules 2 to 4.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from fedround.errors import Implausible

ROUNDS = 10
"""Maximum number of baselines to remember."""
FEW = 3
"""Minimum number of updates to recognise an outlier."""
RATIO, SAMPLES = 100.0, 100_000_000
"""The defaults of `Limits.ratio` and `Limits.samples`."""

Norm = Callable[[], float]
"""Returns the L2 norm of the round's model; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the settings. A `ratio` of 0 turns rules 3 to 5 off."""

    change: float = math.inf
    """Maximum L2 norm of a change."""
    ratio: float = RATIO
    """Maximum ratio of a change or a sample count to the baselines."""
    samples: int = SAMPLES
    """Maximum sample count."""
    weighted: bool = True
    """Whether the strategy weights updates by their sample counts."""


@dataclass(frozen=True, slots=True)
class Size:
    """The sample count and the change of an update, or of a baseline."""

    samples: int
    change: float = 0.0


NO_BASELINE = Size(0)
"""An empty baseline."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """The participant whose update is an outlier in its attempt, and the reason."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Dominant:
    """The participant whose update has more than half of the samples of its round, and the share."""

    id: str
    share: float


class Guard:
    """The guard of a training, by the rules above.

    Args:
        limits: The limits of the settings.
        baselines: The baselines of earlier rounds, oldest first.
    """

    def __init__(self, limits: Limits = Limits(), baselines: Iterable[Size] = ()) -> None:
        self._limits = limits
        self._baselines = deque(baselines, maxlen=ROUNDS)
        self._admitted: set[str] = set()
        self._refused: set[str] = set()
        self._counted: dict[str, Size] = {}

    def roll_back(self, baselines: Iterable[Size]) -> None:
        """Replace all baselines by those of the remaining rounds."""
        self._baselines = deque(baselines, maxlen=ROUNDS)

    def open(self, ids: Iterable[str]) -> None:
        """Begin an attempt that admits these participants."""
        if 2 * len(self._refused) > len(self._admitted):
            self._baselines.clear()
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
        samples = max((baseline.samples for baseline in self._baselines), default=0)
        change = max((baseline.change for baseline in self._baselines), default=0.0)
        if reason := self._excess(size, Size(samples, change), norm):
            self._refused.add(id)
            raise Implausible(reason)

    def count(self, id: str, size: Size) -> None:
        """Add a counted update to the open attempt."""
        self._counted[id] = size

    def close(self, norm: Norm) -> Outlier | None:
        """End the attempt and add its baseline. Return the outlier that voids the attempt, if there is one."""
        baseline, first = self._baseline(), not any(baseline.change or baseline.samples for baseline in self._baselines)
        self._baselines.append(baseline)
        if first and len(self._counted) >= FEW:
            for id, size in self._counted.items():
                if reason := self._excess(size, baseline, norm):
                    return Outlier(id, reason)
        return None

    @property
    def newest(self) -> Size:
        """The baseline of the attempt that was closed last."""
        return self._baselines[-1]

    def dominant(self) -> Dominant | None:
        """Return the participant with more than half of the attempt's samples, if there is one among at least `FEW` updates."""
        total = sum(size.samples for size in self._counted.values())
        if not self._limits.weighted or len(self._counted) < FEW or not total:
            return None
        id, largest = max(self._counted.items(), key=lambda item: item[1].samples)
        share = largest.samples / total
        return Dominant(id, share) if share > 0.5 else None

    def _baseline(self) -> Size:
        few = len(self._counted) < FEW
        samples = sorted((size.samples for size in self._counted.values()), reverse=True)
        changes = [size.change for size in self._counted.values()]
        return Size(samples[0 if few else 1], max(changes) if few else median(changes))

    def _excess(self, size: Size, baseline: Size, norm: Norm) -> str:
        """Return why an update exceeds a baseline; empty: it does not."""
        ratio = self._limits.ratio
        most, change = ratio * baseline.samples, ratio * baseline.change
        if self._limits.weighted and 0 < most < size.samples:
            return (
                f"{size.samples} samples are more than {ratio:g} times the {baseline.samples} of other updates "
                "(AGGREGATOR_MAX_UPDATE_RATIO)"
            )
        if 0 < change < size.change and size.change > norm():
            return (
                f"a change of {size.change:.3g} is more than {ratio:g} times the {baseline.change:.3g} of other updates, "
                "and larger than the model (AGGREGATOR_MAX_UPDATE_RATIO)"
            )
        return ""
