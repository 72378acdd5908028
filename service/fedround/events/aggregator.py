"""Facts of an aggregator."""

from dataclasses import dataclass

from fedround.events.base import Fact


@dataclass(frozen=True, slots=True)
class UpdateReceived(Fact):
    """The aggregator received an update of `size` bytes, and accepted or refused it.

    `outcome` is accepted, repeated, unauthorized, late, invalid, implausible or too_large.
    """

    id: str
    outcome: str
    size: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UploadFailed(Fact):
    """An upload did not arrive completely: the connection broke, it was too slow, or the disk is full. Nothing was counted."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Aggregated(Fact):
    """The aggregator computed the global model of `round` in `seconds`. `parameters`: its number of weights; 0: unknown."""

    round: int
    updates: int
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Dominated(Fact):
    """The update of participant `id` has more than half of the round's samples. `share` is between 0.5 and 1."""

    round: int
    id: str
    share: float


@dataclass(frozen=True, slots=True)
class ModelEvaluated(Fact):
    """`function` evaluated the model of `round`; None: the initial model. `dropped`: names of metrics that were not finite."""

    function: str
    round: int | None
    samples: int
    metrics: tuple[tuple[str, float], ...]
    seconds: float
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationFailed(Fact):
    """`function` raised an exception for the model of `round`, or returned an invalid evaluation."""

    function: str
    round: int | None
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EvaluationSkipped(Fact):
    """The model of `round` was not evaluated, because a newer one existed, or because the function returned None."""

    round: int | None


@dataclass(frozen=True, slots=True)
class ModelsRolledBack(Fact):
    """An operator made the model of `round` the newest; the models of `removed` later rounds were deleted."""

    round: int
    removed: int
