"""Events of a coordinator."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedround.events.base import Fact


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
