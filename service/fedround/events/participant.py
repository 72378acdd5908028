"""Events of a participant."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedround.events.base import Fact

if TYPE_CHECKING:
    from fedround.tensors.statistics import Change, Statistics


@dataclass(frozen=True, slots=True)
class StateChanged(Fact):
    """The participant changed its state."""

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
class OrderAccepted(Fact):
    """The participant accepted a training request; without `train` it only evaluates.

    `repeated`: it sends the update that it already has.
    """

    round: int
    repeated: bool
    traceparent: str | None
    tracelink: str | None = None
    run_id: str = ""
    run_name: str = ""
    train: bool = True


@dataclass(frozen=True, slots=True)
class ShardTaken(Fact):
    """The participant trains on shard `index` of `count` from now on."""

    index: int
    count: int


@dataclass(frozen=True, slots=True)
class PhaseBegan(Fact):
    """A phase of a round began, `ago` seconds ago. Each attempt to download or upload is one phase.

    It ends with a `PhaseEnded` on the same thread.
    """

    round: int
    phase: str
    ago: float = 0.0


@dataclass(frozen=True, slots=True)
class PhaseEnded(Fact):
    """A phase ended. `phase` is download, decode, evaluate, train, encode, check, upload or confirm.

    `confirm` has no `PhaseBegan`. `error`: the class of the exception, if any.
    """

    round: int
    phase: str
    seconds: float
    error: str = ""
    ago: float = 0.0


@dataclass(frozen=True, slots=True)
class WeightsMeasured(Fact):
    """Weights were measured: of the downloaded model (`source` is global), or of the update (local). `size` is in bytes."""

    round: int
    source: str
    size: int
    statistics: "Statistics"


@dataclass(frozen=True, slots=True)
class UpdateMeasured(Fact):
    """An update was compared with the global model. `change` is None without a global model of the same shape."""

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
class Reported(Fact):
    """Training code reported metrics."""

    round: int
    metrics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class WorkerReady(Fact):
    """The worker has constructed the participant: at the start, and after each `WorkerEnded`."""


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
