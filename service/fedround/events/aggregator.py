"""Events of an aggregator."""

from dataclasses import dataclass

from fedround.events.base import Fact


@dataclass(frozen=True, slots=True)
class UpdateReceived(Fact):
    """`outcome` is accepted, repeated, unauthorized, late, invalid, implausible or too_large; `reason` is for people."""

    id: str
    outcome: str
    size: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UploadFailed(Fact):
    """An upload that did not arrive whole: cut, too slow, or no room for it. Nothing was counted."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Aggregated(Fact):
    """A new global model."""

    round: int
    updates: int
    parameters: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Dominated(Fact):
    """One of several updates of a round has more than half of all its samples: its `share`."""

    round: int
    id: str
    share: float


@dataclass(frozen=True, slots=True)
class ModelEvaluated(Fact):
    """`function` evaluated the model of `round`, None: the initial model. `dropped`: metrics that were not finite."""

    function: str
    round: int | None
    samples: int
    figures: tuple[tuple[str, float], ...]
    seconds: float
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationFailed(Fact):
    """`function` raised, or returned what is no evaluation."""

    function: str
    round: int | None
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class EvaluationSkipped(Fact):
    """The model of `round` is not evaluated: a newer one came before its turn, or the function returned None."""

    round: int | None


@dataclass(frozen=True, slots=True)
class ModelsRolledBack(Fact):
    """An operator made the model of `round` the newest; those of `removed` later rounds are removed."""

    round: int
    removed: int
