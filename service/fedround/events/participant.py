"""Facts of a participant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround.events.base import Fact

if TYPE_CHECKING:
    from fedround.tensors.statistics import Change, Statistics


@dataclass(frozen=True, slots=True)
class StateChanged(Fact):
    """The participant changed its state. `draining`: whether it is shutting down."""

    state: str
    round: int | None
    draining: bool


@dataclass(frozen=True, slots=True)
class Registered(Fact):
    """The coordinator registered the participant. `reason` is start, rejected or round_failed."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RegistrationRefused(Fact):
    """The coordinator refused the registration, because the training is complete."""


@dataclass(frozen=True, slots=True)
class RoundJoined(Fact):
    """The participant accepted a training request; without `train` it only evaluates.

    `repeated`: it uploads again the update that it has already made. `traceparent` and `tracelink`: see `wire.StartTraining`.
    """

    round: int
    repeated: bool
    traceparent: str | None
    tracelink: str | None = None
    run_id: str = ""
    run_name: str = ""
    train: bool = True


@dataclass(frozen=True, slots=True)
class ShardAssigned(Fact):
    """The participant trains on shard `index` of `count` from now on."""

    index: int
    count: int


@dataclass(frozen=True, slots=True)
class PhaseBegan(Fact):
    """A phase of a round began, `ago` seconds ago. Each try of a download or an upload is one phase.

    A `PhaseEnded` on the same thread follows.
    """

    round: int
    phase: str
    ago: float = 0.0


@dataclass(frozen=True, slots=True)
class PhaseEnded(Fact):
    """A phase ended after `seconds`, `ago` seconds ago.

    `phase` is download, decode, evaluate, train, encode, check, upload or confirm, which has no `PhaseBegan`. `error`: name of the
    exception's class; empty if there was none.
    """

    round: int
    phase: str
    seconds: float
    error: str = ""
    ago: float = 0.0


@dataclass(frozen=True, slots=True)
class WeightsMeasured(Fact):
    """A service computed the statistics of a global model (`source` is global) or of an update (local). `size` is in bytes."""

    round: int
    source: str
    size: int
    statistics: "Statistics"


@dataclass(frozen=True, slots=True)
class UpdateMeasured(Fact):
    """The participant compared its update with the global model. `change`: None without a global model of the same shape."""

    round: int
    samples: int
    change: "Change | None"


@dataclass(frozen=True, slots=True)
class RoundEnded(Fact):
    """A round ended. `outcome` is completed, evaluated, unconfirmed, failed, refused or abandoned."""

    round: int
    outcome: str
    seconds: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MetricsReported(Fact):
    """Training code reported metrics."""

    round: int
    metrics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class WorkerReady(Fact):
    """The worker has constructed the user's class: at the start, and after each `WorkerEnded`."""


@dataclass(frozen=True, slots=True)
class WorkerEnded(Fact):
    """The worker ended. Another one starts in `pause` seconds.

    `cause` is exited, killed, crashed, cancelled, failing, unusable or lost.
    """

    cause: str
    reason: str
    pause: float


@dataclass(frozen=True, slots=True)
class ContactLost(Fact):
    """A request to the coordinator failed. The participant retries."""

    reason: str


@dataclass(frozen=True, slots=True)
class ContactMade(Fact):
    """The coordinator responds (again)."""


@dataclass(frozen=True, slots=True)
class TransferLost(Fact):
    """A download from the aggregator or an upload to it failed. The participant retries, or waits for a new training request.

    `intercepted`: something else answered, such as a proxy. An operator has to fix that.
    """

    reason: str
    intercepted: bool = False


@dataclass(frozen=True, slots=True)
class Retrying(Fact):
    """A request is retried after `delay` seconds."""

    path: str
    reason: str
    delay: float


@dataclass(frozen=True, slots=True)
class ExchangeEnded(Fact):
    """An HTTP request of the participant ended, with a `status` or an `error`. `path` is the template, never the URL."""

    method: str
    path: str
    status: int | None
    error: str | None
    seconds: float
    sent: int
    received: int
