"""What happened, as small frozen facts, and the `Observer` that is told of them.

Runtimes and services tell; logs, metrics and traces listen. Facts carry whole ids: whoever shows one cuts it (`short`).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fedround.tensors.figures import Change, Statistics

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fact:
    """The base of all facts."""


class Observer(Protocol):
    """Is told of every fact, on the thread where it happened; must not block."""

    def __call__(self, fact: Fact, /) -> None: ...


class Observers:
    """Several observers as one. None of them can break a round: what one raises is logged, and the others are told."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def __call__(self, fact: Fact) -> None:
        for observer in self._observers:
            try:
                observer(fact)
            except Exception:
                LOG.exception("an observer failed on %s", type(fact).__name__)


# The participant's


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


# The coordinator's


@dataclass(frozen=True, slots=True)
class RunEntered(Fact):
    """From now on rounds belong to this run: an aggregator hears of it with its first round."""

    run_id: str
    run_name: str


@dataclass(frozen=True, slots=True)
class ShardsChanged(Fact):
    """When participants were selected, the shards of the data set were held in another way than before."""

    shards: int
    missing: int
    doubled: int
    standing_by: int
    """Participants for which there is no shard."""
    warning: str
    """What is wrong; empty where each shard has one participant."""


@dataclass(frozen=True, slots=True)
class ParticipantJoined(Fact):
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ParticipantGone(Fact):
    """`reason` is silent, left, failed (it left because of a failure: `detail`) or replaced (by a newer registration)."""

    id: str
    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ParticipantDoubted(Fact):
    """Another participant has registered under its name: it has to prove that it lives."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class AttemptOpened(Fact):
    """An attempt of a round is open."""

    round: int
    attempt: str


@dataclass(frozen=True, slots=True)
class Selected(Fact):
    """These participants' heartbeats now say `round`. Without `train` they only evaluate the final model."""

    round: int
    ids: tuple[str, ...]
    train: bool = True


@dataclass(frozen=True, slots=True)
class QuorumRaised(Fact):
    """`min_clients` makes the quorum ineffective: the round waits for all `selected` participants, although `asked` were enough.

    Emitted once, the second time that this happens.
    """

    round: int
    asked: int
    selected: int
    min_clients: int


@dataclass(frozen=True, slots=True)
class Revoked(Fact):
    """The round was taken from this participant. `reason` is silent, left, failed, replaced, deadline, refused or late.

    Late means that the quorum was counted without it; this is no failure. `seconds` after its selection it lost the round, in a
    `phase` of `coordinator.silos.Phase`.
    """

    round: int
    id: str
    reason: str
    name: str = ""
    detail: str = ""
    seconds: float = 0.0
    phase: str = ""


@dataclass(frozen=True, slots=True)
class SatOut(Fact):
    """This participant failed so often in a row that it sits out `rounds` rounds after `round`. `reason`: of the last failure."""

    round: int
    name: str
    failures: int
    rounds: int
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateCounted(Fact):
    round: int
    id: str
    samples: int


@dataclass(frozen=True, slots=True)
class AttemptDropped(Fact):
    """An attempt ended without a result; the round is tried again. `timed_out`: its deadline took it from too many.

    `failures`: how many attempts of the round have failed for reasons that do not pass by themselves. `pause`: seconds until the
    next attempt.
    """

    round: int
    attempt: str
    counted: int
    reason: str
    timed_out: bool = False
    failures: int = 0
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class RoundCompleted(Fact):
    """`ids` were counted, from `dropped` others the round was taken; `figures` are the sample-weighted means of the reported.

    `members` are those of `ids`, each with what it contributed.
    `late` more were not counted because the quorum was counted without them.
    """

    round: int
    attempt: str
    ids: tuple[str, ...]
    dropped: int
    samples: int
    parameters: int
    seconds: float
    figures: tuple[tuple[str, float], ...]
    members: tuple["Contribution", ...] = ()
    late: int = 0


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a participant contributed to a round. `seconds`: from its selection until its update was counted."""

    name: str
    samples: int
    seconds: float
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluated(Fact):
    """Participants evaluated the model of `round`, None: the one that the run began with.

    `figures` are the sample-weighted means, `lowest` and `highest` the range over the `members`.
    """

    round: int | None
    samples: int
    figures: tuple[tuple[str, float], ...]
    lowest: tuple[tuple[str, float], ...]
    highest: tuple[tuple[str, float], ...]
    members: tuple[Contribution, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerEvaluated(Fact):
    """The coordinator learned how the aggregator's own function evaluated the model of `round`, None: that the run began with."""

    round: int | None
    samples: int
    figures: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class FinalNotEvaluated(Fact):
    """The run ends without the aggregator's evaluation of its final model, that of `round`: it did not come in `seconds`."""

    round: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelsLost(Fact):
    """Round `round` was completed, but the aggregator's newest model is that of round `newest`, or there is none."""

    round: int
    newest: int | None


@dataclass(frozen=True, slots=True)
class RolledBack(Fact):
    """An operator made the model of round `newest` the newest again. Round `round` was open, or would have come next."""

    round: int
    newest: int


@dataclass(frozen=True, slots=True)
class TrainingCompleted(Fact):
    """A run is complete. `reason`: why it stopped early; empty where it did not."""

    rounds: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TelemetryReceived(Fact):
    """A participant pushed traces or metrics (`signal`). `outcome` is accepted, refused, throttled or full."""

    signal: str
    outcome: str


@dataclass(frozen=True, slots=True)
class TelemetryForwarded(Fact):
    """So many messages of participants `arrived` at the collector, or were dropped."""

    signal: str
    messages: int
    arrived: bool


@dataclass(frozen=True, slots=True)
class StoodStill(Fact):
    """The coordinator could hear nobody for so long: it was paused, or its machine was."""

    seconds: float


@dataclass(frozen=True, slots=True)
class BooksUnreachable(Fact):
    """A call to the aggregator's books failed; it is tried again."""

    operation: str
    reason: str


@dataclass(frozen=True, slots=True)
class BooksReached(Fact):
    """The aggregator's books answer (again)."""


# The aggregator's


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


# Every server's


@dataclass(frozen=True, slots=True)
class WasKept(Fact):
    """What shall survive a restart was written to the data directory."""

    seconds: float


@dataclass(frozen=True, slots=True)
class NotKept(Fact):
    """It could not be written; it is tried again."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class TelemetrySent(Fact):
    """This process pushed traces or metrics (`signal`) by OTLP, and they `arrived` or not."""

    signal: str
    arrived: bool


@dataclass(frozen=True, slots=True)
class RequestServed(Fact):
    """A request was answered. `route`: the template of its path, empty where there is none; `status` None: it was cut off.

    `method` is one that the route has, or `_OTHER`.
    """

    method: str
    route: str
    status: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionsChanged(Fact):
    """A port has another number of connections. `port` is public, internal or ops."""

    port: str
    count: int


@dataclass(frozen=True, slots=True)
class RequestThrottled(Fact):
    """A port refused or delayed a request because its sender asks too often."""

    port: str


@dataclass(frozen=True, slots=True)
class ConnectionCut(Fact):
    """A port closed a connection: `reason` is port_limit, address_limit, head, pipeline or slow."""

    port: str
    reason: str
