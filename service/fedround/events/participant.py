"""Events of a participant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround.events.base import Fact

if TYPE_CHECKING:
    from fedround.tensors.figures import Change, Statistics


@dataclass(frozen=True, slots=True)
class StateChanged(Fact):
    """The participant's lifecycle moved."""

    state: str
    round: int | None
    draining: bool


@dataclass(frozen=True, slots=True)
class Registered(Fact):
    """The coordinator gave an id. `reason` is start, rejected or round_failed."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RegistrationRefused(Fact):
    """The coordinator gave no id: training is complete."""


@dataclass(frozen=True, slots=True)
class OrderAccepted(Fact):
    """An order to train was accepted, or without `train` to evaluate. `repeated`: for an update that is kept from before."""

    round: int
    repeated: bool
    traceparent: str | None
    tracelink: str | None = None
    run_id: str = ""
    run_name: str = ""
    train: bool = True


@dataclass(frozen=True, slots=True)
class ShardTaken(Fact):
    """From now on training is on part `index` of `count` of a split data set."""

    index: int
    count: int


@dataclass(frozen=True, slots=True)
class PhaseBegan(Fact):
    """A phase of a round began, `ago` seconds ago. Each try to download or upload is a phase of its own.

    It ends with a `PhaseEnded`, told on the same thread.
    """

    round: int
    phase: str
    ago: float = 0.0


@dataclass(frozen=True, slots=True)
class PhaseEnded(Fact):
    """`phase` is download, decode, evaluate, train, encode, check, upload or confirm, which does not begin.

    `error`: the class, if any.
    """

    round: int
    phase: str
    seconds: float
    error: str = ""
    ago: float = 0.0


@dataclass(frozen=True, slots=True)
class WeightsMeasured(Fact):
    """The weights of a model that came or goes. `source` is global or local, `size` the bytes that travel."""

    round: int
    source: str
    size: int
    statistics: "Statistics"


@dataclass(frozen=True, slots=True)
class UpdateMeasured(Fact):
    """What training made of the global model. `change` is None where there was none, or one of another shape."""

    round: int
    samples: int
    change: "Change | None"


@dataclass(frozen=True, slots=True)
class RoundEnded(Fact):
    """`outcome` is completed, evaluated, unconfirmed, failed, refused or abandoned; `reason` is for people."""

    round: int
    outcome: str
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reported(Fact):
    """User code reported figures of its training."""

    round: int
    figures: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class WorkerReady(Fact):
    """The process that trains has made the participant: at the start, and after each `WorkerEnded`."""


@dataclass(frozen=True, slots=True)
class WorkerEnded(Fact):
    """The process that trains ended; another one starts in `pause` seconds.

    `cause` is exited, killed, crashed, cancelled, unusable or lost; `reason` is for people.
    """

    cause: str
    reason: str
    pause: float


@dataclass(frozen=True, slots=True)
class ContactLost(Fact):
    """An exchange with the coordinator failed; it will be tried again."""

    reason: str


@dataclass(frozen=True, slots=True)
class ContactMade(Fact):
    """The coordinator answers (again)."""


@dataclass(frozen=True, slots=True)
class TransferLost(Fact):
    """A model did not come from the aggregator, or an update did not get there; it will be tried again, or ordered anew.

    `intercepted`: something in between answered, a proxy say, and will until a person mends it.
    """

    reason: str
    intercepted: bool = False


@dataclass(frozen=True, slots=True)
class Retrying(Fact):
    """An exchange is tried again after `delay` seconds."""

    path: str
    reason: str
    delay: float


@dataclass(frozen=True, slots=True)
class ExchangeEnded(Fact):
    """One HTTP request of ours ended, well (`status`) or not (`error`). `path` is the template, never the URL."""

    method: str
    path: str
    status: int | None
    error: str | None
    seconds: float
    sent: int
    received: int
