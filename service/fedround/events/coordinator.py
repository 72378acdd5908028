"""Facts of a coordinator."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedround.events.base import Fact


@dataclass(frozen=True, slots=True)
class RunStarted(Fact):
    """A run started, or continues after a restart. The aggregator emits this too, when the run's first attempt opens."""

    run_id: str
    run_name: str


@dataclass(frozen=True, slots=True)
class ShardsChanged(Fact):
    """The assignment of `shards` shards to participants changed."""

    shards: int
    missing: int
    """Number of shards without a participant."""
    doubled: int
    """Number of shards with two participants or more."""
    standing_by: int
    """Number of participants without a shard."""
    warning: str
    """The problem, for operators; empty if each shard has one participant."""


@dataclass(frozen=True, slots=True)
class ParticipantJoined(Fact):
    """A participant registered and sent its first heartbeat."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ParticipantGone(Fact):
    """A participant left the federation, or the coordinator removed it.

    `reason` is silent (timed out), left, failed (left because of the failure in `detail`) or replaced (by a newer registration).
    """

    id: str
    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ParticipantProbed(Fact):
    """Another participant registered under the name of this one, which must send a heartbeat to keep its seat."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class AttemptOpened(Fact):
    """The aggregator opened an attempt of a round."""

    round: int
    attempt: str


@dataclass(frozen=True, slots=True)
class Selected(Fact):
    """The coordinator selected participants. Without `train` they only evaluate the final model."""

    round: int
    ids: tuple[str, ...]
    train: bool = True


@dataclass(frozen=True, slots=True)
class QuorumRaised(Fact):
    """The round waits for all `selected` participants, because `min_clients` requires more updates than the quorum, `asked`.

    Emitted once, the second time that this happens.
    """

    round: int
    asked: int
    selected: int
    min_clients: int


@dataclass(frozen=True, slots=True)
class Revoked(Fact):
    """The coordinator dropped a participant from a round. `reason` is silent, left, failed, replaced, deadline, refused or late.

    Late means that the quorum was counted without it, which is not a failure. `seconds`: time since its selection. `phase`: its
    last phase, a value of `coordinator.silos.Phase`.
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
    """A participant sits out `rounds` rounds after `round`, because it failed several times in a row."""

    round: int
    name: str
    failures: int
    rounds: int
    reason: str


@dataclass(frozen=True, slots=True)
class UpdateCounted(Fact):
    """The aggregator counted an update."""

    round: int
    id: str
    samples: int


@dataclass(frozen=True, slots=True)
class AttemptDropped(Fact):
    """An attempt ended without a model. Another attempt follows after `pause` seconds.

    `timed_out`: too many participants missed the deadline. `failures`: number of attempts of this round that failed for a lasting
    reason.
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
    """A round produced a global model from the updates of `ids`.

    `metrics` are the sample-weighted means of the metrics of training. `members` describes each counted participant. `dropped`
    counts the other selected participants, without those that were `late`. `seconds`: duration of the successful attempt.
    """

    round: int
    attempt: str
    ids: tuple[str, ...]
    dropped: int
    samples: int
    parameters: int
    seconds: float
    metrics: tuple[tuple[str, float], ...]
    members: tuple["Contribution", ...] = ()
    late: int = 0


@dataclass(frozen=True, slots=True)
class Contribution:
    """One participant's part in a round or an evaluation. `seconds`: time from its selection until its update was counted."""

    name: str
    samples: int
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluated(Fact):
    """Participants evaluated the model of `round`; None: the initial model of the run.

    `metrics` are the sample-weighted means, `lowest` and `highest` the range over the `members`.
    """

    round: int | None
    samples: int
    metrics: tuple[tuple[str, float], ...]
    lowest: tuple[tuple[str, float], ...]
    highest: tuple[tuple[str, float], ...]
    members: tuple[Contribution, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerEvaluated(Fact):
    """The aggregator's function evaluated the model of `round`; None: the initial model of the run."""

    round: int | None
    samples: int
    metrics: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class FinalNotEvaluated(Fact):
    """The run ends without the aggregator's evaluation of the final model of `round`, which took longer than `seconds`."""

    round: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MetricMissing(Fact):
    """No evaluation has the metric that a `setting` names. `reason`: a sentence for operators."""

    setting: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelsLost(Fact):
    """The aggregator lost models: `round` was completed, but its newest model is that of round `newest`; None: it has none."""

    round: int
    newest: int | None


@dataclass(frozen=True, slots=True)
class RolledBack(Fact):
    """An operator made the model of round `newest` the newest again. `round`: the round that was open, or next, before that."""

    round: int
    newest: int


@dataclass(frozen=True, slots=True)
class TrainingCompleted(Fact):
    """A run is complete after `rounds` rounds. `reason`: why it stopped early; empty if it did not."""

    rounds: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TelemetryReceived(Fact):
    """A participant pushed a message of a `signal`, traces or metrics. `outcome` is accepted, refused, throttled or full."""

    signal: str
    outcome: str


@dataclass(frozen=True, slots=True)
class TelemetryForwarded(Fact):
    """The relay forwarded messages of participants to the collector. `arrived`: whether the collector accepted them."""

    signal: str
    messages: int
    arrived: bool


@dataclass(frozen=True, slots=True)
class Suspended(Fact):
    """The coordinator was suspended for `seconds`, for example because its machine was paused."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AggregatorUnreachable(Fact):
    """A call to the aggregator failed. The coordinator retries."""

    operation: str
    reason: str


@dataclass(frozen=True, slots=True)
class AggregatorReached(Fact):
    """The aggregator responds (again)."""
